"""Functions that diverge at 0: their operand is not rounded, so that a small constant before them stays nonzero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import LayerReport, Method, Outcome
from tfmot_ops.core import keras
from tfmot_ops.errors import ExportError

pytestmark = pytest.mark.slow

L = keras.layers
_X = np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype(np.float32)


def _conv(tensor: Any) -> Any:
    return L.Conv2D(4, 1)(tensor)


def _sum(tensor: Any) -> Any:
    return tf.reduce_sum(tensor, -1, keepdims=True)


def _linear_attention(tensor: Any) -> Any:
    queries = tf.nn.relu(_conv(tensor))
    return queries * _conv(tensor) / (_sum(queries) + 1e-7)


def _over_norm(tensor: Any) -> Any:
    values = _conv(tensor)
    return values / tf.maximum(tf.norm(values, axis=-1, keepdims=True), 1e-6)


def _over_root(tensor: Any) -> Any:
    values = _conv(tensor)
    return values / tf.sqrt(_sum(tf.square(values)) + 1e-6)


def _by_hand(tensor: Any) -> Any:
    values = _conv(tensor)
    centred = values - tf.reduce_mean(values, -1, keepdims=True)
    return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + 1e-5)


def _softmax(tensor: Any) -> Any:
    values = tf.exp(_conv(tensor))
    return values / _sum(values)


#: Name -> (what stands between two convolutions, least dB of the quantised model to the float one).
CASES: dict[str, tuple[Callable[[Any], Any], float]] = {
    "log of a maximum": (lambda x: tf.math.log(tf.math.maximum(_conv(x), 1e-5)), 18.0),
    "log of a sum": (lambda x: tf.math.log(tf.nn.relu(_conv(x)) + 1e-3), 25.0),
    "log of a clipped square": (lambda x: tf.math.log(tf.clip_by_value(tf.square(_conv(x)), 1e-4, 1e4)), 18.0),
    "log1p": (lambda x: tf.math.log1p(tf.nn.relu(_conv(x))), 30.0),
    "linear attention": (_linear_attention, 15.0),
    "divide_no_nan": (lambda x: tf.math.divide_no_nan(_conv(x), _sum(tf.abs(_conv(x)))), 20.0),
    "division by a norm": (_over_norm, 20.0),
    "division by a root": (_over_root, 25.0),
    "rsqrt": (_by_hand, 22.0),
    "negative power": (lambda x: _conv(x) * tf.pow(tf.square(_conv(x)) + 1e-2, -0.5), 15.0),
    "reciprocal": (lambda x: _conv(x) * tf.math.reciprocal(tf.square(_conv(x)) + 1e-1), 15.0),
    "constant over a tensor": (lambda x: 1.0 / (tf.nn.relu(_conv(x)) + 1e-1), 20.0),
    "l2_normalize": (lambda x: tf.math.l2_normalize(_conv(x), axis=-1), 25.0),
    "softmax by hand": (_softmax, 30.0),
}


def _model(case: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, L.Conv2D(2, 1)(CASES[case][0](inputs)))


@pytest.mark.parametrize("case", CASES)
def test_a_small_constant_before_a_pole_stays_one(case: str) -> None:
    model, recipe = _model(case), core.recipes.decode("wi8_ai8")
    quantized, reports = core.quantize(model, recipe, _X)
    assert core.agreement(model, quantized, _X)["sqnr_db"] >= CASES[case][1]
    quantized.compile(keras.optimizers.SGD(1e-4), "mse")
    (loss,) = quantized.fit(_X, core.predict(model, _X), verbose=0).history["loss"]
    assert np.isfinite(loss)
    file = core.export_tflite(quantized, recipe)
    assert core.agreement(quantized, file, _X).get("sqnr_db", np.inf) >= 35.0
    profile = core.profile_tflite(file)
    assert profile.int8_mac_fraction == 1.0
    core.require_recipe(profile, recipe, reports)


@pytest.mark.parametrize("recipe", ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq"])
@pytest.mark.parametrize("case", CASES)
def test_after_training_too(case: str, recipe: str) -> None:
    model, decoded = _model(case), core.recipes.decode(recipe)
    file = core.export_tflite(model, decoded, _X)
    assert core.agreement(model, file, _X)["sqnr_db"] >= CASES[case][1]
    profile = core.profile_tflite(file)
    assert profile.int8_mac_fraction == 1.0
    core.require_recipe(profile, decoded, core.report_file(model, file))


def test_the_report_names_the_constant_and_why() -> None:
    _, reports = core.quantize(_model("log of a maximum"), core.recipes.decode("wi8_ai8"), _X)
    kept = {row.path: row.reason for row in reports if row.outcome == Outcome.KEPT_FLOAT}
    (floor,) = (reason for path, reason in kept.items() if "maximum" in path)
    assert "a function that diverges at 0" in floor
    assert len(kept) == 2


def test_a_layer_normalisation_stays_int8() -> None:
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, L.Conv2D(2, 1)(L.LayerNormalization()(_conv(inputs))))
    recipe = core.recipes.decode("wi8_ai8")
    quantized, reports = core.quantize(model, recipe, _X)
    assert not [row for row in reports if row.outcome == Outcome.KEPT_FLOAT]
    assert core.profile_tflite(core.export_tflite(quantized, recipe)).float_ops == 0


def _profile(model: keras.Model, name: str, x: Any) -> tuple[Any, Any]:
    recipe = core.recipes.decode(name)
    if recipe.quantization is not None and recipe.quantization.method is Method.QAT:
        final, reports = core.quantize(model, recipe, x)
        return core.profile_tflite(core.export_tflite(final, recipe, x)), reports
    file = core.export_tflite(model, recipe, x)
    return core.profile_tflite(file), core.report_file(model, file)


@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq", "wi8_ai16_ptq"])
def test_a_file_without_int8_is_not_what_the_recipe_says(recipe: str) -> None:
    model = _model("log1p")
    _, reports = _profile(model, recipe, _X)
    in_float, _ = _profile(model, "wi8_afp32", _X)
    with pytest.raises(ExportError, match=r"required: +inputs and outputs of int"):
        core.require_recipe(in_float, core.recipes.decode(recipe), reports)


def test_a_file_whose_layers_are_all_float_is_refused_unless_they_are_meant_to_be() -> None:
    model, recipe = _model("log1p"), core.recipes.decode("wi8_ai8_ptq")
    scope = recipe.quantization.scope.model_copy(update={"exclude": ("class:Conv2D",)})
    excluded = recipe.model_copy(update={"quantization": recipe.quantization.model_copy(update={"scope": scope})})
    file = core.export_tflite(model, excluded, _X)
    profile, reports = core.profile_tflite(file), core.report_file(model, file)
    assert profile.int8_mac_fraction == 0.0
    core.require_recipe(profile, excluded, reports)
    with pytest.raises(ExportError, match=r"0 of .* multiplications in int8") as caught:
        core.require_recipe(profile, recipe, reports)
    assert caught.value.exit_code == 4
    qat = core.recipes.decode("wi8_ai8")
    rows = [LayerReport(path="a", class_name="Conv2D", outcome=Outcome.QUANTIZED, reason="kernel int8")]
    with pytest.raises(ExportError, match="in int8 in a"):
        core.require_recipe(profile, qat, rows)


@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq"])
@pytest.mark.parametrize("kind", ["no kernel", "recurrent"])
def test_a_model_with_nothing_to_compute_in_int8_passes(kind: str, recipe: str) -> None:
    inputs = keras.Input((8, 4))
    layer = L.LSTM(4) if kind == "recurrent" else L.ReLU()
    model = keras.Model(inputs, layer(inputs))
    profile, reports = _profile(model, recipe, _X[:, 0])
    core.require_recipe(profile, core.recipes.decode(recipe), reports)
