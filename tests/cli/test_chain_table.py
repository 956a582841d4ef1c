"""What stands below the table of a chain, from reports of real models."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ops import core
from tfmot_ops.cli.chain_table import summary_lines, summary_notes
from tfmot_ops.contract import Recipe, Status, StepError, StepResult
from tfmot_ops.core import keras

L = keras.layers


def quantized(layers: list[Any], recipe: Recipe) -> StepResult:
    """The result of a quantize step, with what the core reports of the model."""
    model = keras.Sequential([L.Input((12, 4)), *layers])
    x = np.random.default_rng(0).normal(size=(16, 12, 4)).astype(np.float32)
    if recipe.quantization.method == "qat":
        _, reports = core.quantize(model, recipe, x)
    else:
        reports = core.report_file(model, core.export_tflite(model, recipe, x))
    parameters = {"recipe": recipe.model_dump(mode="json")}
    return StepResult(
        step_id="quantize", kind="quantize", spec_sha256="0", status=Status.OK, layers=reports, parameters=parameters
    )


def test_layers_that_stayed_in_float_are_named_with_the_reason():
    layers = [L.GRU(4, return_sequences=True, recurrent_dropout=0.1, name=name) for name in ("first", "second")]
    (note,) = summary_notes([quantized(layers, core.recipes.decode("wi8_ai8"))])
    assert note.startswith(
        "stayed in float: first (GRU), second (GRU): GRU stays in float: int8 needs a known number of"
    )


def test_a_chain_that_measured_nothing_names_no_metric():
    error = StepError(type="SpecError", message="no", exit_code=2)
    failed = StepResult(step_id="train", kind="train", spec_sha256="0", status=Status.FAILED, error=error)
    title = next(line for line in summary_lines([failed]) if line.startswith("step"))
    assert "metric" in title
    assert "accuracy" not in title


def test_many_layers_are_counted():
    layers = [L.GRU(4, return_sequences=True, recurrent_dropout=0.1, name=f"part_{index}") for index in range(7)]
    (note,) = summary_notes([quantized(layers, core.recipes.decode("wi8_ai8"))])
    assert "part_4 (GRU) and 2 more: " in note
    assert "part_5" not in note


def test_a_model_that_is_int8_throughout_has_no_note():
    layers = [L.Conv1D(4, 3, activation="relu"), L.GlobalAveragePooling1D(), L.Dropout(0.1), L.Dense(3)]
    for name in ("wi8_ai8", "wi8_ai8_ptq"):
        assert summary_notes([quantized(layers, core.recipes.decode(name))]) == []


def test_a_recipe_of_float_activations_leaves_float_without_a_note():
    result = quantized([L.LSTM(4), L.Dense(3)], core.recipes.decode("wi8_afp32_ptq"))
    assert any(layer.outcome == "kept_float" for layer in result.layers)
    assert summary_notes([result]) == []
