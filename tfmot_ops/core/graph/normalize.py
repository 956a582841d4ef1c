"""The normalisation rules: same outputs, same weights, weighted layers keep their names.

After them a graph has no nested model, no tensor arithmetic that a standard layer can say, no fused
activation, no separable convolution: few forms, so that quantisers are placed by few rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ops.core.graph.ir import Graph, Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter, channel_constant, rewrite
from tfmot_ops.core.legacy_keras import keras

_MERGES = {
    "math.add": keras.layers.Add,
    "__operators__.add": keras.layers.Add,
    "math.multiply": keras.layers.Multiply,
    "math.subtract": keras.layers.Subtract,
    "math.maximum": keras.layers.Maximum,
    "math.minimum": keras.layers.Minimum,
}
_ACTIVATIONS = {
    "nn.relu": "relu",
    "nn.relu6": "relu6",
    "nn.silu": "swish",
    "nn.swish": "swish",
    "nn.softmax": "softmax",
    "math.sigmoid": "sigmoid",
    "nn.sigmoid": "sigmoid",
    "math.tanh": "tanh",
    "nn.tanh": "tanh",
    "nn.elu": "elu",
    "nn.gelu": "gelu",
}


def normalize_graph(graph: Graph) -> Graph:
    """Apply all rules, in one pass."""
    return rewrite(graph, (_arithmetic, _function, _preprocessing, _separable, _fused_activation))


def _symbol(node: Node) -> str:
    return getattr(node.layer, "symbol", None) or ""


def _operands(node: Node) -> tuple[Any, Any] | None:
    values = [*node.args, *(value for name, value in node.kwargs.items() if name in {"x", "y"})]
    return (values[0], values[1]) if len(values) == 2 else None  # noqa: PLR2004 - the two sides of an operator


def _arithmetic(node: Node, out: Rewriter) -> Any:
    """`a + b` of tensors -> Add; `x / 255. - .5` -> one affine."""
    operands = _operands(node)
    symbol = _symbol(node)
    if operands is None or symbol not in {*_MERGES, "math.truediv", "math.divide"}:
        return None
    left, right = operands
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        if symbol not in _MERGES or not (left.is_float and right.is_float):
            return None
        merge = _MERGES[symbol](name=node.layer.name)
        return out.call(merge, node.path, [left, right], shape=node.output().shape)
    tensor, constant, reversed_ = (left, right, False) if isinstance(left, Tensor) else (right, left, True)
    return _with_constant(node, out, tensor, constant, reversed_=reversed_)


def _with_constant(node: Node, out: Rewriter, tensor: Any, constant: Any, *, reversed_: bool) -> Any:
    values = channel_constant(constant, tensor) if isinstance(tensor, Tensor) and tensor.is_float else None
    if values is None or node.output().shape != tensor.shape:
        return None
    match _symbol(node):
        case "math.add" | "__operators__.add":
            return out.affine(node.path, tensor, 1.0, values)
        case "math.subtract":
            return (
                out.affine(node.path, tensor, -1.0, values)
                if reversed_
                else out.affine(node.path, tensor, 1.0, -values)
            )
        case "math.multiply":
            return out.affine(node.path, tensor, values, 0.0)
        case "math.truediv" | "math.divide" if not reversed_ and np.all(values != 0):
            return out.affine(node.path, tensor, 1.0 / values, 0.0)
    return None


def _function(node: Node, out: Rewriter) -> Any:
    """`tf.nn.relu6(x)` and its like -> Activation."""
    activation = _ACTIVATIONS.get(_symbol(node))
    inputs = node.inputs()
    extra = [value for value in node.kwargs.values() if value is not None and not isinstance(value, Tensor)]
    if activation is None or len(inputs) != 1 or extra:
        return None
    return out.call(keras.layers.Activation(activation, name=node.layer.name), node.path, inputs[0])


def _preprocessing(node: Node, out: Rewriter) -> Any:
    """Rescaling and Normalization -> one affine per channel."""
    layer = node.layer
    if type(layer) is keras.layers.Rescaling:
        (tensor,) = node.inputs()
        if channel_constant(layer.scale, tensor) is None or channel_constant(layer.offset, tensor) is None:
            return None
        return out.affine(node.path, tensor, layer.scale, layer.offset)
    if type(layer) is keras.layers.Normalization and not layer.invert:
        (tensor,) = node.inputs()
        mean, variance = np.ravel(layer.mean), np.ravel(layer.variance)
        if not tensor.is_float or mean.size not in {1, tensor.channels}:
            return None
        # Keras divides by max(sqrt(variance), epsilon).
        scale = 1.0 / np.maximum(np.sqrt(variance), keras.backend.epsilon())
        return out.affine(node.path, tensor, scale, -mean * scale)
    return None


def _separable(node: Node, out: Rewriter) -> Any:
    """SeparableConv2D -> DepthwiseConv2D + 1x1 Conv2D (+ its activation)."""
    layer = node.layer
    if type(layer) is not keras.layers.SeparableConv2D or layer.data_format != "channels_last":
        return None
    (tensor,) = node.inputs()
    depthwise_kernel, pointwise_kernel, *bias = out.graph.weights_of(layer)
    depthwise = out.once(layer, "depthwise", lambda: keras.layers.DepthwiseConv2D(
        layer.kernel_size, strides=layer.strides, padding=layer.padding, depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate, use_bias=False, depthwise_regularizer=layer.depthwise_regularizer,
        name=f"{layer.name}_depthwise", trainable=layer.trainable,
    ))  # fmt: skip
    pointwise = out.once(layer, "pointwise", lambda: keras.layers.Conv2D(
        layer.filters, 1, use_bias=layer.use_bias, kernel_regularizer=layer.pointwise_regularizer,
        name=layer.name, trainable=layer.trainable,
    ))  # fmt: skip
    shape = node.output().shape
    middle = (*shape[:-1], depthwise_kernel.shape[2] * depthwise_kernel.shape[3])
    tensor = out.call(depthwise, f"{node.path}_depthwise", tensor, shape=middle, weights=[depthwise_kernel])
    tensor = out.call(pointwise, node.path, tensor, shape=shape, weights=[pointwise_kernel, *bias])
    return _activation(node, out, tensor, layer.activation)


def _fused_activation(node: Node, out: Rewriter) -> Any:
    """Conv2D(activation="relu") -> Conv2D + Activation("relu")."""
    layer = node.layer
    if type(layer) not in _FUSES or layer.activation in {None, keras.activations.linear}:
        return None
    plain = out.once(layer, "plain", lambda: _without_activation(layer, out))
    tensor = out.call(plain, node.path, node.inputs()[0], shape=node.output().shape)
    return _activation(node, out, tensor, layer.activation)


_FUSES = {
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
}


def _without_activation(layer: Any, out: Rewriter) -> Any:
    config = layer.get_config()
    config["activation"] = "linear"
    config.pop("batch_input_shape", None)
    plain = type(layer).from_config(config)
    plain.trainable = layer.trainable
    out.graph.weights[id(plain)] = out.graph.weights_of(layer)
    return plain


def _activation(node: Node, out: Rewriter, tensor: Tensor, activation: Any) -> Tensor:
    if activation in {None, keras.activations.linear}:
        return tensor
    name = getattr(activation, "__name__", type(activation).__name__)
    make = lambda: keras.layers.Activation(activation, name=f"{node.layer.name}_{name}")  # noqa: E731 - used once, below
    return out.call(out.once(node.layer, "activation", make), f"{node.path}_{name}", tensor)
