"""Patterns of packages with architectures, each as a small layer: int8 throughout, and the numbers stay right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed

L = keras.layers
K = keras.backend
QAT = core.recipes.decode("wi8_ai8")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6, 8)).astype(np.float32)


def _flat(value: Any) -> np.ndarray:
    return np.ravel(np.asarray(value, np.float32))


def _int8(model: Any, x: np.ndarray, *, least_db: float = 20.0) -> core.TFLiteProfile:
    """The file's profile; the file is close to the float model, and as good as equal to the QAT model."""
    expected = _flat(model.predict(x, verbose=0))
    assert np.allclose(_flat(core.normalize(model).predict(x, verbose=0)), expected, rtol=1e-3, atol=1e-4)
    quantized, _ = core.quantize(model, QAT, calibration=x)
    data = core.export_tflite(quantized, QAT)
    assert core.sqnr_db(expected, _flat(core.predict(data, x))) > least_db
    assert core.sqnr_db(_flat(quantized.predict(x, verbose=0)), _flat(core.predict(data, x))) > 30.0
    return core.profile_tflite(data)


def _between(compute: Callable[[Any], Any], shape: tuple[int, ...] = (6, 8)) -> Any:
    inputs = keras.Input(shape)
    return keras.Model(inputs, L.Dense(3)(compute(L.Dense(8)(inputs))))


def _only_int8(profile: core.TFLiteProfile) -> bool:
    return profile.float_ops == 0 and profile.requantize_ops == 0


