"""A normalisation folded into a Dense kernel, which has one scale: training rounds the kernel as the file does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core

pytestmark = pytest.mark.slow

K = core.keras
L = K.layers
QAT, SPARSE = core.recipes.decode("wi8_ai8"), core.recipes.decode("sparse50_wi8_ai8")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 16)).astype("float32")
Y = RNG.normal(size=(128, 3)).astype("float32")
#: Scales of the units, up to 33:1.
SPREAD = np.exp(np.random.default_rng(1).uniform(-1.75, 1.75, 32)).astype("float32")


@K.saving.register_keras_serializable("test_dense_fold")
class Scale(L.Layer):
    """A factor and a summand per channel, which normalisation turns into an Affine."""

    def build(self, input_shape):
        self.factor = self.add_weight("factor", (input_shape[-1],), initializer=K.initializers.Constant(SPREAD))

    def call(self, inputs):
        return inputs * self.factor


def _model(after: Callable[[], list[Any]], dense: Any = None) -> Any:
    K.utils.set_random_seed(0)
    first = dense or L.Dense(32, name="first")
    model = K.Sequential([L.Input((16,)), first, *after(), L.Dense(3)])
    kernel, *bias = first.get_weights()
    first.set_weights([kernel * SPREAD, *bias])
    model.compile(K.optimizers.Adam(1e-3), "mse")
    model.fit(X, Y, epochs=3, verbose=0)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            variance = np.var(X @ kernel * SPREAD, axis=0)
            layer.moving_variance.assign(variance)
    return model


def _sqnr(a: Any, b: Any) -> float:
    return core.sqnr_db(core.predict(a, X), core.predict(b, X))


def _negative_and_zero() -> list[Any]:
    gamma = np.where(np.arange(32) % 2, -1.0, 1.0) * (np.arange(32) != 5)
    return [L.BatchNormalization(gamma_initializer=K.initializers.Constant(gamma)), L.ReLU()]


AFTER: dict[str, Callable[[], list[Any]]] = {
    "batch normalisation": lambda: [L.BatchNormalization()],
    "with a ReLU": lambda: [L.BatchNormalization(), L.ReLU(6.0)],
    "without gamma and beta": lambda: [L.BatchNormalization(scale=False, center=False), L.ReLU()],
    "negative and zero gamma": _negative_and_zero,
    "weight of a custom layer": lambda: [Scale(), L.ReLU()],
}


@pytest.mark.parametrize("name", AFTER)
def test_training_rounds_as_the_file_does(name: str) -> None:
    model = _model(AFTER[name])
    quantized, _ = core.quantize(model, QAT, X)
    assert _sqnr(quantized, core.export_tflite(quantized, QAT)) > 45.0
    assert _sqnr(model, quantized) > 30.0
    before = quantized.trainable_variables[0].numpy()
    quantized.fit(X, Y, epochs=2, verbose=0)
    assert not np.array_equal(quantized.trainable_variables[0].numpy(), before)
    assert _sqnr(quantized, core.export_tflite(quantized, QAT)) > 45.0


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model"])
def test_also_after_loading(name: str, tmp_path) -> None:
    quantized, _ = core.quantize(_model(AFTER["with a ReLU"]), QAT, X)
    core.save_model(quantized, tmp_path / name)
    loaded = core.load_model(tmp_path / name)
    np.testing.assert_array_equal(core.predict(loaded, X), core.predict(quantized, X))
    loaded.fit(X, Y, verbose=0)
    assert _sqnr(loaded, core.export_tflite(loaded, QAT)) > 45.0


def test_zeros_stay_and_the_file_agrees() -> None:
    stripped = core.strip(core.prune(_model(AFTER["with a ReLU"]), SPARSE)[0])
    quantized, _ = core.quantize(stripped, SPARSE, X)
    quantized.fit(X, Y, verbose=0)
    core.assert_sparsity(quantized, SPARSE)
    assert _sqnr(quantized, core.export_tflite(quantized, SPARSE)) > 45.0


def test_a_shared_dense_layer_and_one_that_is_read_twice_are_as_before() -> None:
    K.utils.set_random_seed(0)
    i = K.Input((16,))
    shared = L.Dense(16)
    once = L.BatchNormalization()(shared(i))
    twice = shared(once)
    model = K.Model(i, L.Dense(3)(L.Add()([L.BatchNormalization()(twice), twice])))
    quantized, _ = core.quantize(model, QAT, X)
    assert _sqnr(quantized, core.export_tflite(quantized, QAT)) > 25.0
