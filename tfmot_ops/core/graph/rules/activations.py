"""Activations: one layer each, in forms that TFLite computes in int8."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.layers import Affine, HardSwish, scale_and_offset
from tfmot_ops.core.legacy_keras import keras

_L = keras.layers
_FUSES = {
    *(_L.Conv1D, _L.Conv2D, _L.Conv3D, _L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose),
    *(_L.DepthwiseConv1D, _L.DepthwiseConv2D, _L.Dense),
}


def emit_activation(node: Node, out: Rewriter, tensor: Tensor, activation: Any, path: str) -> Tensor:
    """The calls that compute an activation function on a tensor; `path` is where the last of them stands.

    A layer that is shared keeps sharing what it becomes: the layers are made once for `node.layer`.
    """
    name = path.rsplit("/", 1)[-1]
    if activation in {None, keras.activations.linear}:
        return tensor
    if activation is keras.activations.swish:
        # TFLite rounds the sigmoid to 1/256, so training has to see it rounded too.
        sigmoid = out.once(node.layer, "sigmoid", lambda: _L.Activation("sigmoid", name=f"{name}_sigmoid"))
        gate = out.call(sigmoid, f"{path}_sigmoid", tensor)
        multiply = out.once(node.layer, "gate", lambda: _L.Multiply(name=name))
        return out.call(multiply, path, [tensor, gate])
    if activation is keras.activations.hard_sigmoid:
        # clip(0.2 x + 0.5, 0, 1) = relu6(1.2 x + 3) / 6
        return bounded_relu(node, out, tensor, path, bound=6.0, scale=1.2, offset=3.0, result=1 / 6)
    make = lambda: _L.Activation(activation, name=name)  # noqa: E731 - used once, below
    return out.call(out.once(node.layer, "activation", make), path, tensor)


def bounded_relu(
    node: Node, out: Rewriter, tensor: Tensor, path: str, *, bound: float, scale: float, offset: float, result: float
) -> Tensor:
    """Result * min(max(scale * x + offset, 0), bound), for a bound of 6, which TFLite has as one operation."""
    tensor = out.affine(f"{path}_input", tensor, scale, offset)
    relu = out.once(node.layer, "relu", lambda: _L.ReLU(bound, name=f"{path.rsplit('/', 1)[-1]}_relu"))
    return out.affine(path, out.call(relu, f"{path}_relu", tensor), result, 0.0)


def fused_activation(node: Node, out: Rewriter) -> Any:
    """Conv2D(activation="relu") -> Conv2D + Activation("relu")."""
    layer = node.layer
    if type(layer) not in _FUSES or layer.activation in {None, keras.activations.linear}:
        return None
    plain = out.once(layer, "plain", lambda: _without_activation(layer, out))
    tensor = out.call(plain, node.path, node.inputs()[0], shape=node.output().shape)
    return after(node, out, tensor, layer.activation)


def after(node: Node, out: Rewriter, tensor: Tensor, activation: Any) -> Tensor:
    """The activation that a layer computes after its kernel."""
    if activation in {None, keras.activations.linear}:
        return tensor
    name = getattr(activation, "__name__", type(activation).__name__)
    return emit_activation(node, out, tensor, activation, f"{node.path}_{name}")


def activation_layer(node: Node, out: Rewriter) -> Any:
    """Activation, ReLU and Softmax layers whose function has another name, or a form in two calls."""
    layer = node.layer
    if type(layer) is _L.Activation:
        simple = {keras.activations.swish, keras.activations.hard_sigmoid}
        return emit_activation(node, out, node.inputs()[0], layer.activation, node.path) if (
            layer.activation in simple
        ) else None  # fmt: skip
    if type(layer) is not _L.ReLU or layer.threshold:
        return None
    bound = None if layer.max_value is None else float(layer.max_value)
    slope = float(layer.negative_slope or 0.0)
    if slope and bound is None:
        leaky = out.once(layer, "leaky", lambda: _L.LeakyReLU(slope, name=layer.name))
        return out.call(leaky, node.path, node.inputs()[0])
    if slope or bound in {None, 0.0, 6.0}:
        return None
    scale = 6.0 / float(bound or 0.0)
    return bounded_relu(node, out, node.inputs()[0], node.path, bound=6.0, scale=scale, offset=0.0, result=1.0 / scale)


def gated(node: Node, out: Rewriter) -> Any:
    """X * relu6(x + 3) / 6 -> HardSwish."""
    if type(node.layer) is not _L.Multiply or len(node.inputs()) != 2:  # noqa: PLR2004 - x and its gate
        return None
    for tensor, gate in (node.inputs(), node.inputs()[::-1]):
        relu = _before(out, gate, scale=1 / 6, offset=0.0)
        shifted = relu and _relu6_input(relu)
        if shifted and _before(out, shifted, scale=1.0, offset=3.0) is tensor:
            make = lambda: HardSwish(name=node.layer.name)  # noqa: E731 - used once, below
            return out.call(out.once(node.layer, "hard_swish", make), node.path, tensor)
    return None


def _relu6_input(tensor: Tensor) -> Tensor | None:
    producer = tensor.producer
    is_relu6 = producer is not None and isinstance(producer.layer, _L.ReLU | _L.Activation)
    if not is_relu6 or producer is None:
        return None
    name = getattr(getattr(producer.layer, "activation", None), "__name__", "")
    is_bounded = getattr(producer.layer, "max_value", None) == 6.0  # noqa: PLR2004 - the 6 of relu6
    return producer.inputs()[0] if is_bounded or name == "relu6" else None


def _before(out: Rewriter, tensor: Tensor, *, scale: float, offset: float) -> Tensor | None:
    """The input of the affine that made a tensor, if it has this scale and offset in every channel."""
    producer = tensor.producer
    if producer is None or not isinstance(producer.layer, Affine):
        return None
    found_scale, found_offset = scale_and_offset(out.graph.weights_of(producer.layer))
    same = np.allclose(found_scale, scale, rtol=1e-6) and np.allclose(found_offset, offset, rtol=1e-6)
    return producer.inputs()[0] if same else None


def _without_activation(layer: Any, out: Rewriter) -> Any:
    config = layer.get_config()
    config["activation"] = "linear"
    config.pop("batch_input_shape", None)
    plain = type(layer).from_config(config)
    plain.trainable = layer.trainable
    out.graph.weights[id(plain)] = out.graph.weights_of(layer)
    return plain
