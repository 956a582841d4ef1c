"""What layers with a kernel compute, with any kernel in its place and without bias and activation.

Each function takes (layer, kernel, value). The layer gives strides, padding and dilation; the kernel has the layer's
own shape. A layer over one axis is computed over two: its kernel has an axis of 1 before its own, its value is
[N, T, C] or [N, 1, T, C], and the result [N, 1, T', C'].
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def dense(layer: Any, kernel: Any, value: Any) -> Any:
    """Sums over the last axis: [..., C] with a kernel [C, units] gives [..., units]."""
    del layer
    return tf.tensordot(value, kernel, 1) if len(value.shape) > 2 else tf.matmul(value, kernel)  # noqa: PLR2004 - [N, C]


def convolution(layer: Any, kernel: Any, value: Any) -> Any:
    """A convolution over one or two axes."""
    value, strides, dilations, padding = _over_two_axes(layer, value)
    return tf.nn.conv2d(value, kernel, strides, padding, dilations=dilations)


def depthwise(layer: Any, kernel: Any, value: Any) -> Any:
    """A depthwise convolution over one or two axes."""
    value, strides, dilations, padding = _over_two_axes(layer, value)
    if len(layer.strides) == 1:
        strides = [strides[1]] * 2  # TensorFlow takes equal ones only; the axis of 1 has one position at any stride
    return tf.nn.depthwise_conv2d(value, kernel, [1, *strides, 1], padding=padding, dilations=dilations)


def transposed(layer: Any, kernel: Any, value: Any) -> Any:
    """A transposed convolution over two axes."""
    # Its call computes the output's size, and reads the kernel from the layer: from one that has no other use.
    config = layer.get_config() | {"use_bias": False}
    config.pop("batch_input_shape", None)
    twin = type(layer).from_config(config)
    twin.kernel, twin.built = kernel, True
    return twin.call(value)


def _over_two_axes(layer: Any, value: Any) -> tuple[Any, list[int], list[int], str]:
    """(value, strides, dilations, padding) of a layer over one or two axes, as one over two."""
    strides, dilations, padding = list(layer.strides), list(layer.dilation_rate), layer.padding.upper()
    if len(strides) > 1:
        return value, strides, dilations, padding
    if len(value.shape) == 3:  # noqa: PLR2004 - [N, T, C]
        value = tf.expand_dims(value, 1)
    if padding == "CAUSAL":
        value = tf.pad(value, [[0, 0], [0, 0], [dilations[0] * (layer.kernel_size[0] - 1), 0], [0, 0]])
        padding = "VALID"
    return value, [1, *strides], [1, *dilations], padding
