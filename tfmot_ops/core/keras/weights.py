"""The weights that a layer or model holds itself, not in inner layers, and how to replace them temporarily."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.identity import IdentityKey
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, Variable

#: Attributes in which Keras itself keeps lists of weights and inner layers; they stay as they are.
_KERAS_OWN = ("_self_", "_trainable_weights", "_non_trainable_weights", "_obj_reference", "_callable_losses")


def variable_key(weight: object) -> IdentityKey:
    """A dictionary key for a weight: the same one for a variable and for its wrapper in mixed precision."""
    return IdentityKey(private.plain_variable(weight))


def own_weights_of(layer: Layer) -> list[Any]:
    """The weights of a layer that belong to no inner layer."""
    inner = [part for part in private.layers_within(layer) if part is not layer]
    theirs = {variable_key(weight) for part in inner for weight in part.weights}
    return [weight for weight in layer.weights if variable_key(weight) not in theirs]


def regularizers_of(layer: Layer) -> dict[IdentityKey, Any]:
    """Weight (its plain variable) -> its regulariser, for the weights that a layer itself has created."""
    found: dict[IdentityKey, Any] = {}
    for loss in private.weight_loss_functions(layer):
        # Keras keeps partial(mark as loss, partial(loss of the weight, weight)).
        inner = loss.args[0] if isinstance(loss, partial) and loss.args else None
        if isinstance(inner, partial) and inner.args and isinstance(inner.args[0], tf.Variable):
            regularizer = inspect.getclosurevars(inner.func).nonlocals.get("regularizer")
            found[variable_key(inner.args[0])] = regularizer
    return found


def snapshot_attributes(layer: Layer) -> list[tuple[Any, dict[str, Any]]]:
    """(layer, its attributes now) of a layer and its built inner layers; see `restore_attributes`."""
    return [(part, dict(vars(part))) for part in private.layers_within(layer) if part.built]


def restore_attributes(before: list[tuple[Any, dict[str, Any]]]) -> None:
    """Give layers the attributes back that they had.

    A user's `call` may keep tensors in attributes (`self.scores = scores`). After a recording or a trial these would be
    symbolic tensors or results for random values.
    """
    for part, values in before:
        for name in [name for name in vars(part) if vars(part)[name] is not values.get(name)]:
            object.__setattr__(part, name, values[name]) if name in values else object.__delattr__(part, name)


@contextmanager
def weights_replaced(layer: Layer, replacement: Callable[[Variable], Any]) -> Iterator[None]:
    """In this context, the layer's attributes hold `replacement(weight)` in place of each weight of its own.

    Weights in lists, dicts and `tf.Module`s of the layer are replaced too; inner layers keep their weights.
    """
    replacer = _WeightReplacer(layer, replacement)
    try:
        replacer.visit(layer)
        yield
    finally:
        replacer.restore()


class _WeightReplacer:
    """Replaces the own weights of a layer in its attributes, and remembers the attributes' values to restore them."""

    def __init__(self, layer: Layer, replacement: Callable[[Variable], Any]) -> None:
        self._own = {variable_key(weight) for weight in own_weights_of(layer)}
        self._replacement = replacement
        self._before: list[tuple[Any, str, Any]] = []

    def visit(self, holder: object) -> None:
        """Replace the weights in the attributes of a layer or module."""
        for name, value in list(vars(holder).items()):
            new = value if name.startswith(_KERAS_OWN) else self._replaced(value)
            if new is not value:
                self._before.append((holder, name, value))
                # Keras' own `__setattr__` would change the list of the layer's weights.
                object.__setattr__(holder, name, new)

    def restore(self) -> None:
        """Give every attribute its value back."""
        for holder, name, value in self._before:
            object.__setattr__(holder, name, value)

    def _replaced(self, value: object) -> Any:
        """The value with its weights replaced; the same object where it has none."""
        if isinstance(value, tf.Variable):
            return self._replacement(value) if variable_key(value) in self._own else value
        if isinstance(value, list | tuple):
            parts = [self._replaced(part) for part in value]
            return parts if _differ(parts, value) else value
        if isinstance(value, Mapping):
            named = {key: self._replaced(part) for key, part in value.items()}
            return named if _differ(named.values(), value.values()) else value
        if isinstance(value, tf.Module) and not isinstance(value, keras.layers.Layer):
            self.visit(value)
        return value


def _differ(new: Iterable[object], old: Iterable[object]) -> bool:
    return any(one is not other for one, other in zip(new, old, strict=True))
