"""What a layer with a kernel computes, with any kernel in its place and without bias and activation."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
#: Convolutions over [N, T, C]; TFLite computes them over [N, 1, T, C].
ONE_AXIS = (_L.Conv1D, _L.DepthwiseConv1D)


def linear(layer: Any, kernel: Any, value: Any) -> Any:
    """The layer's sums for a kernel, one of `ONE_AXIS` over two axes.

    Args:
        layer: a layer of the role CONVOLUTION.
        kernel: in the layer's own shape; with an axis of 1 before it for one of `ONE_AXIS`.
        value: what the layer reads; for one of `ONE_AXIS` [N, T, C] or [N, 1, T, C].

    Returns:
        The sums; [N, 1, T', C'] for one of `ONE_AXIS`.
    """
    if type(layer) is _L.Dense:
        return tf.tensordot(value, kernel, 1) if len(value.shape) > 2 else tf.matmul(value, kernel)  # noqa: PLR2004 - [N, C]
    if type(layer) is _L.Conv2DTranspose:
        # Its call computes the output's size, and reads the kernel from the layer: from one that has no other use.
        config = layer.get_config() | {"use_bias": False}
        config.pop("batch_input_shape", None)
        twin = type(layer).from_config(config)
        twin.kernel, twin.built = kernel, True
        return twin.call(value)
    strides, dilations, padding = list(layer.strides), list(layer.dilation_rate), layer.padding.upper()
    if type(layer) in ONE_AXIS:
        if len(value.shape) == 3:  # noqa: PLR2004 - [N, T, C]
            value = tf.expand_dims(value, 1)
        if padding == "CAUSAL":
            value = tf.pad(value, [[0, 0], [0, 0], [dilations[0] * (layer.kernel_size[0] - 1), 0], [0, 0]])
            padding = "VALID"
        strides = [strides[0]] * 2 if type(layer) is _L.DepthwiseConv1D else [1, *strides]
        dilations = [1, *dilations]
    if type(layer) in {_L.DepthwiseConv1D, _L.DepthwiseConv2D}:
        return tf.nn.depthwise_conv2d(value, kernel, [1, *strides, 1], padding=padding, dilations=dilations)
    return tf.nn.conv2d(value, kernel, strides, padding, dilations=dilations)
