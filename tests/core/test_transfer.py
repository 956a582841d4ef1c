"""A pretrained part that is told `training=False`, as transfer learning does: it keeps its statistics to the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras

pytestmark = pytest.mark.slow

L = keras.layers


def _base() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = L.BatchNormalization(name="base_norm")(L.Conv2D(4, 3, name="base_conv")(inputs))
    return keras.Model(inputs, L.ReLU()(x), name="base")


@pytest.mark.parametrize("by_place", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_part_told_of_inference_stays_in_inference(by_place, frozen) -> None:
    keras.utils.set_random_seed(0)
    base = _base()
    base.trainable = not frozen
    inputs = keras.Input((8, 8, 3))
    x = base(inputs, False) if by_place else base(inputs, training=False)
    x = L.BatchNormalization(name="head_norm")(L.Conv2D(4, 3, name="head_conv")(x))
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(2.0, 3.0, (16, 8, 8, 3)).astype(np.float32), rng.normal(size=(16, 2)).astype(np.float32)
    quantized, _ = core.quantize(model, core.recipes.decode("wi8_ai8"), x)
    for trained in (core.normalize(model), quantized):
        before = {name: _layer(trained, name).get_weights() for name in ("base_norm", "base_conv", "head_norm")}
        trained.fit(x, y, verbose=0)
        changed = {
            name: [
                bool((one != other).any())
                for one, other in zip(values, _layer(trained, name).get_weights(), strict=True)
            ]
            for name, values in before.items()
        }
        assert changed["base_norm"] == [not frozen, not frozen, False, False]
        assert changed["base_conv"] == [not frozen, not frozen]
        assert changed["head_norm"] == [True] * 4


def _layer(model: keras.Model, name: str) -> Any:
    inner = (getattr(layer, "layer", layer) for layer in model.layers)
    return next(layer for layer in inner if layer.name == name)
