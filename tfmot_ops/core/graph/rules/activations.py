"""Activations as layers of their own, in forms that TFLite computes in int8: swish(x) -> x * sigmoid(x)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tfmot_ops.core.graph.clusters import record_pointwise
from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.layers import Affine, HardSwish, scale_and_offset
from tfmot_ops.core.graph.rebuild import copy_layer, is_public
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.roles import spec_of
from tfmot_ops.core.keras.identity import IdentityKey
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.errors import UnsupportedModelError

_LOG = logging.getLogger(__name__)
_L = keras.layers
_R = keras.regularizers
_FUSES = {
    *(_L.Conv1D, _L.Conv2D, _L.Conv3D, _L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose),
    *(_L.DepthwiseConv1D, _L.DepthwiseConv2D, _L.Dense),
}


def emit_activation(node: Node, out: Rewriter, tensor: Tensor, activation: Any, path: str) -> Tensor:
    """Emit the calls that compute an activation function on a tensor; the last call gets the path `path`.

    If `node.layer` is shared, all its calls share the new layers. A user's own function becomes an Activation layer.

    Raises:
        UnsupportedModelError: a user's own function has the name of a Keras activation.
    """
    name = path.rsplit("/", 1)[-1]
    activation = _keras_function(node, activation)
    if activation in {None, keras.activations.linear}:
        return tensor
    if isinstance(activation, _L.Layer):
        return _emit_layer(out, tensor, activation, path)
    if activation is keras.activations.swish:
        # swish(x) = x * sigmoid(x). TFLite rounds the sigmoid to 1/256, so training has to see it rounded too.
        sigmoid = out.shared_layer(node.layer, "sigmoid", lambda: _L.Activation("sigmoid", name=f"{name}_sigmoid"))
        gate = out.call(sigmoid, f"{path}_sigmoid", tensor)
        multiply = out.shared_layer(node.layer, "gate", lambda: _L.Multiply(name=name))
        return out.call(multiply, path, [tensor, gate])
    if activation is keras.activations.hard_sigmoid:
        # clip(0.2 x + 0.5, 0, 1) = relu6(1.2 x + 3) / 6
        return bounded_relu(node, out, tensor, path, bound=6.0, scale=1.2, offset=3.0, result=1 / 6)
    return out.call(out.shared_layer(node.layer, "activation", lambda: _layer_of(activation, name)), path, tensor)


def _layer_of(activation: Any, name: str) -> Layer:
    """The layer for an activation function: a user's own that becomes a table is recorded, where possible."""
    layer = _L.Activation(activation, name=name)
    recorded = None if is_public(activation) or not spec_of(layer).table else record_pointwise(activation, name)
    return layer if recorded is None else recorded


def _keras_function(node: Node, activation: Any) -> Any:
    """Keras' function for a TensorFlow function of the same name (tf.nn.relu); any other activation as it is."""
    name = getattr(activation, "__name__", None)
    if name is None or activation is getattr(keras.activations, name, None):
        return activation
    if is_public(activation):
        found = keras.activations.serialize(activation)
        return keras.activations.get(found) if isinstance(found, str) else activation
    if hasattr(keras.activations, name):
        raise UnsupportedModelError(
            f"layer {node.path!r}: its activation {name!r} is your own function with the name of a Keras activation",
            required="a name that Keras does not use, as a saved model refers to functions by name",
            received=f"{activation.__module__}.{name}",
            remedy="rename the function, and decorate it with keras.saving.register_keras_serializable",
        )
    return activation


def _emit_layer(out: Rewriter, tensor: Tensor, layer: Layer, path: str) -> Tensor:
    """Emit a call of a layer that is another layer's activation: Dense(activation=PReLU()) -> Dense, PReLU."""
    call = Node(layer, path, (tensor,), {}, Tensor(tensor.shape, tensor.dtype), out.origin)
    result = activation_layer(call, out)
    return out.call(layer, path, tensor) if result is None else result


