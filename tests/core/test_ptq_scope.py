"""PTQ leaves in float what the recipe's scope says, survives recurrent layers, and types the inputs one by one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome, Quantization, Recipe, Scope
from tfmot_ops.core import keras
from tfmot_ops.errors import RecipeError, ScopeError, UnsupportedModelError

pytestmark = pytest.mark.slow

L = keras.layers
X = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    x = L.ReLU(name="relu")(L.BatchNormalization(name="bn")(L.Conv2D(4, 3, name="first")(inputs)))
    x = L.Conv2D(5, 3, name="second", activation="relu")(x)
    return keras.Model(inputs, L.Dense(3, name="head")(L.Flatten(name="flat")(x)))


def ptq(backend: str = "converter", activations: str = "int8", **scope: tuple[str, ...]) -> Recipe:
    quantization = Quantization(method="ptq", backend=backend, activations=activations, scope=Scope(**scope))
    return Recipe(name="ptq", quantization=quantization)


@pytest.mark.parametrize("backend", ["converter", "ai_edge_quantizer"])
@pytest.mark.parametrize(
    ("scope", "floats"),
    [
        ({"exclude": ("head",)}, {"head"}),
        ({"exclude": ("first",)}, {"first"}),
        ({"include": ("second",)}, {"first", "head"}),
    ],
)
def test_the_scope_leaves_layers_in_float(model: Any, backend: str, scope: Any, floats: set[str]) -> None:
    data = core.export_tflite(model, ptq(backend, **scope), X)
    weights = core.profile_tflite(data)
    assert 0.0 < weights.int8_mac_fraction < 1.0
    macs = {"first": 36 * 36 * 4, "second": 16 * 36 * 5, "head": 16 * 5 * 3}
    expected = 1.0 - sum(macs[name] for name in floats) / sum(macs.values())
    assert weights.int8_mac_fraction == pytest.approx(expected, abs=1e-6)
    assert core.agreement(model, data, X)["sqnr_db"] > 25.0


def test_the_report_of_the_file_names_what_stays_float(model: Any) -> None:
    data = core.export_tflite(model, ptq(exclude=("head",)), X)
    reports = core.report_file(model, data)
    assert "head" in {report.path for report in reports if report.outcome is Outcome.KEPT_FLOAT}


@pytest.mark.parametrize("activations", ["int8", "int16", "float32"])
@pytest.mark.parametrize("backend", ["converter", "ai_edge_quantizer"])
def test_a_selector_that_matches_nothing_is_refused(model: Any, backend: str, activations: str) -> None:
    with pytest.raises(ScopeError, match="no_such_layer"):
        core.export_tflite(model, ptq(backend, activations, exclude=("no_such_layer",)), X)


@pytest.mark.parametrize("activations", ["int16", "float32"])
def test_a_scope_that_the_converter_cannot_apply_is_refused(model: Any, activations: str) -> None:
    with pytest.raises(RecipeError, match="ai_edge_quantizer"):
        core.export_tflite(model, ptq(activations=activations, exclude=("head",)), X)
    data = core.export_tflite(model, ptq("ai_edge_quantizer", activations, exclude=("head",)), X)
    assert core.agreement(model, data, X)["sqnr_db"] > 25.0


RECURRENT = """
import sys
import numpy as np
from tfmot_ops.sweep.run.limits import imported_for_good
with imported_for_good():
    from tfmot_ops import core
    from tfmot_ops.core import keras
L = keras.layers
for case in sys.argv[1:]:
    keras.utils.set_random_seed(0)
    recipe, state, kind = case.split()
    layer = {
        "LSTM": lambda: L.LSTM(8),
        "GRU": lambda: L.GRU(8),
        "Bidirectional": lambda: L.Bidirectional(L.GRU(4, return_sequences=True)),
        "ConvLSTM1D": lambda: L.ConvLSTM1D(4, 2),
    }[kind]()
    inputs = keras.Input((6, 5, 3) if kind == "ConvLSTM1D" else (6, 3))
    x = np.random.default_rng(0).normal(size=(16, *inputs.shape[1:])).astype(np.float32)
    if state == "masked":
        x[:, 4:] = 0
    model = keras.Model(inputs, L.Dense(4)(layer(L.Masking()(inputs) if state == "masked" else inputs)))
    data = core.export_tflite(model, core.recipes.decode(recipe), x)
    print(f"SQNR of {case}: {core.sqnr_db(np.asarray(model(x)), core.predict(data, x))}", flush=True)
"""
CASES = [
    "wi8_ai8_ptq plain LSTM",
    "wi8_ai8_ptq plain GRU",
    "wi8_ai8_ptq plain Bidirectional",
    "wi8_ai8_ptq plain ConvLSTM1D",
    "wi8_ai8_ptq masked GRU",
    "wi8_ai8_ptq masked Bidirectional",
    "wi8_ai16 plain LSTM",
    "wi8_afp32 masked LSTM",
]


@pytest.fixture(scope="module")
def recurrent() -> subprocess.CompletedProcess[str]:
    """All cases in a process of their own: on a loop the calibrator ends the process."""
    command = [sys.executable, "-c", RECURRENT, *CASES]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("case", CASES)
def test_recurrent_layers_are_quantised_after_training(recurrent: subprocess.CompletedProcess[str], case: str) -> None:
    assert recurrent.returncode == 0, recurrent.stdout[-2000:] + recurrent.stderr[-2000:]
    told = dict(line.removeprefix("SQNR of ").split(": ") for line in recurrent.stdout.splitlines() if "SQNR" in line)
    assert float(told[case]) > 20.0


class EachStep(L.Layer):
    def call(self, inputs: Any, training: Any = None) -> Any:
        del training
        return tf.map_fn(tf.nn.relu, inputs)


def test_a_loop_that_would_end_the_process_is_refused_by_name() -> None:
    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, L.Dense(2)(EachStep(name="each_step")(inputs)))
    with pytest.raises(UnsupportedModelError, match="each_step"):
        core.export_tflite(model, ptq(), np.zeros((4, 6, 3), np.float32))


def test_a_softmax_under_a_mask_stays_float() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, L.Dense(4)(L.MultiHeadAttention(2, 4)(inputs, inputs, use_causal_mask=True)))
    x = np.random.default_rng(0).normal(size=(16, 6, 8)).astype(np.float32)
    assert core.agreement(model, core.export_tflite(model, ptq(), x), x)["sqnr_db"] > 25.0


@pytest.mark.parametrize(("name", "dtype"), [("wi8_ai8", "int8"), ("wi8_ai8_ptq", "int8"), ("wi8_ai16", "int16")])
def test_an_input_of_integers_leaves_the_others_their_type(name: str, dtype: str) -> None:
    keras.utils.set_random_seed(0)
    words, numbers = keras.Input((5,), dtype="int32"), keras.Input((4,))
    x = L.Concatenate()([L.Flatten()(L.Embedding(20, 4)(words)), L.Dense(4)(numbers)])
    model, rng = keras.Model([words, numbers], L.Dense(2)(x)), np.random.default_rng(0)
    data = [rng.integers(0, 20, (16, 5)).astype(np.int32), rng.normal(size=(16, 4)).astype(np.float32)]
    recipe = core.recipes.decode(name)
    net = core.quantize(model, recipe, data)[0] if name == "wi8_ai8" else model
    profile = core.profile_tflite(core.export_tflite(net, recipe, data))
    assert (profile.input_dtypes, profile.output_dtypes) == (("int32", dtype), (dtype,))
