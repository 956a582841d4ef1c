"""Models under global dtype policies, and models whose own layers have one: mixed precision, float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph

pytestmark = pytest.mark.slow

K = core.keras
L = K.layers
QAT, PTQ, SPARSE = (core.recipes.decode(name) for name in ("wi8_ai8", "wi8_ai8_ptq", "sparse50_wi8_ai8"))
X = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 3)).astype("float32")
POLICIES = ("mixed_float16", "mixed_bfloat16", "float64")


@pytest.fixture(autouse=True)
def global_policy() -> Iterator[None]:
    K.utils.set_random_seed(0)
    yield
    K.mixed_precision.set_global_policy("float32")
    K.backend.set_floatx("float32")


@K.saving.register_keras_serializable("test_dtype_policies")
class Block(L.Layer):
    """Layers made in `__init__`, with the policy that is global then."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(4, 3, padding="same", name="inner")
        self.norm = L.BatchNormalization()

    def call(self, inputs, training=None):
        return tf.nn.relu(self.norm(self.conv(inputs), training=training)) + tf.cast(inputs, self.compute_dtype)


def _model() -> Any:
    """Nested models, a custom layer, a recurrent layer that stays float, functions and casts; float32 results."""
    backbone_in = K.Input((8, 8, 3))
    h = L.Conv2D(4, 3, use_bias=False, padding="same", name="conv")(backbone_in)
    h = Block(name="block")(L.ReLU(6.0)(L.BatchNormalization()(h)))
    backbone = K.Model(backbone_in, h, name="backbone")
    inputs = K.Input((8, 8, 3), name="image")
    h = tf.cast(backbone(inputs), K.mixed_precision.global_policy().compute_dtype) * 0.5
    h = L.Dense(6, activation=L.LeakyReLU(), name="dense")(L.GlobalAveragePooling2D()(h))
    h = L.Bidirectional(L.LSTM(3, recurrent_dropout=0.1), name="lstm")(L.Reshape((2, 3))(h))
    model = K.Model(inputs, tf.cast(L.Dense(3, name="scores")(h), tf.float32))
    model.compile("adam", "mse")
    return model


def _simple() -> Any:
    model = K.Sequential([L.Input((8, 8, 3)), L.Conv2D(4, 3), L.ReLU(), L.Flatten(), L.Dense(3)])
    model.compile("sgd", "mse")
    return model


def _sqnr(a: Any, b: Any) -> float:
    return core.sqnr_db(*(np.asarray(core.predict(model, X), "float32") for model in (a, b)))


def _types(model: Any) -> set[str]:
    """Types in which the layers compute and keep their weights; of Keras' own function layers the first is unused."""
    parts = [part for layer in model.layers for part in layer._flatten_layers() if not hasattr(part, "symbol")]
    weights = {tf.as_dtype(weight.dtype).name for part in parts for weight in part.weights}
    return {part.compute_dtype for part in parts} | {name for name in weights if name.startswith(("float", "bfloat"))}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_float32_model_under_a_global_policy(policy: str) -> None:
    model = _simple()
    expected = core.export_tflite(core.quantize(model, QAT, X)[0], QAT)
    K.mixed_precision.set_global_policy(policy)
    chosen = K.mixed_precision.global_policy()
    pruned, _ = core.prune(model, SPARSE)
    pruned.fit(X, Y, verbose=0, callbacks=core.pruning_callbacks())
    stripped = core.strip(pruned)
    core.assert_sparsity(stripped, SPARSE)
    quantized, _ = core.quantize(stripped, SPARSE, X)
    quantized.fit(X, Y, verbose=0)
    assert _sqnr(quantized, core.export_tflite(quantized, SPARSE)) > 40.0
    for made in (pruned, stripped, quantized, core.normalize(model)):
        assert _types(made) == {"float32"}
    assert core.export_tflite(core.quantize(model, QAT, X)[0], QAT) == expected
    assert _sqnr(model, core.export_tflite(model, PTQ, X)) > 25.0
    assert core.layer_sqnr(model, None, core.export_tflite(model, PTQ, X), X)
    assert K.mixed_precision.global_policy() is chosen


