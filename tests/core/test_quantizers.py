"""Kernels in training and in the file are rounded to the same levels."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops.core.quantization.quantizers import WeightQuantizer


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"per_channel": True}, (3, 3, 16, 32)),
        ({"per_channel": True, "channels_axes": 2}, (3, 3, 16, 2)),
        ({"per_channel": True, "swap_channels": True}, (3, 3, 16, 32)),
        ({"per_channel": False}, (64, 10)),
    ],
    ids=["convolution", "depthwise", "transposed", "dense"],
)
def test_training_rounds_as_the_export_does(options, shape):
    random = np.random.default_rng(0)
    values = random.normal(size=shape).astype(np.float32)
    values[random.random(shape) < 0.5] = 0.0
    values[..., 0, :] = 0.0  # a channel without weights, of the transposed kernel and the depthwise one
    kernel = tf.constant(values)
    quantizer = WeightQuantizer(**options)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        trained = quantizer(kernel, training=True, weights={})
    exported = quantizer.round(kernel)
    # A weight halfway between two levels may go either way.
    assert np.mean(~np.isclose(trained, exported, atol=1e-6)) < 1e-3
    assert np.all(np.asarray(trained)[values == 0] == 0)
    assert np.all(tape.gradient(trained, kernel) == 1)
