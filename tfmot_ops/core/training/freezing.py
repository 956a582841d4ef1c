"""Freezes layers during a training. Pruning may still set weights of frozen layers to zero."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from tfmot_ops.contract import Scope
from tfmot_ops.core.graph.ir import layer_paths
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.recipes.scope import select


def names_to_freeze(model: keras.Model, scope: Scope | None) -> dict[str, bool]:
    """Path of each layer of a float model, pruned or not -> whether a scope names it.

    Raises:
        ScopeError: a selector matches no layer.
    """
    # A wrapper has a name and a class of its own, and a selector is about the layer within.
    known = {path: type(inner_layer(layer)).__name__ for path, layer in _paths(model)}
    if scope is None:
        return dict.fromkeys(known, False)
    return {path: bool(chosen) for path, chosen in select(scope, known.items()).items()}


@contextlib.contextmanager
def frozen_layers(model: keras.Model, names: Mapping[str, bool]) -> Iterator[None]:
    """In this context, some layers of `model` are not trainable; afterwards each layer is as trainable as before.

    An optimizer that has made a step knows only the weights that were trainable then. So use one optimizer within the
    context, and another one outside of it.

    Args:
        model: the model from which `names` were made, pruned or quantised since. Quantising may make several layers of
            one: `attention_query` belongs to `attention`.
        names: from `names_to_freeze`.
    """
    layers = [layer for path, layer in _paths(model) if names.get(_owner(path, names), False)]
    before = [(part, part.trainable) for layer in layers for part in private.layers_within(layer)]
    for layer in layers:
        layer.trainable = False
    _refresh_training(model, layers)
    try:
        yield
    finally:
        for part, was_trainable in before:  # an outer layer comes first, and sets those within
            part.trainable = was_trainable
        _refresh_training(model, layers)


def _paths(model: keras.Model) -> Iterator[tuple[str, Layer]]:
    """(path by the names of the layers within wrappers, layer)."""
    for path, layer in layer_paths(model):
        yield "/".join([*path.split("/")[:-1], inner_layer(layer).name]), layer


def _owner(path: str, names: Mapping[str, bool]) -> str:
    """The layer of the float model from which a layer was made: the longest name that its own begins with.

    Nested models are flattened: a layer `inner/conv` becomes `conv`, or `inner_conv` where there are several.
    """
    spelled = {text: name for name in names for text in (name, name.rsplit("/", 1)[-1], name.replace("/", "_"))}
    fitting = [text for text in spelled if path == text or path.startswith(f"{text}_")]
    return spelled[max(fitting, key=len)] if fitting else ""


def _refresh_training(model: keras.Model, layers: list[Layer]) -> None:
    if layers:
        private.refresh_trainable_state(model)
        model.train_function = None  # it was traced for other weights