def test_the_global_policy_follows_the_float_type_afterwards() -> None:
    K.mixed_precision.set_global_policy(None)
    core.quantize(_simple(), QAT, X)
    K.backend.set_floatx("float64")
    assert K.mixed_precision.global_policy().name == "float64"
    assert _types(core.quantize(_simple(), QAT, X)[0]) == {"float32"}
    assert K.backend.floatx() == "float64"


def test_a_model_of_that_policy() -> None:
    K.mixed_precision.set_global_policy("mixed_float16")
    model = _model()
    K.mixed_precision.set_global_policy("float32")
    before = K.mixed_precision.global_policy()
    flat = core.normalize(model)
    assert _types(flat) == {"float32"}
    assert _sqnr(model, flat) > 50.0
    quantized, reports = core.quantize(model, QAT, X)
    assert _types(quantized) == {"float32"}
    assert {"backbone/conv", "backbone/block/inner", "dense", "scores"} <= {row.path for row in reports}
    quantized.fit(X, Y, verbose=0)
    file = core.export_tflite(quantized, QAT)
    assert _sqnr(quantized, file) > 38.0
    assert _sqnr(model, core.export_tflite(model, PTQ, X)) > 18.0
    assert not any("cast" in node.path for node in normalize_graph(read_graph(model)).nodes)
    assert K.mixed_precision.global_policy() is before


@pytest.mark.parametrize("policy", POLICIES)
def test_pruning_keeps_the_policy(policy: str, tmp_path) -> None:
    K.mixed_precision.set_global_policy(policy)
    model = _simple()
    K.mixed_precision.set_global_policy("float32")
    for end_step in (None, 2):
        pruned, _ = core.prune(model, SPARSE, end_step=end_step)
        if end_step is not None:
            np.testing.assert_array_equal(core.predict(pruned, X), core.predict(model, X))
        history = pruned.fit(X, Y, epochs=3, batch_size=16, verbose=0, callbacks=core.pruning_callbacks()).history
        assert np.isfinite(history["loss"]).all()
        stripped = core.strip(pruned)
        core.assert_sparsity(stripped, SPARSE)
        assert _sqnr(pruned, stripped) > 100.0
        for made in (pruned, stripped):
            assert {layer.dtype_policy.name for layer in made.layers} == {policy}
            assert type(made.optimizer) is type(model.optimizer)
        assert pruned.layers[0].pruning_vars[0][1].numpy().dtype == ("float64" if policy == "float64" else "float32")
        core.save_model(pruned, tmp_path / "pruned.h5")
        assert _sqnr(core.load_model(tmp_path / "pruned.h5"), pruned) > 100.0


@pytest.mark.parametrize(("policy", "pattern"), [(POLICIES[0], {"n_of_m": (2, 4)}), (POLICIES[1], {"block": (1, 4)})])
def test_patterns_under_a_policy(policy: str, pattern: dict[str, Any]) -> None:
    recipe = type(SPARSE).model_validate({"name": "r", "sparsity": {"ratio": 0.5, **pattern}})
    K.mixed_precision.set_global_policy(policy)
    model = K.Sequential([L.Input((8, 8, 3)), L.Flatten(), L.Dense(8), L.Dense(4)])
    model.compile("sgd", "mse")
    pruned, _ = core.prune(model, recipe, end_step=1)
    pruned.fit(X, np.zeros((32, 4)), verbose=0, callbacks=core.pruning_callbacks())
    core.assert_sparsity(core.strip(pruned), recipe)


