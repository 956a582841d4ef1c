"""Convolutions, rewritten to kinds that TFLite computes in int8: Conv2D, DepthwiseConv2D, Conv2DTranspose, Dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.activations import own_weights, with_activation
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, Layer, TensorLike

_L = keras.layers
_R = keras.regularizers
#: Separable class -> (depthwise class, pointwise class).
_SEPARABLE = {
    _L.SeparableConv1D: (_L.DepthwiseConv1D, _L.Conv1D),
    _L.SeparableConv2D: (_L.DepthwiseConv2D, _L.Conv2D),
}


class _Reshaped:
    """Applies a user's constraint or regulariser to a kernel that a rule has reshaped.

    Example: a Dense kernel [C, units] became a Conv2D kernel [1, 1, C, units]; the user's max-norm constraint over
    axis 0 is still computed on [C, units].

    Args:
        inner: the user's constraint or regulariser, or its config.
        shape: shape of the kernel in the user's layer.
    """

    #: keras.constraints or keras.regularizers, for their functions `get` and `serialize`.
    _kind: ClassVar[Any]

    def __init__(self, inner: object, shape: Sequence[int]) -> None:
        self.inner = self._kind.get(inner)
        self.shape = tuple(shape)

    def __call__(self, kernel: TensorLike) -> Any:
        """The regulariser's loss (a scalar), or the constrained kernel in the shape of the argument."""
        result = self.inner(tf.reshape(kernel, self.shape))
        return tf.reshape(result, kernel.shape) if result.shape.rank else result

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, serialised."""
        return {"inner": self._kind.serialize(self.inner), "shape": list(self.shape)}


@keras.saving.register_keras_serializable("tfmot_ops")
class ReshapedConstraint(_Reshaped, keras.constraints.Constraint):
    """A user's kernel constraint, applied in the shape that the kernel has in the user's layer."""

    _kind = keras.constraints


@keras.saving.register_keras_serializable("tfmot_ops")
class ReshapedRegularizer(_Reshaped, keras.regularizers.Regularizer):
    """A user's kernel regulariser, applied in the shape that the kernel has in the user's layer."""

    _kind = _R


# A quantisation wrapper saves its inner layer in Keras' old format, which has class names without the package.
keras.saving.get_custom_objects().update({cls.__name__: cls for cls in (ReshapedConstraint, ReshapedRegularizer)})
#: Element-wise constraints and regularisers: the kernel's shape does not matter.
_ELEMENTWISE = {type(None), _R.L1, _R.L2, _R.L1L2, keras.constraints.NonNeg}


def _kernel_rules(layer: Layer, kernel: Array, name: str = "kernel") -> dict[str, Any]:
    """Constructor arguments for a layer that gets the kernel of `layer` reshaped, under the attribute `name`."""
    constraint, regularizer = layer.kernel_constraint, layer.kernel_regularizer
    if type(constraint) not in _ELEMENTWISE:
        constraint = ReshapedConstraint(constraint, kernel.shape)
    if type(regularizer) not in _ELEMENTWISE:
        regularizer = ReshapedRegularizer(regularizer, kernel.shape)
    return {f"{name}_regularizer": regularizer, f"{name}_constraint": constraint, **_bias_rules(layer)}


def _bias_rules(layer: Layer) -> dict[str, Any]:
    return {
        "use_bias": layer.use_bias,
        "bias_regularizer": layer.bias_regularizer,
        "bias_constraint": layer.bias_constraint,
    }


def separable(node: Node, out: Rewriter) -> Any:
    """SeparableConv2D -> DepthwiseConv2D, 1x1 Conv2D, and its activation; SeparableConv1D likewise."""
    layer = node.layer
    classes = _SEPARABLE.get(type(layer))
    if classes is None or layer.data_format != "channels_last" or layer.padding == "causal":
        return None
    (tensor,) = node.inputs()
    depthwise_kernel, pointwise_kernel, *bias = own_weights(layer, out)
    depthwise = out.shared_layer(layer, "depthwise", lambda: classes[0](
        layer.kernel_size, strides=layer.strides, padding=layer.padding, depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate, use_bias=False, depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint, name=f"{layer.name}_depthwise", trainable=layer.trainable,
    ))  # fmt: skip
    pointwise = out.shared_layer(layer, "pointwise", lambda: classes[1](
        layer.filters, 1, kernel_regularizer=layer.pointwise_regularizer, kernel_constraint=layer.pointwise_constraint,
        name=layer.name, trainable=layer.trainable, **_bias_rules(layer),
    ))  # fmt: skip
    shape = node.output().shape
    middle = (*shape[:-1], depthwise_kernel.shape[-2] * depthwise_kernel.shape[-1])
    tensor = out.call(depthwise, f"{node.path}_depthwise", tensor, shape=middle, weights=[depthwise_kernel])
    weights = [pointwise_kernel, *bias]
    tensor = out.call(pointwise, node.path, tensor, shape=shape, weights=weights, source_kernel="pointwise_kernel")
    return with_activation(node, out, tensor)


def transposed_over_one_axis(node: Node, out: Rewriter) -> Any:
    """Conv1DTranspose on [N, T, C] -> Conv2DTranspose on [N, 1, T, C], and its activation."""
    layer = node.layer
    if type(layer) is not _L.Conv1DTranspose or layer.data_format != "channels_last":
        return None
    (tensor,) = node.inputs()
    kernel, *bias = own_weights(layer, out)  # [time, out, in]
    padding = None if layer.output_padding is None else (0, *layer.output_padding)
    made = out.shared_layer(layer, "transposed", lambda: _L.Conv2DTranspose(
        layer.filters, (1, *layer.kernel_size), strides=(1, *layer.strides), padding=layer.padding,
        output_padding=padding, dilation_rate=(1, *layer.dilation_rate),
        name=layer.name, trainable=layer.trainable, **_kernel_rules(layer, kernel),
    ))  # fmt: skip
    batch, *line = node.output().shape
    rows = _L.Reshape((1, tensor.shape[1] or -1, tensor.channels), name=f"{layer.name}_rows")
    tensor = out.call(rows, f"{node.path}_rows", tensor, shape=(batch, 1, *tensor.shape[1:]))
    tensor = out.call(made, node.path, tensor, shape=(batch, 1, *line), weights=[kernel[None], *bias])
    flat = _L.Reshape((line[0] or -1, layer.filters), name=f"{layer.name}_line")
    result = out.call(flat, f"{node.path}_line", tensor, shape=(batch, *line))
    return with_activation(node, out, result)


def depthwise_of_groups(node: Node, out: Rewriter) -> Any:
    """Conv2D(groups=input channels) -> DepthwiseConv2D, for which every runtime has a fast kernel."""
    layer = node.layer
    if type(layer) is not _L.Conv2D or layer.groups == 1 or layer.data_format != "channels_last":
        return None
    (tensor,) = node.inputs()
    # TensorFlow's depthwise kernels take one stride for both axes, and no stride together with a dilation.
    plain = layer.strides[0] == layer.strides[1] and 1 in {layer.strides[0], max(layer.dilation_rate)}
    if layer.groups != tensor.channels or not plain:
        return None
    kernel, *bias = own_weights(layer, out)  # [height, width, 1, channels * multiplier]
    multiplier = layer.filters // layer.groups
    depthwise = out.shared_layer(layer, "depthwise", lambda: _L.DepthwiseConv2D(
        layer.kernel_size, strides=layer.strides, padding=layer.padding, depth_multiplier=multiplier,
        dilation_rate=layer.dilation_rate, name=layer.name, trainable=layer.trainable,
        **_kernel_rules(layer, kernel, "depthwise"),
    ))  # fmt: skip
    weights = [kernel.reshape(*kernel.shape[:2], layer.groups, multiplier), *bias]
    shape = node.output().shape
    result = out.call(depthwise, node.path, tensor, shape=shape, weights=weights, source_kernel="kernel")
    return with_activation(node, out, result)


def dense_on_image(node: Node, out: Rewriter) -> Any:
    """Dense on [N, H, W, C] -> 1x1 Conv2D, which has a scale per channel and needs no RESHAPE before and after it."""
    layer = node.layer
    if type(layer) is not _L.Dense or len(node.inputs()[0].shape) != 4:  # noqa: PLR2004 - [N, H, W, C]
        return None
    kernel, *bias = own_weights(layer, out)  # [in, units]
    made = out.shared_layer(layer, "convolution", lambda: _L.Conv2D(
        layer.units, 1, name=layer.name, trainable=layer.trainable, **_kernel_rules(layer, kernel)
    ))  # fmt: skip
    weights = [np.reshape(kernel, (1, 1, *kernel.shape)), *bias]
    result = out.call(made, node.path, node.inputs()[0], shape=node.output().shape, weights=weights)
    return with_activation(node, out, result)


def time_distributed(node: Node, out: Rewriter) -> Any:
    """TimeDistributed(Dense) on [N, T, C] -> Dense, which computes the same at each step."""
    layer = node.layer
    if type(layer) is not _L.TimeDistributed or type(layer.layer) is not _L.Dense:
        return None
    # The wrapper averages an activity regulariser over the steps; a plain Dense would sum it.
    if layer.activity_regularizer is not None:
        return None
    (tensor,) = node.inputs()
    inner = layer.layer
    dense = out.shared_layer(layer, "dense", lambda: _L.Dense(
        inner.units, kernel_regularizer=inner.kernel_regularizer, kernel_constraint=inner.kernel_constraint,
        name=layer.name, trainable=layer.trainable and inner.trainable, **_bias_rules(inner),
    ))  # fmt: skip
    shape = node.output().shape
    result = out.call(dense, node.path, tensor, shape=shape, weights=own_weights(inner, out))
    return with_activation(node, out, result, inner.activation)
