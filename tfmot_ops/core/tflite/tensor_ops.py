"""TensorFlow computations that the emitter puts around a call: the bias, and the shape of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.keras.types import TensorLike


def restore_shape(value: TensorLike, shape: Sequence[int | None]) -> Any:
    """A value computed as [N, H, W, C] in a call's own shape, in which one size besides the batch may be None."""
    extra = len(value.shape) - len(shape)
    if extra > 0:
        return tf.squeeze(value, [*range(1, 1 + extra)])
    sizes = [-1 if size is None else size for size in shape[1:]]
    return tf.reshape(value, [value.shape[0], *sizes]) if extra < 0 else value


def add_bias(value: TensorLike, bias: np.ndarray) -> Any:
    """The sum of a tensor [..., channels] and a bias [channels], as the converter rounds it correctly."""
    bias = np.array(bias, np.float32)
    # The converter of TensorFlow 2.21 stores a constant of equal numbers as one number and rounds it by the first
    # channel's scale for all channels: a bias of 3 became 3.00, 2.95, 2.86. Changing the last bit of the first number
    # avoids this.
    if bias[0] and np.all(bias == bias[0]):
        bias[0] = np.nextafter(bias[0], np.float32(np.inf))
    return tf.nn.bias_add(value, tf.constant(bias, name="bias"))