@pytest.mark.parametrize("policy", POLICIES[:1])
def test_blocks_that_are_opened_keep_the_policy(policy: str) -> None:
    K.mixed_precision.set_global_policy(policy)
    model = _model()
    K.mixed_precision.set_global_policy("float32")
    pruned, _ = core.prune(model, SPARSE)
    pruned.fit(X, Y, verbose=0, callbacks=core.pruning_callbacks())
    stripped = core.strip(pruned)
    core.assert_sparsity(stripped, SPARSE)
    quantized, _ = core.quantize(stripped, SPARSE, X)
    assert _sqnr(quantized, core.export_tflite(quantized, SPARSE)) > 38.0


@pytest.mark.parametrize("optimizer", ["adam", "legacy", "scaled", "fixed"])
def test_loss_scaling_stays_in_the_compile_configuration(optimizer: str) -> None:
    K.mixed_precision.set_global_policy("mixed_float16")
    model = _simple()
    scaled = K.mixed_precision.LossScaleOptimizer
    model.compile(
        {
            "adam": lambda: K.optimizers.Adam(3e-3),
            "legacy": lambda: K.optimizers.legacy.SGD(3e-3),
            "scaled": lambda: scaled(K.optimizers.Adam(3e-3), initial_scale=2.0**10),
            "fixed": lambda: scaled(K.optimizers.Adam(3e-3), dynamic=False, initial_scale=128.0),
        }[optimizer](),
        "mse",
    )
    model.fit(X, Y, verbose=0)
    K.mixed_precision.set_global_policy("float32")
    for made in (core.prune(model, SPARSE)[0], core.quantize(model, QAT, X)[0], core.normalize(model)):
        assert isinstance(made.optimizer, scaled)
        assert made.optimizer.get_config() == model.optimizer.get_config()
        made.fit(X, Y, verbose=0, callbacks=core.pruning_callbacks() if made.layers[0].name.startswith("prune") else [])


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        *(("mixed_float16", name) for name in ("model.h5", "model.keras", "model")),
        ("mixed_bfloat16", "model.keras"),
        ("float64", "model.h5"),
    ],
)
def test_saved_and_loaded_under_a_policy(policy: str, name: str, tmp_path) -> None:
    model = _simple()
    quantized, _ = core.quantize(model, QAT, X)
    core.save_model(quantized, tmp_path / name)
    K.mixed_precision.set_global_policy(policy)
    loaded = core.load_model(tmp_path / name)
    assert _types(loaded) == {"float32"}
    np.testing.assert_array_equal(core.predict(loaded, X), core.predict(quantized, X))
    own = _simple()
    core.save_model(own, tmp_path / f"own_{name}")
    K.mixed_precision.set_global_policy("float32")
    again = core.load_model(tmp_path / f"own_{name}")
    assert {layer.dtype_policy.name for layer in again.layers} == {policy}
    assert _sqnr(again, core.export_tflite(core.quantize(again, QAT, X)[0], QAT)) > 25.0


def test_float16_weights() -> None:
    K.mixed_precision.set_global_policy("float16")
    model = _simple()
    K.mixed_precision.set_global_policy("float32")
    quantized, _ = core.quantize(model, QAT, X)
    assert _types(quantized) == {"float32"}
    assert _sqnr(quantized, core.export_tflite(quantized, QAT)) > 50.0


def test_an_integer_input_and_a_mixed_embedding() -> None:
    K.mixed_precision.set_global_policy("mixed_float16")
    tokens = K.Input((6,), dtype="int32")
    h = L.GlobalAveragePooling1D()(L.Embedding(20, 8, mask_zero=True)(tokens))
    model = K.Model(tokens, L.Dense(3, dtype="float32")(h))
    data = np.random.default_rng(0).integers(0, 20, (16, 6)).astype("int32")
    quantized, _ = core.quantize(model, QAT, data)
    file = core.export_tflite(quantized, QAT)
    assert core.sqnr_db(core.predict(quantized, data), core.predict(file, data)) > 35.0
