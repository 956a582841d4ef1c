"""Lookup in the operation table: the row of a call, by its layer's class, TensorFlow function or activation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.elementwise import is_elementwise
from tfmot_ops.core.graph.layers import Affine
from tfmot_ops.core.graph.operations import ACTIVATIONS, FUNCTIONS, LAYERS, TABLE, UNKNOWN, Kernel, OpSpec, Role
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer

_L = keras.layers


def spec_of(layer: Layer) -> OpSpec:
    """The table's row for a layer (the inner one, without wrappers); UNKNOWN for data_format="channels_first"."""
    layer = _activation_layer_within(layer)
    symbol = getattr(layer, "symbol", None)
    if symbol is not None:
        return FUNCTIONS.get(symbol, UNKNOWN)
    if getattr(layer, "data_format", None) == "channels_first" or getattr(layer, "normalize", False) is True:
        return UNKNOWN  # Dot(normalize=True) divides by a norm, for which there is no int8 form
    if is_affine(layer):
        return LAYERS[Affine]
    name = activation_name(layer)
    if name is not None:
        return ACTIVATIONS.get(name) or _spec_of_user_function(getattr(layer, "activation", layer))
    return LAYERS.get(type(layer)) or _spec_of_custom(layer)


def _spec_of_custom(layer: Layer) -> OpSpec:
    """The row of a layer whose class has no row: a custom layer whose `call` could not be recorded."""
    if is_identity(layer):
        return LAYERS[_L.Identity]
    return _spec_of_user_function(layer) if _is_stateless_custom(layer) else UNKNOWN


def _spec_of_user_function(function: Any) -> OpSpec:
    """The row of a function, or layer without weights, that has no row by name: a table, if it is elementwise."""
    return TABLE if callable(function) and is_elementwise(function) else UNKNOWN


def _is_stateless_custom(layer: Layer) -> bool:
    """Whether a custom layer has no weights, does the same in training as in inference, and adds no losses."""
    return is_custom(layer) and not (layer.weights or _takes_training(layer) or layer.activity_regularizer)


def role(layer: Layer) -> Role:
    """How a call of this layer (the inner one, without wrappers) takes part in an int8 graph."""
    return spec_of(layer).role


def kernels(layer: Layer) -> tuple[Kernel, ...]:
    """The kernels of a layer, by its exact class: a subclass may use its weights differently, so it has none here."""
    if type(layer) is _L.Bidirectional:
        sides = ("forward_layer", "backward_layer")
        return tuple(
            replace(kernel, attribute=f"{side}.{kernel.attribute}")
            for side in sides
            for kernel in kernels(getattr(layer, side))
        )
    if type(layer) is _L.RNN and type(layer.cell) in {_L.LSTMCell, _L.GRUCell, _L.SimpleRNNCell}:
        return LAYERS[_L.LSTM].kernels
    return LAYERS.get(type(layer), UNKNOWN).kernels


def kernel_of(layer: Layer, attribute: str) -> Any:
    """The variable that a layer's attribute holds, as `Kernel.attribute` names it; None in a layer not built yet."""
    value: Any = layer
    for name in attribute.split("."):
        value = getattr(value, name, None)
    return value


def is_elu(layer: Layer) -> bool:
    """Whether a layer computes ELU as TFLite's own operation does: x where x > 0, exp(x) - 1 elsewhere."""
    layer = _activation_layer_within(layer)
    is_default = isinstance(layer, _L.ELU) and float(layer.alpha) == 1.0
    return is_default or activation_name(layer) == "elu" or _is_one_step(layer, "nn.elu")


def _is_one_step(layer: Layer, function: str) -> bool:
    return isinstance(layer, Pointwise) and [step["function"] for step in layer.steps] == [function]


def describe(layer: Layer) -> str:
    """A layer's operation for a message: class or TensorFlow function, and activation (`Activation (elu)`)."""
    name = activation_name(layer)
    kind = getattr(layer, "symbol", None) or type(layer).__name__
    return f"{kind} ({name})" if name else str(kind)


def activation_name(layer: Layer) -> str | None:
    """Name of the function that an activation layer computes; None for any other layer."""
    layer = _activation_layer_within(layer)
    match layer:
        case _L.ReLU():
            if layer.negative_slope or layer.threshold:
                return "relu with slope or threshold"
            bounds = {None: "relu", 6.0: "relu6"}
            return bounds.get(None if layer.max_value is None else float(layer.max_value), "relu with a bound")
        case _L.Softmax():
            return "softmax" if layer.axis == -1 else "softmax over an inner axis"
        case _L.Activation():
            return getattr(layer.activation, "__name__", type(layer.activation).__name__)
    return None


def _activation_layer_within(layer: Layer) -> Any:
    """The layer within `Activation(LeakyReLU())`, or the layer itself."""
    inner = layer.activation if type(layer) is _L.Activation else None
    return inner if isinstance(inner, _L.Layer) and not inner.weights else layer


def is_affine(layer: Layer) -> bool:
    """Whether the layer computes scale * x + offset per channel (last axis) in inference."""
    if isinstance(layer, Affine):
        return True
    # The exact class: a subclass may compute something else.
    if type(layer) is not _L.BatchNormalization:
        return False
    axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
    return axis == -1 or (layer.input_spec is not None and axis == layer.input_spec.ndim - 1)


def is_custom(layer: Layer) -> bool:
    """Whether the layer's class comes from outside Keras, tfmot and this project."""
    packages = (private.LAYERS_PACKAGE, private.ENGINE_PACKAGE, "tfmot_ops.", "tensorflow_model_optimization.")
    return not type(layer).__module__.startswith(packages)


def _takes_training(layer: Layer) -> bool:
    return bool(private.call_signature(layer).expects_training_arg)


def is_identity(layer: Layer) -> bool:
    """Whether a custom layer returns its input unchanged in inference, as a drop-path layer does."""
    if not is_custom(layer) or layer.weights or not _takes_training(layer):
        return False
    probe = tf.zeros([1, 1])
    try:
        return layer.call(probe, training=False) is probe
    except Exception:  # noqa: BLE001 - the user's code may not accept [1, 1]: then the layer is not known as identity
        return False
