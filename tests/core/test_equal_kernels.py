"""Kernels that are equal, and weights that are: sparsity is reached, and found in the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Recipe
from tfmot_ops.core import keras
from tfmot_ops.errors import SparsityLostError

pytestmark = pytest.mark.slow

L = keras.layers
_X = np.random.default_rng(0).normal(size=(8, 8, 8, 8)).astype(np.float32)


def _kernel(*shape: int, seed: int = 0) -> Any:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return keras.initializers.Constant(values)


def _chain(*layers: Any) -> keras.Model:
    inputs = tensor = keras.Input((8, 8, 8))
    for layer in layers:
        tensor = L.ReLU()(layer(tensor))
    return keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(tensor)))


def _almost(seed: int) -> Any:
    values = np.random.default_rng(0).normal(size=(3, 3, 8, 8))
    return keras.initializers.Constant(values + np.random.default_rng(seed).normal(size=values.shape) * 1e-7)


CASES: dict[str, tuple[str, Callable[[], keras.Model]]] = {
    "three convolutions": (
        "sparse50_wi8_ai8",
        lambda: _chain(*(L.Conv2D(8, 3, padding="same", kernel_initializer=_kernel(3, 3, 8, 8)) for _ in range(3))),
    ),
    "large convolutions": (
        "sparse50_wi8_ai8",
        lambda: _chain(
            L.Conv2D(64, 3, padding="same", kernel_initializer=_kernel(3, 3, 8, 64)),
            *(L.Conv2D(64, 3, padding="same", kernel_initializer=_kernel(3, 3, 64, 64)) for _ in range(2)),
        ),
    ),
    "two of four": (
        "sparse2of4_wi8_ai8",
        lambda: _chain(*(L.Conv2D(8, 3, padding="same", kernel_initializer=_kernel(3, 3, 8, 8)) for _ in range(2))),
    ),
    "dense": (
        "sparse50_wi8_ai8",
        lambda: _chain(*(L.Dense(8, kernel_initializer=_kernel(8, 8)) for _ in range(3))),
    ),
    "equal after rounding": (
        "sparse50_wi8_ai8",
        lambda: _chain(*(L.Conv2D(8, 3, padding="same", kernel_initializer=_almost(seed)) for seed in range(3))),
    ),
    "all zero": (
        "sparse50_wi8_ai8",
        lambda: _chain(
            *(L.Conv2D(8, 3, padding="same", kernel_initializer="zeros", bias_initializer="ones") for _ in range(2))
        ),
    ),
    "equal beside another": (
        "sparse50_wi8_ai8",
        lambda: _chain(
            *(L.Conv2D(8, 3, padding="same", kernel_initializer=_kernel(3, 3, 8, 8, seed=s)) for s in (0, 1, 0))
        ),
    ),
    "after training": (
        "sparse50_wi8_ai8_ptq",
        lambda: _chain(*(L.Conv2D(8, 3, padding="same", kernel_initializer=_kernel(3, 3, 8, 8)) for _ in range(3))),
    ),
    "in float": (
        "sparse50",
        lambda: _chain(*(L.Conv2D(8, 3, padding="same", kernel_initializer=_kernel(3, 3, 8, 8)) for _ in range(3))),
    ),
}


def _exported(model: keras.Model, recipe: Recipe) -> tuple[keras.Model, bytes]:
    small = core.strip(core.prune(model, recipe)[0])
    is_qat = recipe.quantization is not None and recipe.quantization.method == "qat"
    final = core.quantize(small, recipe, _X)[0] if is_qat else small
    return final, core.export_tflite(final, recipe, _X)


@pytest.mark.parametrize("case", CASES)
def test_equal_kernels_keep_their_sparsity(case: str) -> None:
    keras.utils.set_random_seed(0)
    name, make = CASES[case]
    final, file = _exported(make(), core.recipes.decode(name))
    assert core.profile_tflite(file).weight_sparsity >= 0.45
    assert core.agreement(final, file, _X).get("sqnr_db", np.inf) >= 30.0


def test_depthwise_kernels_named_by_the_scope() -> None:
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    scoped = recipe.sparsity.model_copy(
        update={"scope": recipe.sparsity.scope.model_copy(update={"include": ("class:Depthwise*",)})}
    )
    model = _chain(*(L.DepthwiseConv2D(3, padding="same", depthwise_initializer=_kernel(3, 3, 8, 1)) for _ in range(3)))
    _, file = _exported(model, recipe.model_copy(update={"sparsity": scoped}))
    assert max(core.profile_tflite(file).sparsity.values()) >= 0.45


def test_lost_sparsity_is_still_found() -> None:
    keras.utils.set_random_seed(0)
    recipe = core.recipes.decode("sparse50_wi8_ai8_ptq")
    model = CASES["three convolutions"][1]()
    with pytest.raises(SparsityLostError, match=r"zeros of at least 0\.500"):
        core.export_tflite(model, recipe, _X)


def _signs(frozen: bool) -> keras.Model:  # both kinds of a bank of filters of +1 and -1
    inputs = keras.Input((32, 4))
    values = np.tile(np.where(np.arange(8) % 2, 1.0, -1.0)[:, None, None], (1, 4, 2))
    bank = L.Conv1D(2, 8, use_bias=False, kernel_initializer=keras.initializers.Constant(values), name="bank")
    bank.trainable = not frozen
    return keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling1D()(bank(inputs))))


_SERIES = np.random.default_rng(0).normal(size=(16, 32, 4)).astype(np.float32)


def test_a_frozen_kernel_is_left_alone_and_reported() -> None:
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    model = _signs(frozen=True)
    pruned, reports = core.prune(model, recipe)
    (row,) = (row for row in reports if row.path == "bank")
    assert "frozen" in row.reason
    small = core.strip(pruned)
    np.testing.assert_array_equal(small.get_layer("bank").get_weights()[0], model.get_layer("bank").get_weights()[0])
    assert core.assert_sparsity(small, recipe) == {"head": 0.5}
    file = core.export_tflite(core.quantize(small, recipe, _SERIES)[0], recipe)
    assert core.profile_tflite(file).int8_mac_fraction == 1.0


@pytest.mark.parametrize("end_step", [None, 4])
def test_of_equal_magnitudes_as_many_go_as_the_ratio_says(end_step: int | None) -> None:
    keras.utils.set_random_seed(0)
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    pruned, _ = core.prune(_signs(frozen=False), recipe, end_step)
    # No step moves a weight, so the magnitudes stay equal.
    pruned.compile(keras.optimizers.SGD(0.0), "mse")
    pruned.fit(_SERIES, np.zeros((16, 3)), batch_size=2, verbose=0, callbacks=core.pruning_callbacks())
    small = core.strip(pruned)
    assert core.layer_sparsity(small)["bank"] == 0.5
    core.export_tflite(core.quantize(small, recipe, _SERIES)[0], recipe)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("values", ["equal", "few", "distinct"])
def test_the_masks_are_those_of_tfmot_but_for_ties(values: str, ratio: float) -> None:
    from tfmot_ops.core.pruning.wrappers import keep_mask

    random = np.random.default_rng(0)
    magnitudes = {
        "equal": np.ones((6, 8), np.float32),
        "few": random.integers(0, 3, size=(6, 8)).astype(np.float32),
        "distinct": random.random((6, 8)).astype(np.float32),
    }[values]
    mask = keep_mask(magnitudes, ratio)
    assert int(mask.sum()) == round(48 * (1 - ratio))
    assert magnitudes[mask].min() >= magnitudes[~mask].max()
