"""Functions of one number that TFLite has no int8 operation for: the file looks their results up in a table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras
from tfmot_ops.core.graph.elementwise import is_elementwise
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.errors import UnsupportedModelError

pytestmark = pytest.mark.slow

L, K = keras.layers, keras.backend
_QAT = core.recipes.decode("wi8_ai8")
_IMAGES = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)
#: The 256 numbers that are the int8 values of a tensor with this range; each is a sample's element.
_LOW, _HIGH = -3.0, 2.375
_LEVELS = np.linspace(_LOW, _HIGH, 256, dtype=np.float32).reshape(16, 16)


@keras.saving.register_keras_serializable("test_tables")
def gate(x: Any) -> Any:
    return tf.clip_by_value(x / 6 + 0.5, 0.0, 1.0)


class Mish:
    def __call__(self, x: Any) -> Any:
        return x * tf.tanh(tf.math.softplus(x))


class Snake(L.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs + tf.sin(inputs) ** 2


@tf.function
def _graph_function(x: Any) -> Any:
    return tf.where(x > 0, x, tf.math.expm1(x))


_HALF = tf.constant(0.5)


@tf.custom_gradient
def _own_gradient(x: Any) -> Any:
    return tf.math.softsign(x), lambda gradient: gradient


#: What a layer takes as `activation=`.
ACTIVATIONS: dict[str, Any] = {
    **{name: name for name in ("elu", "selu", "softplus", "softsign", "mish", "swish", "hard_sigmoid", "exponential")},
    "nn.elu": tf.nn.elu,
    "nn.selu": tf.nn.selu,
    "nn.softplus": tf.nn.softplus,
    "nn.silu": tf.nn.silu,
    "K.softsign": K.softsign,
    "K.elu": K.elu,
    "erf": tf.math.erf,
    "sin": tf.sin,
    "cos": tf.math.cos,
    "atan": tf.math.atan,
    "square": tf.square,
    "abs": tf.abs,
    "exp": tf.exp,
    "expm1": tf.math.expm1,
    "own": gate,
    "lambda": lambda x: x * tf.sigmoid(1.702 * x),
    "softplus by hand": lambda x: tf.math.log(1 + tf.exp(x)),
    "partial": functools.partial(tf.nn.leaky_relu, alpha=0.1),
    "object": Mish(),
    "tf.function": _graph_function,
    "custom gradient": _own_gradient,
    "constant of another trace": lambda x: tf.math.asinh(x) * _HALF,
    "like": lambda x: tf.where(x > 1.0, tf.ones_like(x), tf.maximum(x, tf.zeros_like(x))),
    "layer": L.ELU(0.5),
}

#: What stands between two calls.
CALLS: dict[str, Callable[[Any], Any]] = {
    "ELU": L.ELU(0.7),
    "ThresholdedReLU": L.ThresholdedReLU(0.5),
    "ReLU with all": L.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2),
    "ReLU with a slope and a bound": L.ReLU(max_value=1.0, negative_slope=0.1),
    "nn.elu": tf.nn.elu,
    "nn.selu": tf.nn.selu,
    "math.softplus": tf.math.softplus,
    "nn.softsign": tf.nn.softsign,
    "silu with beta": lambda x: tf.nn.silu(x, beta=1.5),
    "gelu with tanh": lambda x: tf.nn.gelu(x, approximate=True),
    "erf": tf.math.erf,
    "cos": tf.cos,
    "atan": tf.atan,
    "sinh": tf.sinh,
    "square": lambda x: x**2,
    "cube": lambda x: tf.pow(x, 3.0),
    "exponent": lambda x: tf.pow(2.0, x),
    "K.pow": lambda x: K.pow(x, 2),
    "K.exp": K.exp,
    "expm1": tf.math.expm1,
    "log_sigmoid": tf.math.log_sigmoid,
    "K.elu": lambda x: K.elu(x, 0.5),
    "K.relu with a threshold": lambda x: K.relu(x, threshold=0.3),
    "K.relu with all": lambda x: K.relu(x, alpha=0.1, max_value=1.0, threshold=0.2),
    "K.hard_sigmoid": K.hard_sigmoid,
    "K.clip": lambda x: K.clip(x / 6 + 0.5, 0.0, 1.0),
    "mish": keras.activations.mish,
    "mish by hand": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "swish by hand": lambda x: x * tf.sigmoid(x),
    "swish by division": lambda x: x / (1 + tf.exp(-x)),
    "sigmoid by division": lambda x: 1 / (1 + tf.exp(-x)),
    "softsign by hand": lambda x: x / (1 + tf.abs(x)),
    "softplus by hand": lambda x: tf.math.log(1 + tf.exp(x)),
    "softplus by log1p": lambda x: tf.math.log1p(tf.exp(x)),
    "gelu by erf": lambda x: 0.5 * x * (1 + tf.math.erf(x / np.float32(np.sqrt(2)))),
    "gelu by tanh": lambda x: 0.5 * x * (1 + tf.tanh(0.79788456 * (x + 0.044715 * tf.pow(x, 3)))),
    "hard_sigmoid by relu6": lambda x: tf.nn.relu6(x + 3) / 6,
    "hard_sigmoid by clip": lambda x: tf.clip_by_value(x / 6 + 0.5, 0.0, 1.0),
    "hard_sigmoid by maximum": lambda x: tf.maximum(tf.minimum(0.2 * x + 0.5, 1.0), 0.0),
    "hard_swish by minimum": lambda x: x * tf.minimum(tf.nn.relu(x + 3.0), 6.0) / 6.0,
    "elu by where": lambda x: tf.where(x > 0, x, tf.exp(x) - 1),
    "threshold by cast": lambda x: x * tf.cast(x > 0.5, tf.float32),
    "root": lambda x: tf.sqrt(x * x + 1.0) - 1.0,
    "snake": lambda x: x + tf.sin(x) ** 2,
    "custom layer": Snake(),
    "function of a layer's activation": lambda x: L.Activation(gate)(x) * x,
}


def _between(call: Callable[[Any], Any]) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, L.Conv2D(2, 1)(call(L.Conv2D(8, 3)(inputs))))


def _sqnr(reference: Any, other: Any) -> float:
    return core.sqnr_db(np.ravel(reference), np.ravel(other))


def _check(model: keras.Model, x: Any, least: float = 25.0) -> tuple[keras.Model, bytes]:
    """Quantise and export; the file has no float operation, equals the QAT model, and both come close to the model."""
    quantized, reports = core.quantize(model, _QAT, x)
    data = core.export_tflite(quantized, _QAT)
    profile = core.profile_tflite(data)
    assert profile.float_ops == 0
    assert profile.requantize_ops == 0
    assert not [report.path for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    assert _sqnr(core.predict(quantized, x), core.predict(data, x)) >= 60.0
    assert _sqnr(core.predict(model, x), core.predict(data, x)) >= least
    return quantized, data


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    # The rules for leaky_relu and hard_sigmoid keep int8 operations of TFLite's own, which round more than once.
    model = _between(L.Conv2D(8, 1, activation=ACTIVATIONS[name]))
    quantized, reports = core.quantize(model, _QAT, _IMAGES)
    assert not [report.path for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    data = core.export_tflite(quantized, _QAT)
    assert core.profile_tflite(data).float_ops == 0
    assert _sqnr(core.predict(quantized, _IMAGES), core.predict(data, _IMAGES)) >= 60.0
    assert _sqnr(core.predict(model, _IMAGES), core.predict(data, _IMAGES)) >= 25.0


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str) -> None:
    _check(_between(CALLS[name]), _IMAGES)


#: Functions with jumps: where the QAT model's float sum and the file's integer sum differ, so does the function.
_JUMPS: dict[str, Callable[[Any], Any]] = {
    "sign": tf.sign,
    "floor": tf.floor,
    "ceil": tf.math.ceil,
    "round": tf.round,
    "step": lambda x: tf.cast(x > 0.5, tf.float32),
}


@pytest.mark.parametrize("name", [*_JUMPS, *CALLS])
def test_each_int8_value_gives_the_result_of_the_model(name: str) -> None:
    inputs = keras.Input((16,))
    model = keras.Model(inputs, (_JUMPS | CALLS)[name](inputs))
    quantized, reports = core.quantize(model, _QAT, _LEVELS)
    data = core.export_tflite(quantized, _QAT)
    assert core.profile_tflite(data).float_ops == 0
    ours, theirs = core.predict(quantized, _LEVELS), core.predict(data, _LEVELS)
    step = np.ptp(ours) / 255
    if any("table of 256 entries" in report.reason for report in reports):
        np.testing.assert_allclose(ours, theirs, atol=step / 100)
    else:
        np.testing.assert_allclose(ours, theirs, atol=step * 1.5)


def _images_of(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(1).normal(size=(16, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(6,), (5, 3), (6, 6, 2), (4, 4, 4, 2)])
def test_tensors_of_any_rank(shape: tuple[int, ...]) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    _check(keras.Model(inputs, L.Dense(3)(L.Dense(4, activation="softplus")(inputs))), _images_of(shape))


def test_one_dimensional_convolutions() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 3))
    x = L.BatchNormalization()(L.Conv1D(4, 3, activation="mish")(inputs))
    _check(keras.Model(inputs, L.Conv1D(2, 3)(tf.math.softplus(x))), _images_of((12, 3)))


def test_input_and_output_of_the_model() -> None:
    inputs = keras.Input((16,))
    _check(keras.Model(inputs, [tf.nn.selu(inputs), tf.math.softplus(inputs)]), _LEVELS)


def test_after_a_sum_and_several_on_one_tensor() -> None:
    def call(x: Any) -> Any:
        total = x + L.Conv2D(8, 1)(x)
        return L.Concatenate()([tf.nn.selu(total), tf.sin(total), total, tf.nn.selu(total)])

    _check(_between(call), _IMAGES)


@pytest.mark.parametrize("make", [lambda: L.Activation(tf.nn.selu), Snake], ids=["activation", "custom layer"])
def test_a_shared_layer_has_a_table_for_each_call(make: Callable[[], Any]) -> None:
    def call(x: Any) -> Any:
        shared = make()
        return shared(L.Conv2D(8, 1)(shared(x * 3.0)))

    _, data = _check(_between(call), _IMAGES)
    assert core.profile_tflite(data).op_counts["GATHER"] == 2


def test_a_nested_model_that_is_called_twice() -> None:
    keras.utils.set_random_seed(0)
    inside = keras.Input((8, 8, 4))
    block = keras.Model(inside, tf.nn.selu(L.Conv2D(4, 1)(inside)), name="block")
    inputs = keras.Input((8, 8, 4))
    _, data = _check(keras.Model(inputs, L.Conv2D(2, 1)(block(block(inputs)))), _IMAGES)
    assert core.profile_tflite(data).op_counts["GATHER"] == 2


def test_a_logarithm_of_a_table_reads_it_unrounded() -> None:
    model = _between(lambda x: tf.math.log(tf.reduce_sum(tf.math.softplus(x), -1, keepdims=True) + 1e-5))
    quantized, reports = core.quantize(model, _QAT, _IMAGES)
    assert [report for report in reports if "diverges at 0" in report.reason]
    data = core.export_tflite(quantized, _QAT)
    assert _sqnr(core.predict(quantized, _IMAGES), core.predict(data, _IMAGES)) >= 40.0


def test_the_report_names_the_table() -> None:
    _, reports = core.quantize(_between(L.Activation("selu", name="scaled")), _QAT, _IMAGES)
    (row,) = (row for row in reports if row.path == "scaled")
    assert (row.outcome, row.reason) == (Outcome.QUANTIZED, "output int8, computed by a table of 256 entries")


def test_one_table_for_calls_that_belong_together() -> None:
    _, data = _check(_between(lambda x: x * tf.tanh(tf.math.softplus(x))), _IMAGES)
    assert core.profile_tflite(data).op_counts == {"ADD": 1, "CAST": 1, "CONV_2D": 2, "GATHER": 1}


def test_elu_is_one_operation() -> None:
    _, data = _check(_between(tf.nn.elu), _IMAGES)
    assert core.profile_tflite(data).op_counts == {"CONV_2D": 2, "ELU": 1}


def test_a_relu_stays_fused_into_its_convolution() -> None:
    _, data = _check(_between(lambda x: tf.sin(tf.nn.relu(x))), _IMAGES)
    assert core.profile_tflite(data).op_counts == {"ADD": 1, "CAST": 1, "CONV_2D": 2, "GATHER": 1}


def test_tables_are_no_weights_and_equal_ones_are_stored_once() -> None:
    inputs = keras.Input((16,))
    model = keras.Model(inputs, [tf.nn.selu(inputs), tf.nn.selu(inputs)])
    _, data = _check(model, _LEVELS)
    assert core.profile_tflite(data).weight_sizes == {}
    assert len(data) < 4000


def test_a_large_model_keeps_its_weights() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((256,))
    model = keras.Model(inputs, L.Dense(8)(L.Dense(256, activation="selu")(inputs)))
    _, data = _check(model, _images_of((256,)))
    assert sum(core.profile_tflite(data).weight_sizes.values()) == 256 * 264


def test_a_layer_that_the_scope_excludes_stays_in_float() -> None:
    recipe = core.recipes.decode("wi8_ai8")
    scope = recipe.quantization.scope.model_copy(update={"exclude": ["scaled"]})
    quantization = recipe.quantization.model_copy(update={"scope": scope})
    recipe = recipe.model_copy(update={"quantization": quantization})
    quantized, _ = core.quantize(_between(L.Activation("selu", name="scaled")), recipe, _IMAGES)
    data = core.export_tflite(quantized, recipe)
    assert core.profile_tflite(data).float_ops > 0
    assert _sqnr(core.predict(quantized, _IMAGES), core.predict(data, _IMAGES)) >= 60.0


def test_a_function_that_is_not_finite_stays_in_float() -> None:
    # 0 is in every range, and the logarithm of 0 is infinite.
    x = np.abs(_LEVELS) + 1.0
    inputs = keras.Input((16,))
    quantized, _ = core.quantize(keras.Model(inputs, L.Activation(lambda x: tf.math.log(x) + 1.0)(inputs)), _QAT, x)
    data = core.export_tflite(quantized, _QAT)
    assert core.profile_tflite(data).float_ops > 0
    assert _sqnr(core.predict(quantized, x), core.predict(data, x)) >= 40.0


def test_per_layer_figures_find_the_tables() -> None:
    model = _between(lambda x: L.Activation("selu", name="scaled")(x * tf.tanh(tf.math.softplus(x))))
    quantized, data = _check(model, _IMAGES)
    rows = core.layer_sqnr(model, quantized, data, _IMAGES)
    tables = [row for row in rows if row.class_name in {"Pointwise", "Activation"}]
    assert len(tables) == 2
    assert all(row.qat_to_tflite_db is not None and row.qat_to_tflite_db >= 45.0 for row in tables)


@pytest.mark.parametrize("suffix", ["", ".h5", ".keras"])
def test_a_saved_model_gives_the_same_file(tmp_path: Path, suffix: str) -> None:
    model = _between(lambda x: L.Conv2D(8, 1, activation=gate)(x / (1 + tf.abs(x))) + tf.nn.silu(x, beta=1.5))
    quantized, data = _check(model, _IMAGES)
    core.save_model(quantized, tmp_path / f"model{suffix}")
    loaded = core.load_model(tmp_path / f"model{suffix}")
    assert core.export_tflite(loaded, _QAT) == data


def test_a_saved_model_does_not_need_the_function(tmp_path: Path) -> None:
    quantized, data = _check(_between(L.Activation(lambda x: tf.sin(x) * x)), _IMAGES)
    core.save_model(quantized, tmp_path / "model.keras")
    assert core.export_tflite(core.load_model(tmp_path / "model.keras"), _QAT) == data


def test_a_function_keeps_a_gradient_of_its_own() -> None:
    quantized, _ = core.quantize(_between(L.Activation(_own_gradient, name="own")), _QAT, _IMAGES)
    layer = next(layer for layer in quantized.layers if layer.name.endswith("own"))
    assert isinstance(layer.layer, L.Activation)
    assert layer.layer.activation is _own_gradient


@pytest.mark.parametrize("name", ["mish by hand", "softplus by hand", "gelu by tanh", "K.relu with a threshold"])
def test_normalised_models_keep_their_outputs_and_train(name: str) -> None:
    model = _between(CALLS[name])
    normal = core.normalize(model)
    np.testing.assert_allclose(normal(_IMAGES), model(_IMAGES), atol=1e-5)
    quantized, _ = core.quantize(model, _QAT, _IMAGES)
    quantized.compile("sgd", "mse")
    before = [weight.numpy() for weight in quantized.trainable_weights]
    quantized.fit(_IMAGES, np.ones((16, 6, 6, 2)), verbose=0)
    assert all(
        np.any(old != new) for old, new in zip(before, map(np.asarray, quantized.trainable_weights), strict=True)
    )


@pytest.mark.parametrize("name", ["mish by hand", "softplus by hand", "K.relu with a threshold"])
def test_ptq_comes_as_close_as_before(name: str) -> None:
    model = _between(CALLS[name])
    data = core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), _IMAGES)
    assert _sqnr(core.predict(model, _IMAGES), core.predict(data, _IMAGES)) >= 27.0


def test_the_layer_calls_functions_of_elements_only() -> None:
    with pytest.raises(UnsupportedModelError, match=r"io\.write_file"):
        Pointwise([{"function": "io.write_file", "args": ["x", "y"], "kwargs": {}}])


_WEIGHT = tf.Variable(1.0)


@pytest.mark.parametrize(
    "function",
    [
        tf.nn.softmax,
        lambda x: x * tf.reduce_mean(x),
        lambda x: x * _WEIGHT,
        lambda x: x + tf.random.normal([1]),
        lambda x: x + tf.constant([1.0, 2.0, 3.0]),
        lambda x: x[..., ::-1],
        lambda x: x * tf.cast(tf.shape(x)[-1], tf.float32),
        lambda x: tf.nn.dropout(x, 0.5),
        lambda x: x > 0,
        lambda x: x.numpy(),
    ],
)
def test_functions_of_more_than_the_element(function: Callable[[Any], Any]) -> None:
    assert not is_elementwise(function)
