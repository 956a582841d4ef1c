"""Sensitivity of layers: the layer that was made coarse is found, and keeping it in float brings the accuracy back."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Keep, Method, Outcome, Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.measure.sensitivity import LayerSensitivity, choose
from tfmot_ops.errors import RecipeError

L = keras.layers
X = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
QAT = core.recipes.decode("wi8_ai8")
#: The layers on both sides of the value whose range is too wide.
BEFORE, BEHIND = ("first", "first_bn", "first_relu"), ("second", "second_bn", "second_relu")


@pytest.fixture(scope="module")
def model() -> Any:
    """A net in which one channel behind `first` is 300 times as large as the others, and divided by 300 in `second`."""
    set_seed(0)
    x = inputs = L.Input((8, 8, 3))
    for name in ("first", "second", "last"):
        x = L.Conv2D(8, 3, padding="same", name=name)(x)
        x = L.ReLU(name=f"{name}_relu")(L.BatchNormalization(name=f"{name}_bn")(x))
    x = L.Add(name="sum")([x, L.Conv2D(8, 1, name="side")(inputs)])
    made = keras.Model(inputs, L.Dense(4, name="scores")(L.GlobalAveragePooling2D()(x)))
    gamma, *others = made.get_layer("first_bn").get_weights()
    kernel, bias = made.get_layer("second").get_weights()
    gamma[0], kernel[:, :, 0] = 300.0 * gamma[0], kernel[:, :, 0] / 300.0
    made.get_layer("first_bn").set_weights([gamma, *others])
    made.get_layer("second").set_weights([kernel, bias])
    return made


def keeping(budget: float, method: Method = Method.QAT) -> Recipe:
    quantization = QAT.quantization.model_copy(update={"keep": Keep(budget=budget, samples=16), "method": method})
    return QAT.model_copy(update={"quantization": quantization})


def test_the_layers_on_both_sides_of_the_coarse_value_are_the_most_sensitive(model: Any) -> None:
    rows = core.sensitivity(model, QAT, X, samples=16)
    before, behind = (next(row for row in rows if row.paths == paths) for paths in (BEFORE, BEHIND))
    others = [row.alone_db for row in rows if row not in (before, behind)]
    assert before.result_db < min(others) - 6.0  # few levels for all channels but one
    assert behind.alone_db < min(others) - 6.0  # a small part of each kernel reads the large channel
    assert before.readers == (rows.index(behind),)
    assert {path for row in rows for path in row.paths} == {
        layer.name for layer in model.layers if not isinstance(layer, L.InputLayer)
    }
    weights = {"first": 216, "second": 576, "last": 576, "side": 24, "scores": 32}
    assert {row.paths[0]: row.weights for row in rows if row.weights} == weights
    macs = {name: count * (1 if name == "scores" else 64) for name, count in weights.items()}
    assert {row.paths[0]: row.macs for row in rows if row.weights} == macs
    table = list(csv.DictReader(core.sensitivity_csv(rows).splitlines()))
    assert {row["paths"] for row in table[:2]} == {" ".join(BEFORE), " ".join(BEHIND)}
    assert [float(row["alone_db"]) for row in table] == sorted(float(row["alone_db"]) for row in table)


@pytest.mark.slow
def test_the_noise_of_the_groups_adds_up_to_that_of_the_model(model: Any) -> None:
    plain = keras.models.clone_model(model)  # other weights, without the coarse value
    rows = core.sensitivity(plain, QAT, X, samples=64)
    quantized, _ = core.quantize(plain, QAT, X)
    whole = core.sqnr_db(core.predict(plain, X), core.predict(quantized, X))
    # Within 2 dB only: roundings one behind the other are not quite independent, so their powers do not quite add up.
    assert -10.0 * np.log10(sum(10.0 ** (-row.alone_db / 10.0) for row in rows)) == pytest.approx(whole, abs=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", Method)
def test_keeping_both_sides_of_the_coarse_value_in_float_brings_the_outputs_back(model: Any, method: Method) -> None:
    recipe, _ = core.keep_sensitive(model, keeping(0.6, method), X)
    assert set(recipe.quantization.scope.exclude) >= {*BEFORE, *BEHIND}
    found = {}
    for name, each in {"int8": QAT, "kept": recipe}.items():
        same = each.model_copy(update={"quantization": each.quantization.model_copy(update={"method": method})})
        source, reports = core.quantize(model, same, X) if method is Method.QAT else (model, [])
        file = core.export_tflite(source, same, X)
        found[name] = core.sqnr_db(core.predict(model, X), core.predict(file, X)), core.profile_tflite(file)
        assert {row.path for row in reports if row.outcome is Outcome.KEPT_FLOAT} <= set(
            each.quantization.scope.exclude
        )
    assert found["kept"][0] > found["int8"][0] + 12.0
    macs = {"first": 64 * 216, "second": 64 * 576, "last": 64 * 576, "side": 64 * 24, "scores": 32}
    kept = sum(count for name, count in macs.items() if name in recipe.quantization.scope.exclude)
    assert found["int8"][1].int8_mac_fraction == 1.0
    assert found["kept"][1].int8_mac_fraction == pytest.approx(1.0 - kept / sum(macs.values()))


def _row(name: str, weights: int, alone_db: float, result_db: float, *readers: int, macs: int = 0) -> LayerSensitivity:
    return LayerSensitivity((name,), weights, macs, alone_db, result_db, 40.0, readers)


def test_a_budget_is_for_what_takes_most_noise_away() -> None:
    weights = [_row("a", 800, 20.0, 60.0, 1), _row("b", 100, 21.0, 60.0, 2), _row("c", 50, 60.0, 60.0, -1)]
    assert choose(weights, 0.2) == {1}
    assert choose(weights, 0.9) == {0}
    assert choose(weights, 0.95) == {0, 1}
    assert choose(weights, 0.04) == set()
    early = [_row("a", 10, 20.0, 60.0, 1, macs=900), _row("b", 990, 22.0, 60.0, -1, macs=100)]
    assert choose(early, 0.5) == set()  # few weights, but most of the multiplications; and the other way round
    assert choose(early, 0.95) == {0}


def test_the_noise_of_a_value_goes_only_if_all_its_readers_are_in_float() -> None:
    value = [_row("a", 100, 20.0, 20.01, 1, 2), _row("b", 100, 60.0, 61.0, 2), _row("c", 100, 60.0, 61.0, -1)]
    assert choose(value, 0.7) == set()
    assert choose(value, 1.0) == {0, 1, 2}


def test_a_name_with_keep_and_a_recipe_whose_layers_are_not_chosen(model: Any) -> None:
    recipe, ptq = (core.recipes.decode(name) for name in ("wi8_ai8_keep10", "wi8_ai8_keep10_ptq"))
    assert recipe.quantization.keep == Keep(budget=0.1)
    for call in (lambda: core.quantize(model, recipe, X), lambda: core.export_tflite(model, ptq, X)):
        with pytest.raises(RecipeError, match="keep_sensitive"):
            call()
    with pytest.raises(RecipeError, match=r"without it"):
        core.keep_sensitive(model, QAT, X)
    with pytest.raises(RecipeError, match="keep is for int8"):
        core.recipes.decode("wi8_ai16_keep10")