@keras.saving.register_keras_serializable("reach")
class FrozenNormalization(L.BatchNormalization):
    """Always in inference, as packages freeze it."""

    def __init__(self, freeze: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.freeze = freeze
        self.trainable = not freeze

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return super().call(*args, **(kwargs | {"training": False} if self.freeze else kwargs))


@keras.saving.register_keras_serializable("reach")
class SameConvolution(L.Conv1D):
    """Other default arguments."""

    def __init__(self, filters: int, kernel_size: int = 3, padding: str = "same", **kwargs: Any) -> None:
        super().__init__(filters, kernel_size, padding=padding, **kwargs)


@keras.saving.register_keras_serializable("reach")
class Doubled(L.Dense):
    """Not what its base computes."""

    def call(self, inputs: Any) -> Any:
        return 2.0 * super().call(inputs)


@keras.saving.register_keras_serializable("reach")
class Positions(L.Layer):
    """A table of positions, looked up by constants."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense, self.table = L.Dense(8), L.Embedding(6, 8)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs) + self.table(tf.range(6))


@pytest.mark.parametrize("freeze", [True, False])
def test_a_derived_normalization_is_folded_and_stays_frozen(freeze: bool) -> None:
    layer = FrozenNormalization(freeze)
    model = _between(layer)
    layer.set_weights([RNG.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    assert _only_int8(_int8(model, X))
    assert len(core.normalize(model).trainable_weights) == len(model.trainable_weights)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [SameConvolution(5), Doubled(8), Positions()], ids=lambda layer: type(layer).__name__)
def test_derived_layers_and_tables_of_positions_are_int8(layer: Any) -> None:
    model = _between(layer)
    assert _only_int8(_int8(model, X))
    assert len(core.normalize(model).trainable_weights) >= len(model.trainable_weights)


def test_a_derived_layer_with_another_call_is_not_taken_for_its_base() -> None:
    names = [type(layer).__name__ for layer in core.normalize(_between(SameConvolution(5))).layers]
    assert "Conv1D" in names
    doubled = _between(Doubled(8, use_bias=False))
    assert np.allclose(core.normalize(doubled).predict(X, verbose=0), doubled.predict(X, verbose=0), atol=1e-5)


def _softmax(scores: Any, small: float, *, shifted: bool) -> Any:
    scores = scores - tf.reduce_max(scores, -1, keepdims=True) if shifted else scores
    exponentials = tf.exp(scores)
    return exponentials / (tf.reduce_sum(exponentials, axis=-1, keepdims=True) + small)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "identity": L.Lambda(lambda x: x),
    "softmax over a named axis": lambda x: tf.nn.softmax(x, axis=-1),
    "softmax over another axis": lambda x: tf.nn.softmax(x, axis=1),
    "softmax layer over another axis": L.Softmax(axis=1),
    "softmax by hand": lambda x: _softmax(x, 1e-7, shifted=True),
    "softmax without maximum": lambda x: _softmax(x, 0.0, shifted=False),
    "division by a root": lambda x: (x - K.mean(x, -1, True)) / K.sqrt(K.var(x, -1, True) + 1e-3),
    "product with an inverse root": lambda x: x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_by_hand_are_int8(name: str) -> None:
    assert _only_int8(_int8(_between(FUNCTIONS[name]), X))


def test_a_large_addend_is_no_softmax() -> None:
    model = _between(lambda x: _softmax(x, 0.5, shifted=True))
    assert np.allclose(core.normalize(model).predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)


def test_a_subtracted_mask_is_a_mask() -> None:
    scores, mask = keras.Input((6, 8)), keras.Input((1, 8))
    weights = _softmax(L.Dense(8)(scores) - 10000.0 * (1.0 - tf.cast(mask > 0.5, tf.float32)), 1e-7, shifted=True)
    model = keras.Model([scores, mask], L.Dense(3)(weights))
    x = [X, RNG.integers(0, 2, (32, 1, 8)).astype(np.float32)]
    x[1][:, :, 0] = 1.0
    quantized, _ = core.quantize(model, QAT, calibration=x)
    found = core.predict(core.export_tflite(quantized, QAT), x)
    assert core.sqnr_db(_flat(model.predict(x, verbose=0)), _flat(found)) > 20.0


def test_a_mean_over_one_position_is_a_reshape() -> None:
    images = RNG.normal(size=(32, 4, 4, 3)).astype(np.float32)
    inputs = keras.Input((4, 4, 3))
    features = L.Conv2D(8, 4, activation="relu")(inputs)
    gate = L.Conv2D(8, 1, activation="sigmoid")(L.GlobalAveragePooling2D()(features)[:, None, None, :])
    assert _only_int8(_int8(keras.Model(inputs, L.Flatten()(L.Multiply()([features, gate]))), images))


INDICES = RNG.integers(0, 100, (32, 6)).astype(np.float32)


def _of_indices(compute: Callable[[Any], Any]) -> Any:
    inputs = keras.Input((6,))  # float32, as by default
    return keras.Model(inputs, L.Dense(3)(compute(inputs)))


def test_words_in_a_float_input_stay_the_same_words() -> None:
    profile = _int8(_of_indices(lambda i: L.Flatten()(L.Embedding(100, 8)(i))), INDICES)
    assert _only_int8(profile)


@pytest.mark.parametrize(
    "compute",
    [
        lambda i: L.Flatten()(L.Embedding(100, 8)(i[:, :5] + 0.0)),
        lambda i: tf.reduce_sum(tf.one_hot(tf.cast(i, tf.int32), 100), 1),
        lambda i: L.Concatenate()([L.Flatten()(L.Embedding(100, 8)(i[:, :2])), L.Dense(4)(i[:, 2:])]),
    ],
    ids=["computed", "one hot", "beside numbers"],
)
def test_numbers_that_are_looked_up_are_not_rounded(compute: Callable[[Any], Any]) -> None:
    _int8(_of_indices(compute), INDICES)


def test_words_in_a_float_input_stay_the_same_words_in_ptq() -> None:
    model = _of_indices(lambda i: L.Flatten()(L.Embedding(100, 8)(i)))
    data = core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), calibration=INDICES)
    assert core.sqnr_db(_flat(model.predict(INDICES, verbose=0)), _flat(core.predict(data, INDICES))) > 20.0


def test_a_cast_at_the_end_keeps_the_layers_before_it_int8() -> None:
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, tf.cast(tf.clip_by_value(L.Dense(3)(inputs) * 20.0, 0.0, 255.0), tf.int32))
    quantized, reports = core.quantize(model, QAT, calibration=X)
    profile = core.profile_tflite(core.export_tflite(quantized, QAT))
    assert profile.int8_mac_fraction == 1.0
    assert {str(report.outcome) for report in reports if report.class_name == "Dense"} == {"quantized"}


def test_a_file_whose_input_mixes_words_and_numbers_is_what_its_recipe_says():
    """The input stays float, as int8 would change the words; the steps take the file."""
    set_seed(0)
    inputs = L.Input((6,))
    rows = L.Flatten()(L.Embedding(50, 8)(inputs[:, :2]))
    joined = L.Concatenate()([rows, L.Dense(8, activation="relu")(inputs[:, 2:])])
    model = keras.Model(inputs, L.Dense(3)(joined))
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 50, (64, 2)), rng.normal(size=(64, 4))], axis=1).astype(np.float32)
    recipe = core.recipes.decode("wi8_ai8")
    quantized, report = core.quantize(model, recipe, x)
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert profile.input_dtypes == ("float32",)
    core.require_recipe(profile, recipe, report)
    assert core.sqnr_db(core.predict(quantized, x), core.predict(data, x)) > 30.0
