"""Layers whose weights a training leaves as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tfmot_ops.contract import Scope
from tfmot_ops.core.graph.ir import layer_paths
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.recipes.scope import select


def layers_to_freeze(model: keras.Model, scope: Scope) -> list[Layer]:
    """The layers that a scope names, wrappers of pruning and quantisation included.

    Raises:
        ScopeError: a selector matches no layer.
    """
    paths = list(layer_paths(model))
    # A wrapper has a name and a class of its own, and a selector is about the layer within.
    known = [("/".join([*path.split("/")[:-1], inner_layer(layer).name]), layer) for path, layer in paths]
    chosen = select(scope, [(path, type(inner_layer(layer)).__name__) for path, layer in known])
    return [layer for path, layer in known if chosen[path]]


@contextlib.contextmanager
def frozen_layers(model: keras.Model, scope: Scope | None) -> Iterator[None]:
    """Train `model` without the layers of a scope for a while, then make them trainable again.

    An optimizer that has made a step knows the weights of that step alone, so each of the two needs its own.
    """
    layers = [layer for layer in layers_to_freeze(model, scope) if layer.trainable] if scope is not None else []
    _set_trainable(model, layers, False)
    try:
        yield
    finally:
        _set_trainable(model, layers, True)


def _set_trainable(model: keras.Model, layers: list[Layer], value: bool) -> None:
    for layer in layers:
        layer.trainable = value
    if layers:
        private.take_trainable_state(model)
        model.train_function = None  # it was traced for other weights
