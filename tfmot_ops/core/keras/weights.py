"""The weights that a layer or model holds itself, not in inner layers: where they are held, and how to exchange them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.identity import Itself
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, Variable

#: Attributes in which Keras itself keeps lists of weights and inner layers; they stay as they are.
_KERAS_OWN = ("_self_", "_trainable_weights", "_non_trainable_weights", "_obj_reference", "_callable_losses")


def own_weights_of(layer: Layer) -> list[Any]:
    """The weights of a layer that belong to no inner layer."""
    inner = [part for part in private.layers_within(layer) if part is not layer]
    theirs = {Itself(private.plain_variable(weight)) for part in inner for weight in part.weights}
    return [weight for weight in layer.weights if Itself(private.plain_variable(weight)) not in theirs]


def regularizers_of(layer: Layer) -> dict[Itself, Any]:
    """Weight (its plain variable) -> its regulariser, for the weights that a layer itself has created."""
    found: dict[Itself, Any] = {}
    for loss in private.losses_of_weights(layer):
        variables, function = getattr(loss, "args", ()), getattr(loss, "func", None)
        regularizer = inspect.getclosurevars(function).nonlocals.get("regularizer") if function else None
        found |= {Itself(private.plain_variable(variable)): regularizer for variable in variables}
    return found


@contextmanager
def exchanged(layer: Layer, exchange: Callable[[Variable], Any]) -> Iterator[None]:
    """In this context, the layer's attributes hold `exchange(weight)` in place of each weight of its own.

    Weights in lists, dicts and `tf.Module`s of the layer are exchanged too; inner layers keep their weights.
    """
    own = {Itself(private.plain_variable(weight)) for weight in own_weights_of(layer)}
    restore: list[tuple[Any, str, Any]] = []

    def exchanged_value(value: Any) -> Any:
        if isinstance(value, tf.Variable):
            return exchange(value) if Itself(private.plain_variable(value)) in own else value
        if isinstance(value, list | tuple):
            parts = [exchanged_value(part) for part in value]
            return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
        if isinstance(value, Mapping):
            named = {key: exchanged_value(part) for key, part in value.items()}
            return named if any(new is not old for new, old in zip(named.values(), value.values(), strict=True)) else value
        if isinstance(value, tf.Module) and not isinstance(value, keras.layers.Layer):
            visit(value)
        return value

    def visit(holder: Any) -> None:
        for name, value in list(vars(holder).items()):
            if name.startswith(_KERAS_OWN):
                continue
            new = exchanged_value(value)
            if new is not value:
                restore.append((holder, name, value))
                # Keras' own `__setattr__` would change the list of the layer's weights.
                object.__setattr__(holder, name, new)

    try:
        visit(layer)
        yield
    finally:
        for holder, name, value in restore:
            object.__setattr__(holder, name, value)
