"""Models under `tf.distribute` strategies, whose variables are no arrays for NumPy, give what they give outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core.keras.compiling import compile_parameters
from tfmot_ops.errors import NotFiniteError

pytestmark = pytest.mark.slow

K = core.keras
L = K.layers
QAT = core.recipes.decode("wi8_ai8")
CHILD = Path(__file__).with_name("strategies_child.py")


@pytest.mark.parametrize(
    ("devices", "kind", "least"),
    # Two replicas add up their gradients in another order, so a weight may be rounded to the next level. They have no
    # statistics of a batch here: each replica has those of its half, in Keras too.
    [(1, "bn", 200.0), (2, "plain", 40.0)],
)
def test_as_outside_of_a_strategy(devices: int, kind: str, least: float) -> None:
    done = subprocess.run(
        [sys.executable, str(CHILD), str(devices), kind],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(core.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["strategy"] for row in figures] == ["mirrored", "one_device"]
    for row in figures:
        assert row["to_file"] > 40.0
        assert min(row["to_outside"]) >= (least if row["strategy"] == "mirrored" else 200.0)


def _model() -> K.Model:
    K.utils.set_random_seed(0)
    model = K.Sequential([L.Input((8,)), L.Dense(8, "relu"), L.Rescaling(0.5), L.Dense(4)])
    model.compile(K.optimizers.Adam(1e-3), "mse")
    return model


X = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")


def test_a_model_made_outside_is_quantised_inside() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        quantized, _ = core.quantize(_model(), QAT, X)
    expected, _ = core.quantize(_model(), QAT, X)
    np.testing.assert_array_equal(core.predict(quantized, X), core.predict(expected, X))
    files = [core.predict(core.export_tflite(model, QAT), X) for model in (quantized, expected)]
    np.testing.assert_array_equal(*files)


def test_a_model_made_inside_is_quantised_outside() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = _model()
    quantized, _ = core.quantize(model, QAT, X)
    quantized.fit(X, np.zeros((40, 4)), verbose=0)
    assert core.sqnr_db(core.predict(quantized, X), core.predict(core.export_tflite(quantized, QAT), X)) > 40.0


def test_parameters_and_sparsity_of_a_mirrored_model(tmp_path) -> None:
    sparse = core.recipes.decode("sparse50")
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        pruned, _ = core.prune(_model(), sparse)
        assert all(0.45 < share < 0.55 for share in core.layer_sparsity(core.strip(pruned)).values())
        parameters = compile_parameters(pruned)
        core.save_model(pruned, tmp_path / "model.h5")
        loaded = core.load_model(tmp_path / "model.h5")
    assert parameters["optimizer.learning_rate"] == pytest.approx(1e-3)
    np.testing.assert_array_equal(core.predict(loaded, X), core.predict(pruned, X))


def test_a_weight_that_is_not_finite_is_found() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = _model()
        model.layers[0].kernel.assign(np.full((8, 8), np.nan))
        with pytest.raises(NotFiniteError, match="not finite"):
            core.quantize(model, QAT, X)


def test_a_custom_layer_that_multiplies_by_a_mirrored_weight() -> None:
    @K.saving.register_keras_serializable("test_strategies")
    class Scale(L.Layer):
        def build(self, input_shape):
            self.gamma = self.add_weight("gamma", (input_shape[-1],), initializer="ones")

        def call(self, inputs):
            return inputs * self.gamma

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = K.Sequential([L.Input((8,)), L.Dense(6), Scale(), L.Dense(4)])
        quantized, _ = core.quantize(model, QAT, X)
    file = core.export_tflite(quantized, QAT)
    assert core.sqnr_db(core.predict(quantized, X), core.predict(file, X)) > 40.0
    assert core.profile_tflite(file).float_ops == 0


def test_mixed_precision_under_a_strategy() -> None:
    K.mixed_precision.set_global_policy("mixed_float16")
    try:
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            pruned, _ = core.prune(_model(), core.recipes.decode("sparse50"), end_step=1)
            pruned.fit(X, np.zeros((40, 4)), verbose=0, callbacks=core.pruning_callbacks())
            quantized, _ = core.quantize(core.strip(pruned), QAT, X)
        quantized.fit(X, np.zeros((40, 4)), verbose=0)
    finally:
        K.mixed_precision.set_global_policy("float32")
    assert core.sqnr_db(core.predict(quantized, X), core.predict(core.export_tflite(quantized, QAT), X)) > 40.0
