"""NaN and infinity in weights, ranges and calibration data are refused, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.quantization.ranges import range_variables
from tfmot_ops.errors import CalibrationError, NotFiniteError, TfmotOpsError

pytestmark = pytest.mark.slow

L = keras.layers
_X = np.random.default_rng(0).normal(size=(80, 8)).astype(np.float32)
_EXPORTS = ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai16_ptq", "wi8_afp32", "wi16f", "sparse50"]


def _model() -> keras.Model:
    inputs = keras.Input((8,), name="values")
    tensor = L.BatchNormalization(name="norm")(L.Dense(6, name="first")(inputs))
    return keras.Model(inputs, L.Dense(3, name="last")(L.ReLU()(tensor)))


def _spoil(variable: Any, value: float) -> None:
    values = variable.numpy()
    values.reshape(-1)[1] = value
    variable.assign(values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("recipe", _EXPORTS)
def test_a_weight_is_refused_by_export(recipe: str, value: float) -> None:
    model = _model()
    _spoil(model.get_layer("last").kernel, value)
    with pytest.raises(NotFiniteError, match=r"layer 'last'.*'last/kernel:0'[\s\S]*1 of 18 values"):
        core.export_tflite(model, core.recipes.decode(recipe), _X)


@pytest.mark.parametrize("name", ["kernel", "bias", "moving_variance", "beta"])
def test_a_weight_is_refused_by_quantize_and_prune(name: str) -> None:
    model = _model()
    layer = next(layer for layer in model.layers if hasattr(layer, name))
    _spoil(getattr(layer, name), np.nan)
    for refuses in (core.quantize, core.prune):
        with pytest.raises(NotFiniteError, match=f"layer '{layer.name}'.*{name}") as caught:
            refuses(model, core.recipes.decode("sparse50_wi8_ai8"))
        assert caught.value.exit_code == 4


def test_a_part_of_a_model_is_named_by_its_path() -> None:
    inner = _model()
    inputs = keras.Input((8,))
    model = keras.Model(inputs, L.Dense(2)(inner(inputs)))
    _spoil(inner.get_layer("first").bias, np.nan)
    with pytest.raises(NotFiniteError, match=r"layer '.*/first'"):
        core.quantize(model, core.recipes.decode("wi8_ai8"), _X)


@pytest.mark.parametrize("what", ["kernel", "range", "everything"])
def test_what_a_diverged_training_leaves_is_refused(what: str) -> None:
    recipe = core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(_model(), recipe, _X)
    if what == "kernel":
        _spoil(quantized.get_layer("quant_first").layer.kernel, np.nan)
    for layer in quantized.layers if what == "range" else ():
        if range_variables(layer):
            range_variables(layer)[1].assign(np.inf)
    for variable in quantized.variables if what == "everything" else ():
        if variable.dtype.is_floating:
            variable.assign(tf.fill(variable.shape, np.nan))
    with pytest.raises(NotFiniteError, match="range" if what == "range" else "weight"):
        core.export_tflite(quantized, recipe)


def test_weights_that_are_finite_alone_and_not_when_folded() -> None:
    recipe = core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(_model(), recipe, _X)
    norm = next(layer for layer in quantized.layers if "norm" in layer.name)
    _spoil(getattr(norm, "layer", norm).moving_variance, -1.0)
    with pytest.raises(NotFiniteError, match="layer 'first'"), np.errstate(invalid="ignore"):
        core.export_tflite(quantized, recipe)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai16_ptq"])
@pytest.mark.parametrize("kind", ["array", "dataset"])
def test_calibration_data_is_refused(kind: str, recipe: str, value: float) -> None:
    x = _X.copy()
    x[70, 3] = value
    data = tf.data.Dataset.from_tensor_slices(x).batch(9) if kind == "dataset" else x
    decoded = core.recipes.decode(recipe)
    with pytest.raises(CalibrationError, match=r"input 'values', sample 70\b") as caught:
        core.quantize(_model(), decoded, data) if recipe == "wi8_ai8" else core.export_tflite(_model(), decoded, data)
    assert caught.value.exit_code == 4


def test_a_number_too_large_for_the_input_is_refused() -> None:
    x = _X.astype(np.float64)
    x[2, 2] = 1e300
    with pytest.raises(CalibrationError, match="sample 2"), np.errstate(over="ignore"):
        core.quantize(_model(), core.recipes.decode("wi8_ai8"), x)


@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq", "wi8_ai8_ptq_aeq"])
def test_what_a_layer_makes_of_finite_data_is_refused(recipe: str) -> None:
    inputs = keras.Input((8,), name="values")
    model = keras.Model(inputs, L.Dense(3)(tf.math.log(L.ReLU(name="zero")(L.Dense(4, name="first")(inputs)))))
    decoded = core.recipes.decode(recipe)
    with pytest.raises(CalibrationError, match="log"):
        core.quantize(model, decoded, _X) if recipe == "wi8_ai8" else core.export_tflite(model, decoded, _X)


@keras.saving.register_keras_serializable("test_not_finite")
class Masked(L.Layer):
    """Scores under a mask of zeros and minus infinity that never trains."""

    def build(self, shape: Any) -> None:
        """Create the mask."""
        mask = np.where(np.arange(shape[-1]) < 2, -np.inf, 0.0)
        self.mask = self.add_weight("mask", shape[-1:], initializer=keras.initializers.Constant(mask), trainable=False)

    def call(self, inputs: Any) -> Any:
        """Scores [N, classes] to probabilities of the same shape."""
        return tf.nn.softmax(inputs + self.mask)


@pytest.mark.parametrize("as_weight", [False, True])
@pytest.mark.parametrize("recipe", ["sparse50", "wi8_afp32", "wi16f"])
def test_an_infinite_constant_of_the_graph_is_no_weight(recipe: str, as_weight: bool) -> None:
    inputs = keras.Input((8,))
    scores = L.Dense(6)(inputs)
    mask = np.array([-np.inf, -np.inf, 0, 0, 0, 0], np.float32)
    model = keras.Model(inputs, Masked()(scores) if as_weight else L.Softmax()(scores + mask))
    decoded = core.recipes.decode(recipe)
    if decoded.sparsity:
        model = core.strip(core.prune(model, decoded)[0])
    file = core.export_tflite(model, decoded)
    assert core.agreement(model, file, _X)["sqnr_db"] >= 30.0


@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai16_ptq"])
def test_an_infinite_constant_that_int8_cannot_hold_is_refused_and_ends_no_process(recipe: str) -> None:
    inputs = keras.Input((8,))
    mask = np.array([-np.inf, -np.inf, 0, 0, 0, 0], np.float32)
    model = keras.Model(inputs, L.Softmax()(L.Dense(6)(inputs) + mask))
    decoded = core.recipes.decode(recipe)
    with pytest.raises(TfmotOpsError, match="finite"):
        core.quantize(model, decoded, _X) if recipe == "wi8_ai8" else core.export_tflite(model, decoded, _X)


@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq", "wi8_ai8_ptq_aeq"])
def test_what_the_scope_keeps_in_float_may_be_infinite(recipe: str) -> None:
    inputs = keras.Input((8,))
    mask = np.array([-np.inf, -np.inf, 0, 0, 0, 0], np.float32)
    model = keras.Model(inputs, L.Softmax(name="shares")(tf.where(mask < 0, mask, L.Dense(6, name="scores")(inputs))))
    names = tuple(layer.name for layer in model.layers if layer.name not in {"scores", model.layers[0].name})
    decoded = core.recipes.decode(recipe)
    quantization = decoded.quantization.model_copy(
        update={"scope": decoded.quantization.scope.model_copy(update={"exclude": names})}
    )
    decoded = decoded.model_copy(update={"quantization": quantization})
    final = core.quantize(model, decoded, _X)[0] if recipe == "wi8_ai8" else model
    file = core.export_tflite(final, decoded, _X)
    assert core.agreement(model, file, _X)["sqnr_db"] >= 25.0
