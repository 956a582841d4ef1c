"""Losses and metrics that a layer's `call` adds by itself (`self.add_loss(...)`), where only its result is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tfmot_ops.core.keras.types import Layer

_METHODS = ("add_loss", "add_metric")


@contextmanager
def without_added_losses(layers: Iterable[Layer]) -> Iterator[list[str]]:
    """In this context, `add_loss` and `add_metric` of these layers do nothing.

    Keras refuses them outside of a layer's own `__call__`, as when an operation is emitted for a file.

    Returns:
        The names of the methods that were called, filled while the context runs.
    """
    called: list[str] = []
    changed: list[Layer] = []
    try:
        for layer in dict.fromkeys(layers):
            changed.append(layer)
            for name in _METHODS:
                # `object.__setattr__`, as Keras' own would track the function as a part of the layer.
                object.__setattr__(layer, name, lambda *_args, _name=name, **_kwargs: called.append(_name))
        yield called
    finally:
        for layer in changed:
            for name in _METHODS:
                vars(layer).pop(name, None)
