"""Accuracy of Keras models and TFLite files."""

from __future__ import annotations

import numpy as np

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array
from tfmot_ops.core.measure.predictions import BATCH_SIZE, classes_of, finite_outputs
from tfmot_ops.core.tflite.interpreter import Inputs
from tfmot_ops.errors import (
    SamplesError,
)


def evaluate(
    model_or_bytes: keras.Model | bytes, x: Inputs, y: Array, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """Accuracy of a classifier on labelled samples.

    Args:
        model_or_bytes: Keras model or TFLite file with one output, [N, classes] or, for two classes, [N, 1].
        x: inputs [N, ...].
        y: labels [N].
        batch_size: samples that are run at once; does not change the result.

    Returns:
        `accuracy`: share of samples whose label is the largest output, in [0, 1].

    Raises:
        UnsupportedModelError: the model has several outputs, or an output without a class axis.
        SamplesError: the inputs do not fit the model, or the number of labels is not N.
        ArtifactError: the bytes are no TFLite file.
        StepFailedError: an output is NaN or infinite.
    """
    outputs = finite_outputs(model_or_bytes, x, batch_size)
    classes, labels = classes_of(outputs), np.asarray(y).reshape(-1)
    if classes.shape != labels.shape:
        raise SamplesError(
            "the labels do not fit the samples",
            required=f"{len(classes)} labels, one for each sample",
            received=f"{len(labels)} labels, from an array of shape {list(np.shape(y))}",
            remedy="give the class number of each sample, not one-hot rows",
        )
    return {"accuracy": float(np.mean(classes == labels))}
