"""Attention and its projections: exact after normalisation, int8 in the file, float and reported where masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras

pytestmark = pytest.mark.slow

L = keras.layers
QAT = core.recipes.decode("wi8_ai8")


def _data(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16, *shape)).astype(np.float32)


def _block(x: Any, other: Any = None, **options: Any) -> Any:
    """A transformer's block, as people write it."""
    y = L.MultiHeadAttention(2, 4, dropout=0.1, name="heads", **options)(x, x if other is None else other)
    x = L.LayerNormalization()(L.Add()([x, y]))
    return L.LayerNormalization()(x + L.Dense(8)(L.Dense(16, activation="gelu")(x)))


def _self_attention(steps: int | None = 10, **options: Any) -> Any:
    inputs = keras.Input((steps, 8))
    x = _block(L.Dense(8)(inputs), **options)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


def _cross_attention() -> Any:
    inputs = [keras.Input((10, 8)), keras.Input((6, 8))]
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(_block(inputs[0], L.Dense(8)(inputs[1])))))


def _shared() -> Any:
    inputs = keras.Input((10, 8))
    heads = L.MultiHeadAttention(2, 4, output_shape=8)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(heads(heads(inputs, inputs), inputs, inputs))))


def _dot_product() -> Any:
    inputs = keras.Input((10, 8))
    query, value, key = (L.Dense(6)(inputs) for _ in range(3))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Attention(dropout=0.1)([query, value, key]))))


def _einsum(equation: str, shape: Any, bias: str | None, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        inputs = keras.Input((10, 8))
        x = L.EinsumDense(equation, shape, bias_axes=bias, name="einsum", **options)(L.Dense(8)(inputs))
        return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))

    return make


_INT8: dict[str, Callable[[], Any]] = {
    "transformer": _self_attention,
    "no bias, other sizes": lambda: _self_attention(use_bias=False, value_dim=6),
    "any number of steps": lambda: _self_attention(None),
    "cross attention": _cross_attention,
    "shared": _shared,
    "dot product": _dot_product,
    "einsum": _einsum("abc,cd->abd", (None, 4), "d", activation="relu"),
    "einsum by dots": _einsum("...x,xy->...y", (5,), "y"),
    "einsum of two axes": _einsum("abc,bcd->ad", 5, "d"),
    "einsum to two axes": _einsum("abc,cde->abde", (None, 2, 3), "de"),
}


@pytest.mark.parametrize("make", _INT8.values(), ids=list(_INT8))
def test_fully_int8(make: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    model = make()
    rng = np.random.default_rng(1)
    model.set_weights([weight + 0.1 * rng.normal(size=weight.shape) for weight in model.get_weights()])
    inputs = [_data(*(size or 10 for size in tensor.shape[1:])) for tensor in model.inputs]
    x = inputs if len(inputs) > 1 else inputs[0]
    before, after = model.predict(x, verbose=0), core.normalize(model).predict(x, verbose=0)
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    quantized, reports = core.quantize(core.strip(core.prune(model, recipe)[0]), recipe, x)
    assert not [report for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    quantized.compile("sgd", "mse")
    quantized.train_on_batch(x, np.zeros((16, 3), np.float32))
    data = core.export_tflite(quantized, recipe, x)
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0), profile.op_counts
    assert core.agreement(quantized, data, x).get("sqnr_db", np.inf) >= 20.0


def _causal() -> Any:
    inputs = keras.Input((10, 8))
    x = L.MultiHeadAttention(2, 4)(inputs, inputs, use_causal_mask=True)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


def _constant_mask() -> Any:
    inputs = keras.Input((10, 8))
    x = L.MultiHeadAttention(2, 4)(inputs, inputs, attention_mask=np.tril(np.ones((1, 10, 10), bool)))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


def _masked_before() -> Any:
    inputs = keras.Input((10, 8))
    x = L.Dropout(0.1)(L.Masking()(inputs))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(L.MultiHeadAttention(2, 4)(x, x))))


def _with_scores() -> Any:
    inputs = keras.Input((10, 8))
    x, scores = L.MultiHeadAttention(2, 4)(inputs, inputs, return_attention_scores=True)
    return keras.Model(inputs, L.Dense(3)(L.Concatenate()([L.Flatten()(x), L.Flatten()(scores)])))


@pytest.mark.parametrize("make", [_causal, _masked_before], ids=["causal", "masking"])
def test_masked_attention_is_int8_and_computes_the_same(make: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    model, x = make(), _data(10, 8)
    x[:, 5:] = 0.0
    before, after = model.predict(x, verbose=0), core.normalize(model).predict(x, verbose=0)
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    quantized, reports = core.quantize(model, QAT, x)
    kept = {report.class_name for report in reports if report.outcome is Outcome.KEPT_FLOAT}
    assert kept <= {"Masking"}
    data = core.export_tflite(quantized, QAT)
    assert core.profile_tflite(data).int8_mac_fraction == 1.0
    assert core.sqnr_db(before, core.predict(data, x)) >= 20.0


_FLOAT = [_constant_mask, _with_scores, _einsum("abc,bd->adc", (4, 8), None)]


@pytest.mark.parametrize("make", _FLOAT, ids=["constant mask", "scores", "einsum"])
def test_what_is_not_rewritten_computes_the_same_and_is_reported(make: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    model, x = make(), _data(10, 8)
    x[:, 5:] = 0.0
    before, after = model.predict(x, verbose=0), core.normalize(model).predict(x, verbose=0)
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    _, reports = core.quantize(model, QAT)
    kept = [report.class_name for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    assert set(kept) & {"MultiHeadAttention", "Attention", "EinsumDense"}
