"""Custom layers that hold layers, as most people write their blocks: pruned, quantised and trained within."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.errors import ScopeError

pytestmark = pytest.mark.slow

L = keras.layers


@keras.saving.register_keras_serializable("test_blocks")
class Block(L.Layer):
    """A residual block with BatchNormalization."""

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = L.Conv2D(filters, 3, padding="same", use_bias=False, name="conv")
        self.norm = L.BatchNormalization(name="norm")
        self.drop = L.Dropout(0.1, name="drop")

    def call(self, inputs: Any, training: Any = None) -> Any:
        x = self.drop(self.norm(self.conv(inputs), training=training), training=training)
        return keras.activations.relu(x) + inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


@pytest.fixture
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(8, 3, padding="same", name="stem")(inputs)
    x = Block(8, name="block_1")(x)
    x = Block(8, name="block_2")(x)
    model = keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(x)))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 8, 8, 3)).astype(np.float32), rng.normal(size=(32, 3)).astype(np.float32)


def test_what_is_within_a_block_is_pruned_quantised_and_trained(model, data, tmp_path) -> None:
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    pruned, reports = core.prune(model, recipe)
    assert [report.path for report in reports if report.outcome == "pruned"] == [
        "stem", "block_1_conv", "block_2_conv", "head",
    ]  # fmt: skip
    pruned.fit(*data, verbose=0, callbacks=core.pruning_callbacks())
    core.save_model(pruned, tmp_path / "pruned.h5")
    stripped = core.strip(core.load_model(tmp_path / "pruned.h5"))
    quantized, _ = core.quantize(stripped, recipe, data[0])
    before = [norm.moving_mean.numpy() for norm in _norms(quantized)]
    quantized.fit(*data, verbose=0)
    assert all((mean != norm.moving_mean.numpy()).any() for mean, norm in zip(before, _norms(quantized), strict=True))
    file = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(file)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0)
    assert core.assert_sparsity(quantized, recipe).keys() == {"stem", "block_1_conv", "block_2_conv", "head"}
    assert core.agreement(quantized, file, data[0])["sqnr_db"] >= 20.0


def _norms(model: keras.Model) -> list[Any]:
    inner = [getattr(layer, "layer", layer) for layer in model.layers]
    return [layer for layer in inner if isinstance(layer, L.BatchNormalization)]


def test_a_scope_names_what_is_within(model) -> None:
    recipe = core.recipes.decode("sparse50")
    for names, fits in ((("block_1_conv",), True), (("block_1",), False)):
        sparsity = recipe.sparsity.model_copy(
            update={"scope": recipe.sparsity.scope.model_copy(update={"include": names})}
        )
        scoped = recipe.model_copy(update={"sparsity": sparsity})
        if fits:
            _, reports = core.prune(model, scoped)
            assert [report.path for report in reports if report.outcome == "pruned"] == list(names)
        else:
            with pytest.raises(ScopeError):
                core.prune(model, scoped)
