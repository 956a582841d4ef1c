"""Batches in the rank and size that a model requires, and the state that recurrent layers keep between batches.

A model with `batch_input_shape` or `Input(batch_size=...)` takes batches of that size only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, Layer
from tfmot_ops.core.keras.values import value_of


def fixed_batch_size(shapes: Sequence[Sequence[int | None]]) -> int | None:
    """The batch size that input shapes [batch, ...] fix; None if every input takes any number of samples."""
    return next((int(shape[0]) for shape in shapes if len(shape) and shape[0] is not None), None)


def repeat_to_size(part: Array, size: int | None) -> Array:
    """Samples [n, ...], n >= 1, repeated in order up to a batch [size, ...]; unchanged for None."""
    return part if size is None or len(part) == size else np.asarray(part)[np.arange(size) % len(part)]


def match_rank_shape(given: Sequence[int], wanted: Sequence[int | None]) -> list[int]:
    """The shape [N, ...] with a last axis of size 1 added or dropped to match the model's input, as Keras' `fit` does.

    Args:
        given: shape of an array.
        wanted: shape of the model's input.
    """
    given = list(given)
    if len(given) == len(wanted) - 1 and wanted[-1] == 1:
        return [*given, 1]
    if len(given) == len(wanted) + 1 and given[-1] == 1:
        return given[:-1]
    return given


def match_rank(array: Array, wanted: Sequence[int | None]) -> Array:
    """The array [N, ...] with the shape of `match_rank_shape`."""
    shape = match_rank_shape(array.shape, wanted)
    return array if len(shape) == array.ndim else array.reshape(shape)


def stateful_layers(layer: Layer) -> list[Any]:
    """The recurrent layers in a layer or model that keep their state from batch to batch (`stateful=True`)."""
    return [
        part
        for part in private.layers_within(layer)
        if isinstance(part, keras.layers.RNN) and getattr(part, "stateful", False)
    ]


@contextmanager
def with_zero_state(layer: Layer) -> Iterator[None]:
    """In this context, a layer that is called or traced starts from the state 0, and does not change its own state."""
    parts = stateful_layers(layer)
    try:
        for part in parts:
            part.stateful = False
        yield
    finally:
        for part in parts:
            part.stateful = True


@contextmanager
def preserved_state(layers: Sequence[Any]) -> Iterator[None]:
    """In this context, recurrent layers may be run and reset; afterwards they have the state that they had before."""
    states = [(state, value_of(state)) for layer in layers for state in _states(layer)]
    try:
        yield
    finally:
        for state, value in states:
            state.assign(value)


def _states(layer: Any) -> list[Any]:
    return [state for state in tf.nest.flatten(layer.states) if state is not None]
