"""Outputs of Keras models and TFLite files, and the predicted classes."""

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

#: Samples that are run at once by default; bounds the memory, and does not change the outputs.
BATCH_SIZE = 64


def predict(model_or_bytes: keras.Model | bytes, x: Inputs, batch_size: int = BATCH_SIZE) -> Array | list[Array]:
    """Outputs of a Keras model or a TFLite file for float inputs, as floats.

    For a TFLite file with integer inputs and outputs, the inputs are quantised and the outputs dequantised with the
    file's scales and zero points.

    Args:
        model_or_bytes: Keras model or TFLite file.
        x: inputs [N, ...], one array per input; for a TFLite file in the file's order.
        batch_size: samples that are run at once; a file with a fixed batch of 1 is run sample by sample.

    Returns:
        The output [N, ...], float32 for a TFLite file; a list for several outputs. The outputs of a dict are in the
        alphabetical order of their names, as in a TFLite file.

    Raises:
        SamplesError: the inputs do not fit the model.
        ArtifactError: the bytes are no TFLite file.
        ExportError: the TFLite interpreter cannot run the file.
    """
    if isinstance(model_or_bytes, bytes):
        outputs = run_tflite(model_or_bytes, x, batch_size)
    else:
        result = _run_keras(model_or_bytes, x, batch_size)
        values = [result[name] for name in sorted(result)] if isinstance(result, dict) else result
        outputs = list(values) if isinstance(values, list | tuple) else [values]
    return outputs[0] if len(outputs) == 1 else outputs


def finite_outputs(model_or_bytes: keras.Model | bytes, x: Inputs, batch_size: int) -> Array | list[Array]:
    """The outputs of `predict`, checked to be finite, as no metric can be computed from NaN or infinity.

    Raises:
        StepFailedError: an output value is NaN or infinite.
    """
    outputs = predict(model_or_bytes, x, batch_size)
    parts = outputs if isinstance(outputs, list) else [outputs]
    not_finite = [~np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts]
    samples = np.logical_or.reduce(not_finite)
    if samples.any():
        is_file = isinstance(model_or_bytes, bytes)
        raise StepFailedError(
            f"the {'TFLite file' if is_file else 'model'} returned NaN or infinity",
            required="finite outputs for every sample",
            received=f"NaN or infinity for {int(samples.sum())} of {len(samples)} samples, "
            f"the first at index {int(samples.argmax())}",
            remedy="look for NaN and infinity in the weights and in the samples"
            + (", and compare the file with its Keras model layer by layer (core.layer_sqnr)" if is_file else ""),
        )
    return outputs


def classes_of(outputs: Array | list[Array], threshold: float = 0.5) -> npt.NDArray[np.int64]:
    """Predicted class of each sample [N], from scores [N, classes] or, for two classes, a sigmoid [N, 1].

    Dense predictions [N, H, W, classes] give one class per pixel: [N * H * W].

    Args:
        outputs: the scores.
        threshold: the score above which the second of two classes is predicted from [N, 1]; 0 for logits.

    Raises:
        UnsupportedModelError: there are several outputs, or there is no class axis.
    """
    if isinstance(outputs, list) or outputs.ndim < 2:  # noqa: PLR2004 - [N, classes]
        raise UnsupportedModelError(
            "the output is not a row of class scores",
            required="one output [N, classes]",
            received=f"{len(outputs)} outputs" if isinstance(outputs, list) else f"shape {list(outputs.shape)}",
            remedy="use a classifier",
        )
    classes = outputs > threshold if outputs.shape[-1] == 1 else outputs.argmax(axis=-1)
    return np.asarray(classes, np.int64).reshape(-1)


def _run_keras(model: keras.Model, x: Inputs, batch_size: int) -> Any:
    """The result of `model.predict`; raises SamplesError if Keras fails on samples that do not fit the model."""
    try:
        return model.predict(x, batch_size=batch_size, verbose=0)
    except (ValueError, tf.errors.InvalidArgumentError):
        # Checked only after a failure, as Keras accepts more than this check, such as [N] for an input [N, 1].
        shapes = [[-1 if size is None else size for size in tensor.shape] for tensor in model.inputs or ()]
        check_inputs(shapes, arrays(x), "model")
        raise
