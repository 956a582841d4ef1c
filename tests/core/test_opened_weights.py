"""Weights of layers that are opened: shared, frozen and regularised as before; the user's model is left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core import keras

pytestmark = pytest.mark.slow

L = keras.layers
QAT, PTQ = core.recipes.decode("wi8_ai8"), core.recipes.decode("wi8_ai8_ptq")
X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)


class Product(L.Layer):
    """A product with a weight, by hand."""

    def __init__(self, regularizer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.regularizer = regularizer

    def build(self, input_shape: Any) -> None:
        self.w = self.add_weight("w", (input_shape[-1], 8), regularizer=self.regularizer)
        self.all = [self.w]
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return tf.matmul(inputs, self.w)


def _trained(model: Any) -> int:
    return int(sum(np.prod(weight.shape) for weight in model.trainable_weights))


def test_a_shared_layer_keeps_one_weight() -> None:
    first, second = keras.Input((8,)), keras.Input((8,))
    layer = Product(regularizer=keras.regularizers.L2(0.1))
    model = keras.Model([first, second], [layer(first), layer(second)])
    flat = core.normalize(model)
    assert _trained(flat) == _trained(model)
    assert np.isclose(float(sum(flat.losses)), float(sum(model.losses)))


def test_a_frozen_layer_stays_frozen() -> None:
    inputs = keras.Input((8,))
    layer = Product()
    model = keras.Model(inputs, L.Dense(2)(layer(inputs)))
    layer.trainable = False
    assert _trained(core.normalize(model)) == _trained(model)


@pytest.mark.parametrize("size", [1, 8])
def test_a_weight_in_a_product_of_elements_keeps_its_number_and_regulariser(size: int) -> None:
    class Gain(L.Layer):
        def build(self, input_shape: Any) -> None:
            self.gain = self.add_weight("gain", (size,), initializer="ones", regularizer=keras.regularizers.L2(0.1))
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.gain

    inputs = keras.Input((8,))
    model = keras.Model(inputs, Gain()(inputs))
    flat = core.normalize(model)
    assert _trained(flat) == size
    assert np.isclose(float(sum(flat.losses)), float(sum(model.losses)))


def test_a_masked_kernel_stays_masked() -> None:
    class Masked(Product):
        def call(self, inputs: Any) -> Any:
            return tf.matmul(inputs, self.w * np.tril(np.ones((8, 8), np.float32)))

    inputs = keras.Input((8,))
    quantized, _ = core.quantize(keras.Model(inputs, Masked()(inputs)), QAT, X)
    quantized.compile("sgd", "mse")
    quantized.fit(X, np.ones((16, 8)), verbose=0)
    changed = X.copy()
    changed[:, 0] += 1.0  # the first input reaches the first output only
    before, after = quantized.predict(X, verbose=0), quantized.predict(changed, verbose=0)
    assert np.array_equal(before[:, 1:], after[:, 1:])
    assert np.any(before[:, 0] != after[:, 0])


def test_a_weight_whose_value_is_read_is_not_made_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(Product):
        def call(self, inputs: Any) -> Any:
            return tf.matmul(inputs, self.trainable_weights[0] * 2.0)

    monkeypatch.setitem(keras.saving.get_custom_objects(), "Doubled", Doubled)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, Doubled()(inputs))
    names = [type(layer).__name__ for layer in core.normalize(model).layers]
    assert "Doubled" in names


def test_the_users_model_is_left_as_it_was() -> None:
    class Counts(L.Layer):
        def build(self, input_shape: Any) -> None:
            self.count = self.add_weight("count", (), initializer="zeros", trainable=False)
            self.aux = L.Dense(8)
            super().build(input_shape)

        def call(self, inputs: Any, training: Any = None) -> Any:
            if training:
                inputs = self.aux(inputs)
            self.last = inputs
            self.count.assign_add(1.0)
            return inputs * 2.0

    keras.saving.get_custom_objects()["Counts"] = Counts
    inputs = keras.Input((8,))
    layer = Counts()
    model = keras.Model(inputs, L.Dense(2)(layer(inputs)))
    count, held = float(layer.count), len(layer.weights)
    core.normalize(model)
    assert float(layer.count) == count
    assert len(layer.weights) == held


def test_a_mask_by_position_is_seen() -> None:
    inputs, mask = keras.Input((9, 9)), keras.Input((9, 9), dtype="bool")
    model = keras.Model([inputs, mask], L.Softmax()(L.Dense(9)(inputs), mask))
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(32, 9, 9)).astype(np.float32), np.arange(9) < rng.integers(2, 10, (32, 9, 1))]
    expected = model.predict(x, verbose=0)
    for recipe in (QAT, PTQ):
        net = core.quantize(model, recipe, x)[0] if recipe is QAT else model
        assert core.sqnr_db(expected, core.predict(core.export_tflite(net, recipe, x), x)) > 20.0


def test_a_function_of_a_function_that_is_an_output_too() -> None:
    inputs = keras.Input((8,))
    scale = tf.math.softplus(L.Dense(4)(inputs))
    model = keras.Model(inputs, [L.Dense(2)(scale), tf.math.log(scale + 1.0), tf.sin(scale)])
    quantized, _ = core.quantize(model, QAT, X)
    data = core.export_tflite(quantized, QAT)
    for one, other in zip(quantized.predict(X, verbose=0), core.predict(data, X), strict=True):
        assert core.sqnr_db(one, other) > 30.0


@pytest.mark.parametrize("shape", [(9,), (1, 9)])
def test_a_mask_of_a_float_input_is_recognised(shape: tuple[int, ...]) -> None:
    scores, words = keras.Input((9, 9)), keras.Input(shape)
    mask = tf.cast(tf.equal(words, 0.0), tf.float32)
    mask = mask[:, None, :] if len(shape) == 1 else mask
    model = keras.Model([scores, words], tf.nn.softmax(L.Dense(9)(scores) + mask * -1e9))
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(32, 9, 9)).astype(np.float32), rng.integers(0, 3, (32, *shape)).astype(np.float32)]
    x[1][..., 0] = 1.0
    file = core.export_tflite(core.quantize(model, QAT, x)[0], QAT)
    assert core.sqnr_db(model.predict(x, verbose=0), core.predict(file, x)) > 20.0


@pytest.mark.parametrize("epsilon", [1e-12, 1.0])
def test_unit_length_of_small_values(epsilon: float) -> None:
    inputs = keras.Input((8,))
    model = keras.Model(inputs, tf.math.l2_normalize(inputs, axis=-1, epsilon=epsilon))
    small = X * 1e-4
    flat = core.normalize(model)
    assert np.allclose(flat.predict(small, verbose=0), model.predict(small, verbose=0), atol=1e-5)


def test_values_without_an_axis_of_channels() -> None:
    inputs = keras.Input((8,))
    model = keras.Model(inputs, tf.squeeze(L.Dense(1)(inputs), -1) * 2.0 + 1.0)
    file = core.export_tflite(core.quantize(model, QAT, X)[0], QAT)
    assert core.sqnr_db(model.predict(X, verbose=0), core.predict(file, X)) > 25.0


def test_weights_of_one_name() -> None:
    class Variables(L.Layer):
        def build(self, input_shape: Any) -> None:
            self.a, self.b = tf.Variable(tf.ones(8)), tf.Variable(tf.ones(8))
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.a + self.b

    inputs = keras.Input((8,))
    _, reports = core.quantize(keras.Model(inputs, L.Dense(2)(Variables()(inputs))), QAT, X)
    assert not [report for report in reports if "float" in str(report.outcome)]