def bounded_relu(
    node: Node, out: Rewriter, tensor: Tensor, path: str, *, bound: float, scale: float, offset: float, result: float
) -> Tensor:
    """Emit result * min(max(scale * x + offset, 0), bound); with a bound of 6 the inner part is TFLite's RELU6."""
    tensor = out.affine(f"{path}_input", tensor, scale, offset)
    relu = out.shared_layer(node.layer, "relu", lambda: _L.ReLU(bound, name=f"{path.rsplit('/', 1)[-1]}_relu"))
    return out.affine(path, out.call(relu, f"{path}_relu", tensor), result, 0.0)


def fused_activation(node: Node, out: Rewriter) -> Any:
    """Conv2D(activation="relu") -> Conv2D, Activation("relu"), and its activity regulariser as a layer after them."""
    layer = node.layer
    if type(layer) not in _FUSES or layer.activation in {None, keras.activations.linear}:
        return None
    without = {"activation": "linear", "activity_regularizer": None}
    plain = out.shared_layer(layer, "plain", lambda: copy_layer(layer, layer.name, **without))
    (tensor,) = node.inputs()
    # A user's activation may change the shape; compute_output_shape gives the shape before the activation.
    shape = node.output().shape if is_public(layer.activation) else layer.compute_output_shape(tensor.shape)
    return with_activation(node, out, out.call(plain, node.path, tensor, shape=shape, weights=own_weights(layer, out)))


def own_weights(layer: Layer, out: Rewriter) -> list[Any]:
    """Weight arrays of a layer, without the weights of its activation where the activation is a layer (PReLU)."""
    weights = out.graph.weights_of(layer)
    activation = getattr(layer, "activation", None)
    if not isinstance(activation, _L.Layer):
        return weights
    theirs = {IdentityKey(weight) for weight in activation.weights}
    return [value for weight, value in zip(layer.weights, weights, strict=True) if IdentityKey(weight) not in theirs]


def with_activation(node: Node, out: Rewriter, tensor: Tensor, activation: Any = None) -> Tensor:
    """Emit a layer's activation (`node.layer.activation` by default) and activity regulariser on `tensor`."""
    activation = node.layer.activation if activation is None else activation
    if activation not in {None, keras.activations.linear}:
        name = getattr(activation, "__name__", type(activation).__name__).replace("<lambda>", "lambda")
        tensor = emit_activation(node, out, tensor, activation, f"{node.path}_{name}")
    return _regularized(node, out, tensor)


def _regularized(node: Node, out: Rewriter, tensor: Tensor) -> Tensor:
    """Emit a layer that has the activity regulariser of `node.layer`, if there is one."""
    regularizer = node.layer.activity_regularizer
    if regularizer is None:
        return tensor
    name = f"{node.layer.name}_activity"
    if type(regularizer) in {_R.L1, _R.L2, _R.L1L2}:
        factors = [float(getattr(regularizer, factor, 0.0)) for factor in ("l1", "l2")]
        make = lambda: _L.ActivityRegularization(*factors, name=name)  # noqa: E731 - used once, below
    else:
        # No Keras layer saves a custom activity regulariser; a file without it is better than none.
        _LOG.warning("%s: a saved file of the model will not have the activity regulariser %s", node.path, regularizer)
        make = lambda: _L.Activation("linear", activity_regularizer=regularizer, name=name)  # noqa: E731 - as above
    return out.call(out.shared_layer(node.layer, "activity", make), f"{node.path}_activity", tensor)


def activation_layer(node: Node, out: Rewriter) -> Any:
    """ReLU(negative_slope=a) -> LeakyReLU(a); ReLU(max_value=b) -> b/6 * relu6(6/b * x); swish -> x * sigmoid(x)."""
    result = _activation_form(node, out)
    return None if result is None else _regularized(node, out, result)


def _activation_form(node: Node, out: Rewriter) -> Tensor | None:
    layer = node.layer
    if type(layer) is _L.Activation:
        function = _keras_function(node, layer.activation)
        composed = function in {keras.activations.swish, keras.activations.hard_sigmoid}
        is_own = not is_public(function) and spec_of(layer).table
        if composed or is_own or isinstance(function, _L.Layer):
            return emit_activation(node, out, node.inputs()[0], function, node.path)
        return None
    return _relu_form(node, out) if type(layer) is _L.ReLU and not layer.threshold else None


