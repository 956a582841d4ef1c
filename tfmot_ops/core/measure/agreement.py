"""Agreement between the outputs of two models (Keras models or TFLite files)."""

from __future__ import annotations

import math

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array
from tfmot_ops.core.measure.noise import power_ratio_db, signal_and_noise
from tfmot_ops.core.measure.predictions import BATCH_SIZE, classes_of, finite_outputs, in_chunks
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
        `top1_agreement`: share of samples with the same class, in [0, 1]; only for models with one output
        that has a class axis.

    Raises:
        UnsupportedModelError: the outputs of the models have different shapes.
        SamplesError: the inputs do not fit a model.
        ArtifactError: the bytes are no TFLite file.
        StepFailedError: an output is NaN or infinite.
    """
    signal, noise, agreeing, samples, is_single = 0.0, 0.0, 0, 0, True
    for start, inputs in in_chunks(x, batch_size):
        first, second = (
            finite_outputs(model, inputs, batch_size, start) for model in (model_or_bytes_a, model_or_bytes_b)
        )
        lists = [outputs if isinstance(outputs, list) else [outputs] for outputs in (first, second)]
        _require_same_shapes(*lists)
        for reference, other in zip(*lists, strict=True):
            parts = signal_and_noise(reference, other)
            signal, noise = signal + parts[0], noise + parts[1]
        is_single = len(lists[0]) == 1 and lists[0][0].ndim > 1
        if is_single:
            classes = classes_of(first)
            agreeing, samples = agreeing + int((classes == classes_of(second)).sum()), samples + len(classes)
    figures = {"sqnr_db": power_ratio_db(signal, noise)}
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    if is_single:
        figures["top1_agreement"] = agreeing / samples
    return figures


def _require_same_shapes(first: list[Array], second: list[Array]) -> None:
    shapes = [[output.shape for output in outputs] for outputs in (first, second)]
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            "the two models cannot be compared",
            required=f"two models with outputs of the same shapes, here {shapes[0]}",
            received=f"a second model with outputs of shapes {shapes[1]}",
            remedy="compare a model with its pruned, quantised or exported form",
        )
