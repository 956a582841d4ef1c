"""A small classifier, its samples and its training, for the tests of the parts of a training plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.training.loop import fit

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.random((48, 6), dtype=np.float32)
Y = np.arange(48) % 3
LOSS = "sparse_categorical_crossentropy"


def small(seed: int = 0, optimizer: Any = "adam") -> Any:
    """A classifier of [N, 6] into three classes."""
    set_seed(seed)
    layers = [L.Dense(8, activation="relu", name="hidden"), L.Dense(3, activation="softmax", name="out")]
    model = keras.Sequential([L.Input((6,)), *layers])
    model.compile(optimizer, LOSS, ["accuracy"])
    return model


def trained(model: Any, epochs: int = 1, **more: Any) -> list[np.ndarray]:
    """The weights after a training."""
    fit(model, X, Y, (X, Y), **{"epochs": epochs, "batch_size": 16, "seed": 1} | more)
    return model.get_weights()


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class Stop(Exception):  # noqa: N818 - ends a training as a kill would
    pass
