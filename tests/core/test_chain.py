"""The core chain on small real models: prune, strip, quantise, save, reload, export, measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Outcome, Quantization, Recipe, Scope, Sparsity
from tfmot_ops.core import keras
from tfmot_ops.core.graph.ir import layer_paths
from tfmot_ops.core.tflite.interpreter import make_interpreter
from tfmot_ops.errors import (
    CalibrationError,
    ExportError,
    RecipeError,
    ScopeError,
    SparsityLostError,
    UnsupportedModelError,
)

L = keras.layers


def _data(samples: int = 128) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.uniform(0, 255, (samples, 8, 8, 3)).astype(np.float32), random.integers(0, 4, samples)


def _model() -> Any:
    """A block used twice, tensor arithmetic, pre-activation, a pool with three readers."""
    keras.utils.set_random_seed(1)
    block = keras.Sequential(
        [L.Input((8, 8, 8)), L.SeparableConv2D(8, 3, padding="same", activation="relu"), L.BatchNormalization()],
        name="block",
    )
    inputs = L.Input((8, 8, 3), name="image")
    x = L.Rescaling(1 / 127.5, -1)(inputs) * 2.0 - 0.5
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    x = x + block(block(x))
    for name in ("free_1", "free_2"):
        x = L.ReLU()(L.BatchNormalization(name=name)(x))
        x = x + L.Conv2D(8, 1, name=f"{name}_conv")(x)
    x = L.MaxPooling2D()(x)
    x = L.Concatenate()([L.Conv2D(8, 3, padding="same", name="a")(x), L.Conv2D(8, 1, name="b")(x), x])
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = L.Activation("swish")(L.BatchNormalization(name="after_depthwise")(x))
    x = L.GlobalAveragePooling2D()(x)
    outputs = L.Dense(4, activation="softmax", name="out")(L.Dense(32, activation="relu", name="hidden")(x))
    model = keras.Model(inputs, outputs, name="small")
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", ["accuracy"])
    x, y = _data()
    model.fit(x, y, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return _model()


def _difference(a: Any, b: Any) -> float:
    x, _ = _data(32)
    return float(np.abs(a.predict(x, verbose=0) - b.predict(x, verbose=0)).max())


@pytest.mark.slow
def test_normalize_keeps_outputs_weights_and_names(model):
    before = [w.copy() for w in model.get_weights()]
    flat = core.normalize(model)
    assert _difference(model, flat) < 1e-5
    assert {"stem", "separable_conv2d", "hidden", "out", "depthwise"} <= {layer.name for layer in flat.layers}
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "sparse50_wi8_ai8",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("wi8_ai8", "sparse80_wi8_ai8", "sparse2of4_wi8_ai8")),
    ],
)
def test_chain_is_fully_int8_and_keeps_sparsity(model, name, tmp_path):
    recipe = core.recipes.decode(name)
    x, y = _data()
    float_model = model
    if recipe.sparsity:
        pruned, reports = core.prune(model, recipe, end_step=8)
        assert {r.path for r in reports if r.outcome is Outcome.PRUNED} >= {"a", "b", "hidden"}
        pruned.fit(x, y, epochs=3, verbose=0, callbacks=core.pruning_callbacks())
        float_model = core.strip(pruned)
        assert min(core.assert_sparsity(float_model, recipe).values()) >= recipe.sparsity.ratio - 0.01
    quantized, reports = core.quantize(float_model, recipe, x)
    assert all(r.reason for r in reports)
    assert core.sqnr_db(float_model.predict(x, verbose=0), quantized.predict(x, verbose=0)) > 25
    quantized.fit(x, y, epochs=2, verbose=0)
    core.save_model(quantized, tmp_path / "qat.h5")
    reloaded = core.load_model(tmp_path / "qat.h5")
    assert _difference(quantized, reloaded) == 0.0
    reloaded.fit(x, y, epochs=1, verbose=0)
    data = core.export_tflite(reloaded, recipe)
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0)
    assert set(profile.input_dtypes + profile.output_dtypes) == {"int8"}
    assert core.agreement(reloaded, data, x)["sqnr_db"] > 25
    if recipe.sparsity:
        kernels = {k: v for k, v in profile.sparsity.items() if "L.hidden/" in k or "L.a/" in k}
        assert len(kernels) == 2
        assert min(kernels.values()) >= recipe.sparsity.ratio - 0.01


def test_two_of_four_pattern_is_in_the_int8_weights(model):
    recipe = core.recipes.decode("sparse2of4_wi8_ai8")
    pruned, _ = core.prune(model, recipe)
    stripped = core.strip(pruned)
    kernel = stripped.get_layer("a").get_weights()[0]
    groups = np.moveaxis(kernel, 2, -1).reshape(-1, 4)
    assert ((groups == 0).sum(axis=1) >= 2).all()


@pytest.mark.slow
def test_two_free_standing_affines_do_not_share_a_kernel(model):
    """The converter merges equal constants and folds scales into the one that is left."""
    x, _ = _data()
    recipe = core.recipes.decode("wi8_ai8")
    model = core.normalize(model)  # a copy: the fixture serves the other tests
    for layer, factor in (("free_1", 3.0), ("free_2", 0.2)):
        gamma = model.get_layer(layer).gamma
        gamma.assign(gamma * factor)
    quantized, _ = core.quantize(model, recipe, x)
    data = core.export_tflite(quantized, recipe)
    assert core.agreement(quantized, data, x)["sqnr_db"] > 25


@pytest.mark.slow
def test_prune_without_end_step_applies_the_mask_at_once_and_training_keeps_it(model):
    recipe = core.recipes.decode("sparse80_wi8_ai8")
    pruned, _ = core.prune(model, recipe)
    at_once = core.assert_sparsity(core.strip(pruned), recipe)
    x, y = _data()
    pruned.fit(x, y, epochs=2, verbose=0, callbacks=core.pruning_callbacks())
    assert core.assert_sparsity(core.strip(pruned), recipe) == at_once


@pytest.mark.slow
def test_pruned_model_keeps_pattern_and_structure_over_a_file(model, tmp_path):
    pruned, _ = core.prune(model, core.recipes.decode("sparse2of4_wi8_ai8"))
    core.save_model(pruned, tmp_path / "pruned.h5")
    reloaded = core.load_model(tmp_path / "pruned.h5")
    wrapper = reloaded.get_layer("prune_low_magnitude_a")
    assert tuple(wrapper.sparsity_m_by_n) == (2, 4)
    assert isinstance(core.strip(reloaded).get_layer("block"), keras.Sequential)
    assert _difference(pruned, reloaded) == 0.0


def test_scope_prunes_depthwise_where_named_and_refuses_what_matches_nothing(model):
    scope = Scope(include=("class:DepthwiseConv2D", "block/*"), exclude=("block/batch*",))
    recipe = Recipe(name="scoped", sparsity=Sparsity(ratio=0.5, scope=scope), quantization=Quantization())
    stripped = core.strip(core.prune(model, recipe)[0])
    assert set(core.assert_sparsity(stripped, recipe)) == {"depthwise", "block/separable_conv2d"}
    wrong = Recipe(name="wrong", sparsity=Sparsity(ratio=0.5, scope=Scope(include=("stemm",))))
    with pytest.raises(ScopeError, match="stemm"):
        core.prune(model, wrong)


@pytest.mark.slow
def test_excluded_layer_stays_float_and_is_reported(model):
    x, _ = _data()
    recipe = Recipe(name="partly", quantization=Quantization(scope=Scope(exclude=("hidden",))))
    quantized, reports = core.quantize(model, recipe, x)
    assert {r.path: r for r in reports}["hidden"].outcome is Outcome.KEPT_FLOAT
    profile = core.profile_tflite(core.export_tflite(quantized, recipe))
    assert 0.5 < profile.int8_mac_fraction < 1.0


@pytest.mark.slow
def test_lost_sparsity_names_the_layer(model):
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    with pytest.raises(SparsityLostError, match="'stem'"):
        core.assert_sparsity(model, recipe)
    x, _ = _data()
    quantized, _ = core.quantize(model, recipe, x)
    with pytest.raises(SparsityLostError, match="TFLite"):
        core.export_tflite(quantized, recipe)


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("wi8_ai8_ptq", {"int8"}),
        ("wi8_afp32", {"int8", "float32"}),
        ("wi16f", {"float16", "float32"}),
        ("wi8_ai16", {"int8", "int16"}),
    ],
)
def test_recipes_without_training_export_the_types_they_name(model, name, types):
    x, _ = _data()
    wide = keras.Sequential([L.Input((8, 8, 3)), model, L.Dense(512, name="wide")])
    data = core.export_tflite(wide, core.recipes.decode(name), x)
    assert core.agreement(wide, data, x)["sqnr_db"] > 20
    assert types <= {entry["dtype"].__name__ for entry in make_interpreter(data).get_tensor_details()}


def test_errors_say_what_to_do(model):
    x, _ = _data()
    recipe = core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(model, recipe, x)
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        core.quantize(quantized, recipe)
    with pytest.raises(UnsupportedModelError, match="strip"):
        core.quantize(core.prune(model, core.recipes.decode("sparse50"))[0], recipe)
    with pytest.raises(ExportError, match=r"core\.quantize first"):
        core.export_tflite(model, recipe)
    with pytest.raises(CalibrationError, match="image"):
        core.quantize(model, recipe, x[:, :4])
    with pytest.raises(RecipeError):
        core.prune(model, recipe)

    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(UnsupportedModelError, match="subclassed"):
        core.quantize(Subclassed(), recipe)


@pytest.mark.parametrize("name", ["sparse0", "ai8", "wi8_wi16f", "wi8_ai4", "sparse4of2", "", "sparse50_sparse80"])
def test_decoder_refuses_what_it_cannot_say(name):
    with pytest.raises(RecipeError):
        core.recipes.decode(name)


@pytest.mark.slow
def test_compile_configuration_survives_the_chain(model):
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    pruned, _ = core.prune(model, recipe)
    stripped = core.strip(pruned)
    quantized, _ = core.quantize(stripped, recipe, _data()[0])
    for changed in (pruned, stripped, quantized, core.normalize(model)):
        assert changed.optimizer.get_config() == model.optimizer.get_config()
        assert changed.loss == model.loss
        assert changed.evaluate(*_data(32), verbose=0, return_dict=True).keys() == {"loss", "accuracy"}


def test_every_layer_of_the_users_model_is_reported(model):
    _, reports = core.quantize(model, core.recipes.decode("wi8_ai8"))
    assert {path for path, _ in layer_paths(model)} <= {report.path for report in reports}
    assert {r.path: r.outcome for r in reports}["rescaling"] is Outcome.ABSORBED


@pytest.mark.slow
def test_strip_and_export_leave_their_argument_alone(model):
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    pruned, _ = core.prune(model, recipe)
    kernel = pruned.get_layer("prune_low_magnitude_a").layer.kernel
    kernel.assign(kernel + 1.0)  # as after a training step, before the masks' next use
    _unchanged(pruned, lambda: core.strip(pruned))
    x, y = _data()
    quantized, _ = core.quantize(core.strip(pruned), recipe, x)
    quantized.fit(x, y, verbose=0)  # unties the ranges
    _unchanged(quantized, lambda: core.export_tflite(quantized, recipe))


def _unchanged(model, call):
    before = [weight.numpy().copy() for weight in model.weights]
    call()
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True))


@pytest.mark.slow
def test_scopes_name_the_users_layers_to_the_end_of_the_chain(model):
    """Nested paths and classes that normalisation takes apart."""
    scope = Scope(include=("block/*", "class:SeparableConv2D"))
    recipe = Recipe(name="scoped", sparsity=Sparsity(ratio=0.5, scope=scope), quantization=Quantization())
    stripped = core.strip(core.prune(model, recipe)[0])
    quantized, _ = core.quantize(stripped, recipe, _data()[0])
    sparsity = core.profile_tflite(core.export_tflite(quantized, recipe)).sparsity
    assert sum(zeros >= 0.49 for zeros in sparsity.values()) == 2  # the pointwise and the depthwise kernel
    partly = Recipe(name="partly", quantization=Quantization(scope=Scope(exclude=("class:SeparableConv2D",))))
    _, reports = core.quantize(stripped, partly)
    kept = {r.path for r in reports if r.outcome is Outcome.KEPT_FLOAT}
    assert kept == {"block/separable_conv2d", "block/separable_conv2d_depthwise", "block/separable_conv2d_relu"}


@pytest.mark.slow
def test_lost_sparsity_of_a_named_depthwise_kernel_is_noticed(model):
    scope = Scope(include=("depthwise",))
    recipe = Recipe(name="depthwise", sparsity=Sparsity(ratio=0.5, scope=scope), quantization=Quantization())
    quantized, _ = core.quantize(model, recipe, _data()[0])
    with pytest.raises(SparsityLostError, match="'depthwise'"):
        core.export_tflite(quantized, recipe)


@pytest.mark.parametrize("name", ["sparse50_wi8_ai8", "sparse50_wi8_ai8_ptq"])
def test_nested_models_with_equal_layer_names(name):
    def part(title):
        return keras.Sequential([L.Input((8, 8, 4)), L.Conv2D(4, 3, padding="same", name="conv")], name=title)

    inputs = L.Input((8, 8, 4))
    model = keras.Model(inputs, L.Flatten()(part("second")(part("first")(inputs))))
    recipe = core.recipes.decode(name)
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 4)).astype(np.float32)
    result = core.strip(core.prune(model, recipe)[0])
    if not name.endswith("ptq"):
        result, _ = core.quantize(result, recipe, x)
    sparsity = core.profile_tflite(core.export_tflite(result, recipe, x)).sparsity
    assert len(sparsity) == 2
    assert min(sparsity.values()) >= 0.5


@pytest.mark.parametrize(
    ("name", "hidden"),
    [("wi8_ai8_ptq", Outcome.QUANTIZED), ("wi16f", Outcome.QUANTIZED), ("sparse50", Outcome.KEPT_FLOAT)],
)
def test_without_qat_every_layer_is_reported_from_the_file(model, name, hidden):
    recipe = core.recipes.decode(name)
    float_model = core.strip(core.prune(model, recipe)[0]) if recipe.sparsity else model
    reports = {r.path: r for r in core.report_file(float_model, core.export_tflite(float_model, recipe, _data()[0]))}
    assert set(reports) == {path for path, _ in layer_paths(model)}
    assert reports["stem"].outcome is hidden
    assert reports["rescaling"].outcome is Outcome.ABSORBED
