"""The linear part of a layer with a kernel: its convolution or matrix product, without bias and activation.

Each function takes (layer, kernel, value). Strides, padding and dilation come from the layer; the kernel is passed in,
so that a rounded one can replace the layer's own, and has the same shape. A 1D convolution is computed as a 2D one of
height 1: the kernel is [1, k, C_in, C_out], the value [N, T, C] or [N, 1, T, C], the result [N, 1, T', C'].
`tflite.emit` calls these functions by the field `linear_part` of the operation table.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras.types import Layer, TensorLike


def dense(layer: Layer, kernel: TensorLike, value: TensorLike) -> Any:
    """Matrix product over the last axis: [..., C] with a kernel [C, units] gives [..., units]."""
    del layer
    return tf.tensordot(value, kernel, 1) if len(value.shape) > 2 else tf.matmul(value, kernel)  # noqa: PLR2004 - [N, C]


def convolution(layer: Layer, kernel: TensorLike, value: TensorLike) -> Any:
    """A 1D or 2D convolution: [N, H, W, C] with a kernel [kh, kw, C, C'] gives [N, H', W', C']."""
    value, strides, dilations, padding = _over_two_axes(layer, value)
    return tf.nn.conv2d(value, kernel, strides, padding, dilations=dilations)


def depthwise(layer: Layer, kernel: TensorLike, value: TensorLike) -> Any:
    """A 1D or 2D depthwise convolution: [N, H, W, C] with a kernel [kh, kw, C, m] gives [N, H', W', C * m]."""
    value, strides, dilations, padding = _over_two_axes(layer, value)
    if len(layer.strides) == 1:
        # TensorFlow takes equal strides only; along the height of 1 any stride gives the same result.
        strides = [strides[1]] * 2
    return tf.nn.depthwise_conv2d(value, kernel, [1, *strides, 1], padding=padding, dilations=dilations)


def transposed(layer: Layer, kernel: TensorLike, value: TensorLike) -> Any:
    """A 2D transposed convolution: [N, H, W, C] with a kernel [kh, kw, C', C] gives [N, H', W', C']."""
    # Keras computes the output's size in `call`, which reads `layer.kernel`: a copy of the layer holds this kernel.
    config = layer.get_config() | {"use_bias": False}
    config.pop("batch_input_shape", None)
    twin = type(layer).from_config(config)
    twin.kernel, twin.built = kernel, True
    return twin.call(value)


def _over_two_axes(layer: Layer, value: TensorLike) -> tuple[Any, list[int], list[int], str]:
    """(value, strides, dilations, padding) for a 2D operation; those of a 1D layer get a height of 1."""
    strides, dilations, padding = list(layer.strides), list(layer.dilation_rate), layer.padding.upper()
    if len(strides) > 1:
        return value, strides, dilations, padding
    if len(value.shape) == 3:  # noqa: PLR2004 - [N, T, C]
        value = tf.expand_dims(value, 1)
    if padding == "CAUSAL":
        value = tf.pad(value, [[0, 0], [0, 0], [dilations[0] * (layer.kernel_size[0] - 1), 0], [0, 0]])
        padding = "VALID"
    return value, [1, *strides], [1, *dilations], padding
