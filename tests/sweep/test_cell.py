"""A cell of the matrix says so when a file is wrong, and goes through the chain of every kind of recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Stage, Status
from tfmot_ops.core import keras
from tfmot_ops.sweep.run import check as compat
from tfmot_ops.sweep.run.error_classes import classify

pytestmark = pytest.mark.slow

L = keras.layers
QAT = core.recipes.decode("sparse50_wi8_ai8")


@dataclass(frozen=True)
class Tiny:
    """A net of a few layers, with what `check_architecture` asks for."""

    name: str = "tiny"
    input_shape: tuple[int, ...] = (8, 8, 3)
    pixel_range: tuple[float, float] = (-1.0, 1.0)

    def build(self, *, seed: int = 0) -> Any:
        keras.utils.set_random_seed(seed)
        inputs = L.Input(self.input_shape)
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3)(inputs)))
        return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def _spoil(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    predict = compat.predict
    monkeypatch.setattr(compat, "predict", lambda data, x: spoil(predict(data, x)))


@pytest.mark.parametrize("against_ptq", [True, False])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda answers: 100.0 * np.random.default_rng(0).normal(size=answers.shape), "differ from those of its model"),
        (lambda answers: np.full_like(answers, np.nan), "NaN or infinity"),
    ],
    ids=["noise", "nan"],
)
def test_wrong_answers_are_a_disagreement(monkeypatch, spoil, said, against_ptq):
    _spoil(monkeypatch, spoil)
    result = core.check_architecture(Tiny(), QAT, against_ptq=against_ptq)
    assert (result.status, result.failed_stage, classify(result)) == (Status.FAILED, Stage.AGREE, "disagreement")
    assert said in result.message


def test_a_file_far_behind_ptq_is_a_disagreement(monkeypatch):
    """Noise as strong as a sixth of the answers: 8 dB, which is right for some nets, but here PTQ has 30."""
    calls = []

    def spoil(answers: Any) -> Any:
        calls.append(answers)
        # The first file is PTQ's.
        noise = np.random.default_rng(0).normal(size=answers.shape) * np.std(answers) * 0.4
        return answers if len(calls) == 1 else answers + noise

    _spoil(monkeypatch, spoil)
    result = core.check_architecture(Tiny(), QAT)
    assert (result.failed_stage, classify(result)) == (Stage.AGREE, "disagreement")
    assert result.metrics["sqnr_db"] > 0.0


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("sparse50_wi8_ai8", 1.0),
        ("sparse50_wi8_ai8_ptq", 1.0),
        ("wi8_ai8_ptq", 1.0),
        ("wi8_afp32", 0.0),
        ("wi8_ai16", 0.0),
        ("wi16f", 0.0),
        ("sparse50", 0.0),
    ],
)
def test_every_kind_of_recipe_passes(name, share):
    entered = []
    result = core.check_architecture(Tiny(), core.recipes.decode(name), on_stage=entered.append)
    assert result.status is Status.OK, f"{result.failed_stage}: {result.message}"
    assert result.metrics["int8_mac_fraction"] == share
    assert ({Stage.QUANTIZE, Stage.TRAIN, Stage.RELOAD} <= set(entered)) == (name == QAT.name)
    assert ("sparsity" in result.metrics) == name.startswith("sparse50")


def test_inputs_and_outputs_have_the_type_of_the_activations(monkeypatch):
    profile = compat.profile_tflite
    monkeypatch.setattr(compat, "profile_tflite", lambda data: replace(profile(data), output_dtypes=("float32",)))
    result = core.check_architecture(Tiny(), QAT, against_ptq=False)
    assert (result.error_type, result.failed_stage) == ("CompatError", Stage.EXPORT)
    assert "outputs float32" in result.message
