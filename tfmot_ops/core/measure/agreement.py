"""Agreement between the outputs of two models (Keras models or TFLite files)."""

from __future__ import annotations

import math

import numpy as np

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.measure.noise import sqnr_db
from tfmot_ops.core.measure.predictions import BATCH_SIZE, classes_of, finite_outputs
from tfmot_ops.core.tflite.interpreter import Inputs
from tfmot_ops.errors import (
    UnsupportedModelError,
)


def agreement(
    model_or_bytes_a: keras.Model | bytes,
    model_or_bytes_b: keras.Model | bytes,
    x: Inputs,
    batch_size: int = BATCH_SIZE,
) -> dict[str, float]:
    """Compare the outputs of two models on the same samples.

    Args:
        model_or_bytes_a: the reference, usually the float model.
        model_or_bytes_b: the model that is compared with it.
        x: inputs [N, ...] of both models.
        batch_size: samples that are run at once.

    Returns:
        `sqnr_db`: signal-to-quantisation-noise ratio over all outputs in dB; left out if infinite, that is if the
        outputs are equal or the reference is all 0.
        `top1_agreement`: share of samples with the same class, in [0, 1]; only for models with one output.

    Raises:
        UnsupportedModelError: the outputs of the models have different shapes, or no class axis.
        SamplesError: the inputs do not fit a model.
        ArtifactError: the bytes are no TFLite file.
        StepFailedError: an output is NaN or infinite.
    """
    first, second = (finite_outputs(model, x, batch_size) for model in (model_or_bytes_a, model_or_bytes_b))
    lists = [outputs if isinstance(outputs, list) else [outputs] for outputs in (first, second)]
    shapes = [[output.shape for output in outputs] for outputs in lists]
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            "the two models cannot be compared",
            required=f"two models with outputs of the same shapes, here {shapes[0]}",
            received=f"a second model with outputs of shapes {shapes[1]}",
            remedy="compare a model with its pruned, quantised or exported form",
        )
    flat = [np.concatenate([output.ravel() for output in outputs]) for outputs in lists]
    figures = {"sqnr_db": sqnr_db(flat[0], flat[1])}
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    if len(lists[0]) == 1:
        figures["top1_agreement"] = float(np.mean(classes_of(first) == classes_of(second)))
    return figures
