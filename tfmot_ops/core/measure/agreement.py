"""Accuracy of, and agreement between, Keras models and TFLite files."""

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
    """How far two models give the same answers.

    Args:
        model_or_bytes_a: the reference, usually the float model.
        model_or_bytes_b: the model to compare.
        x: inputs [N, ...] of both.
        batch_size: samples that are run at once.

    Returns:
        `sqnr_db` over all outputs, in dB, left out when the outputs are equal (it is infinite then) or the
        reference is all 0; `top1_agreement`, share of samples with the same class, in [0, 1], for one output.

    Raises:
        UnsupportedModelError: the two give outputs of different shapes.
    outputs = finite_outputs(model_or_bytes, x, batch_size)
    """
    first, second = (finite_outputs(each, x, batch_size) for each in (model_or_bytes_a, model_or_bytes_b))
    lists = [outputs if isinstance(outputs, list) else [outputs] for outputs in (first, second)]
    shapes = [[output.shape for output in outputs] for outputs in lists]
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            "the two models cannot be compared",
            required=f"outputs of one shape: {shapes[0]}",
            received=f"{shapes[1]}",
            remedy="compare a model with what was made of it",
        )
    flat = [np.concatenate([output.ravel() for output in outputs]) for outputs in lists]
    figures = {"sqnr_db": sqnr_db(flat[0], flat[1])}
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    if len(lists[0]) == 1:
        figures["top1_agreement"] = float(np.mean(classes_of(first) == classes_of(second)))
    return figures