def _relu_form(node: Node, out: Rewriter) -> Tensor | None:
    """A ReLU with a slope as LeakyReLU, one with a bound b as relu6(6 / b x) b / 6; None for ReLU and ReLU6."""
    layer = node.layer
    bound = None if layer.max_value is None else float(layer.max_value)
    slope = float(layer.negative_slope or 0.0)
    if slope and bound is None:
        leaky = out.shared_layer(layer, "leaky", lambda: _L.LeakyReLU(slope, name=layer.name))
        return out.call(leaky, node.path, node.inputs()[0])
    if slope or bound in {None, 0.0, 6.0}:
        return None
    scale = 6.0 / float(bound or 0.0)
    return bounded_relu(node, out, node.inputs()[0], node.path, bound=6.0, scale=scale, offset=0.0, result=1.0 / scale)


def two_sided_relu(node: Node, out: Rewriter) -> Any:
    """`tf.nn.crelu(x)` -> relu(x) and relu(-x), concatenated."""
    if getattr(node.layer, "symbol", None) not in {"nn.crelu", "compat.v1.nn.crelu"} or len(node.inputs()) != 1:
        return None
    (tensor,), result = node.inputs(), node.output()
    grown = [axis for axis, pair in enumerate(zip(tensor.shape, result.shape, strict=True)) if pair[0] != pair[1]]
    if len(grown) != 1 or not tensor.is_float:
        return None
    name = node.layer.name
    positive = out.call(_L.ReLU(name=f"{name}_positive"), f"{node.path}_positive", tensor)
    opposite = out.affine(f"{node.path}_opposite", tensor, -1.0, 0.0)
    negative = out.call(_L.ReLU(name=f"{name}_negative"), f"{node.path}_negative", opposite)
    joined = _L.Concatenate(grown[0], name=name)
    return out.call(joined, node.path, [positive, negative], shape=result.shape)


def hard_swish(node: Node, out: Rewriter) -> Any:
    """Hard swish, x * relu6(x + 3) * (1/6) as a product of calls -> HardSwish."""
    if type(node.layer) is not _L.Multiply or len(node.inputs()) != 2:  # noqa: PLR2004 - x and its gate
        return None
    for tensor, gate in (node.inputs(), node.inputs()[::-1]):
        relu = _input_of_affine(out, gate, scale=1 / 6, offset=0.0)
        shifted = relu and _relu6_input(relu)
        if shifted and _input_of_affine(out, shifted, scale=1.0, offset=3.0) is tensor:
            make = lambda: HardSwish(name=node.layer.name)  # noqa: E731 - used once, below
            return out.call(out.shared_layer(node.layer, "hard_swish", make), node.path, tensor)
    return None


def _relu6_input(tensor: Tensor) -> Tensor | None:
    producer = tensor.producer
    is_relu6 = producer is not None and isinstance(producer.layer, _L.ReLU | _L.Activation)
    if not is_relu6 or producer is None:
        return None
    name = getattr(getattr(producer.layer, "activation", None), "__name__", "")
    is_bounded = getattr(producer.layer, "max_value", None) == 6.0  # noqa: PLR2004 - the 6 of relu6
    return producer.inputs()[0] if is_bounded or name == "relu6" else None


def _input_of_affine(out: Rewriter, tensor: Tensor, *, scale: float, offset: float) -> Tensor | None:
    """The x of `tensor` = scale * x + offset, if an Affine with this scale and offset computes the tensor."""
    producer = tensor.producer
    if producer is None or not isinstance(producer.layer, Affine):
        return None
    found_scale, found_offset = scale_and_offset(out.graph.weights_of(producer.layer))
    same = np.allclose(found_scale, scale, rtol=1e-6) and np.allclose(found_offset, offset, rtol=1e-6)
    return producer.inputs()[0] if same else None
