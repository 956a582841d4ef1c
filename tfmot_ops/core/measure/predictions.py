"""Outputs of Keras models and TFLite files, and the classes in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array
from tfmot_ops.core.tflite.interpreter import Inputs, arrays, check_inputs, run_tflite
from tfmot_ops.errors import (
    StepFailedError,
    UnsupportedModelError,
)

BATCH_SIZE = 64


def predict(model_or_bytes: keras.Model | bytes, x: Inputs, batch_size: int = BATCH_SIZE) -> Array | list[Array]:
    """Run a Keras model or a TFLite file on float inputs and give float outputs.

    Integer inputs of a TFLite file are quantised with its own scale and zero point, integer outputs dequantised.

    Args:
        model_or_bytes: Keras model or TFLite file.
        x: inputs [N, ...]; for a TFLite file with several, in the file's order.
        batch_size: samples that are run at once; a file with a fixed batch of 1 is run sample by sample.

    Returns:
        Outputs [N, ...], float32 for a TFLite file; a list with several outputs, those of a dict in the order of their
        names, which is the file's.

    Raises:
        SamplesError: the inputs do not fit the model.
        ArtifactError: the bytes are no TFLite file.
    """
    if isinstance(model_or_bytes, bytes):
        outputs = run_tflite(model_or_bytes, x, batch_size)
    else:
        result = _run_keras(model_or_bytes, x, batch_size)
        values = [result[name] for name in sorted(result)] if isinstance(result, dict) else result
        outputs = list(values) if isinstance(values, list | tuple) else [values]
    return outputs[0] if len(outputs) == 1 else outputs


def finite_outputs(model_or_bytes: keras.Model | bytes, x: Inputs, batch_size: int) -> Array | list[Array]:
    """What `predict` gives, refused where a value of it is NaN or infinite: no figure can be made of such values."""
    outputs = predict(model_or_bytes, x, batch_size)
    parts = outputs if isinstance(outputs, list) else [outputs]
    wrong = [~np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts]
    samples = np.logical_or.reduce(wrong)
    if samples.any():
        is_file = isinstance(model_or_bytes, bytes)
        raise StepFailedError(
            f"the {'TFLite file' if is_file else 'model'} returned NaN or infinity",
            required="finite outputs for every sample",
            received=f"NaN or infinity for {int(samples.sum())} of {len(samples)} samples, "
            f"the first at index {int(samples.argmax())}",
            remedy="look for NaN and infinity in the weights and in the samples"
            + (", and compare the file with its model by layer: core.layer_sqnr" if is_file else ""),
        )
    return outputs


def classes_of(outputs: Array | list[Array]) -> npt.NDArray[np.int64]:
    """Class [N] of each sample; along the last axis, so that dense predictions [N, H, W, classes] count by pixel."""
    if isinstance(outputs, list) or outputs.ndim < 2:  # noqa: PLR2004 - [N, classes]
        raise UnsupportedModelError(
            "the output is not a row of class scores",
            required="one output [N, classes]",
            received=f"{len(outputs)} outputs" if isinstance(outputs, list) else f"shape {list(outputs.shape)}",
            remedy="use a classifier",
        )
    even_odds = 0.5  # of a sigmoid
    classes = outputs > even_odds if outputs.shape[-1] == 1 else outputs.argmax(axis=-1)
    return np.asarray(classes, np.int64).reshape(-1)


def _run_keras(model: keras.Model, x: Inputs, batch_size: int) -> Any:
    """What `model.predict` gives; samples that it refuses because they do not fit are an error of ours."""
    try:
        return model.predict(x, batch_size=batch_size, verbose=0)
    except (ValueError, tf.errors.InvalidArgumentError):
        # Looked at only now: Keras takes more than this check knows, such as [N] for an input [N, 1].
        shapes = [[-1 if size is None else size for size in tensor.shape] for tensor in model.inputs or ()]
        check_inputs(shapes, arrays(x), "model")
        raise
