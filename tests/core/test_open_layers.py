"""Hand-written layers, Lambdas, subclassed models and TimeDistributed: opened, pruned within, int8 throughout."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras
from tfmot_ops.errors import UnsupportedModelError

pytestmark = pytest.mark.slow

L = keras.layers
K = keras.backend
QAT, SPARSE = core.recipes.decode("wi8_ai8"), core.recipes.decode("sparse50_wi8_ai8")
#: Everything that makes a model, and the shape of one sample of each of its inputs.
Made = tuple[Any, list[tuple[int, ...]]]


def _samples(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(16, *shape)).astype(np.float32) for shape in shapes]


def _with(layer: Any, *, classes: int = 3) -> Made:
    """A Dense, the layer on [N, 9, 8], and a Dense."""
    inputs = keras.Input((9, 8))
    return keras.Model(inputs, L.Dense(classes)(L.Flatten()(layer(L.Dense(8)(inputs))))), [(9, 8)]


class Learned(L.Layer):
    """A layer whose weights, by name and shape, and function are given."""

    def __init__(self, function: Callable[..., Any], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.shapes = shapes

    def build(self, input_shape: Any) -> None:
        initial = keras.initializers.RandomNormal(stddev=0.5, seed=1)
        self.held = {name: self.add_weight(name, shape, initializer=initial) for name, shape in self.shapes.items()}
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.function(inputs, *self.held.values())


def _learned(function: Callable[..., Any], **shapes: tuple[int, ...]) -> Callable[[], Made]:
    return lambda: _with(Learned(function, **shapes))


def _class_token() -> Made:
    def put_first(x: Any, token: Any) -> Any:
        return tf.concat([tf.broadcast_to(token, [tf.shape(x)[0], 1, 8]), x], 1)

    return _with(Learned(put_first, token=(1, 1, 8)))


def _tiled_token() -> Made:
    def put_first(x: Any, token: Any) -> Any:
        return tf.concat([tf.tile(token, [tf.shape(x)[0], 1, 1]), x], 1)

    return _with(Learned(put_first, token=(1, 1, 8)))


def _bias_table() -> Made:
    steps = np.arange(9)
    index = tf.constant(steps[:, None] - steps[None] + 8)

    def attend(x: Any, table: Any) -> Any:
        scores = tf.matmul(x, x, transpose_b=True) * 0.3 + tf.gather(table, index)
        return tf.matmul(tf.nn.softmax(scores), x)

    return _with(Learned(attend, table=(17,)))


def _hand_convolutions() -> Made:
    def convolve(x: Any, kernel: Any, depthwise: Any) -> Any:
        x = tf.nn.relu(tf.nn.conv2d(x, kernel, strides=2, padding="SAME"))
        x = tf.nn.depthwise_conv2d(x, depthwise, [1, 1, 1, 1], "SAME")
        return K.conv2d(x, tf.ones((1, 1, 6, 4)) * 0.3, padding="same")

    inputs = keras.Input((8, 8, 3))
    x = Learned(convolve, kernel=(3, 3, 3, 6), depthwise=(3, 3, 6, 1))(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x))), [(8, 8, 3)]


def _standardized_kernel() -> Made:
    def convolve(x: Any, kernel: Any) -> Any:
        mean, variance = tf.nn.moments(kernel, [0, 1], keepdims=True)
        return tf.nn.conv1d(x, (kernel - mean) / tf.sqrt(variance + 1e-5), 1, "SAME")

    return _with(Learned(convolve, kernel=(3, 8, 4)))


class MakesAdd(L.Layer):
    def build(self, input_shape: Any) -> None:
        self.conv = L.Conv1D(8, 3, padding="causal")
        self.conv.build(input_shape)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return keras.layers.add([inputs, L.Dropout(0.1)(self.conv(inputs))])


class Shifted(L.Layer):
    def call(self, inputs: Any, mask: Any = None) -> Any:
        return inputs + mask


class HandsVariableOn(L.Layer):
    def build(self, input_shape: Any) -> None:
        self.inner = Shifted()
        self.offsets = tf.Variable(np.linspace(-1, 1, 72).reshape(9, 8).astype(np.float32), trainable=False)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs, mask=self.offsets)


class Mixes(L.Layer):
    def build(self, input_shape: Any) -> None:
        self.dense = L.Dense(8)
        super().build(input_shape)

    def call(self, inputs: Any, other: Any, scale: float = 1.0) -> Any:
        return {"sum": self.dense(inputs) + other * scale, "pair": (inputs, other)}


def _second_tensor(**by_name: Any) -> Callable[[], Made]:
    def make() -> Made:
        first, second = keras.Input((9, 8)), keras.Input((9, 8))
        mixed = Mixes()(first, other=second, **by_name) if by_name else Mixes()(first, second)
        x = mixed["sum"] * mixed["pair"][1]
        return keras.Model([first, second], L.Dense(3)(L.Flatten()(x))), [(9, 8), (9, 8)]

    return make


def _shared() -> Made:
    layer = Learned(lambda x, w, g: tf.nn.relu(x @ w) * g, w=(8, 8), g=(8,))
    return _with(lambda x: layer(layer(x)))


class Block(keras.Model):
    """A subclassed model with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = L.Conv1D(8, 3, padding="same"), L.BatchNormalization(), L.Dropout(0.2)

    def build(self, input_shape: Any) -> None:
        self.gain = self.add_weight("gain", (8,), initializer="ones")
        super().build(input_shape)

    def call(self, inputs: Any, training: Any = None) -> Any:
        x = self.norm(self.conv(inputs), training=training) * self.gain
        return self.drop(tf.nn.relu(x), training=training) + inputs


class Net(keras.Model):
    """A subclassed model of layers, functions and another subclassed model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = L.Dense(8), Block(), L.Dense(3)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.head(tf.reduce_mean(self.block(self.stem(inputs), training=training), axis=1))


def _subclassed() -> Made:
    model = Net()
    model(np.zeros((2, 9, 8), np.float32))
    return model, [(9, 8)]


def _built_only() -> Made:
    model = Net()
    model.build((None, 9, 8))
    return model, [(9, 8)]


def _lambdas() -> Made:
    inputs = keras.Input((9, 8))
    x = L.Lambda(lambda t: tf.nn.relu(t) * 0.5)(L.Dense(8)(inputs))
    x = L.Lambda(lambda t, axis: K.mean(t, axis=axis), arguments={"axis": 1})(x)
    x = L.Lambda(lambda pair: pair[0] + pair[1])([x, L.Dense(8)(x)])
    return keras.Model(inputs, L.Dense(3)(x)), [(9, 8)]


def _over_time(layer: Callable[[], Any]) -> Callable[[], Made]:
    def make() -> Made:
        inputs = keras.Input((4, 8, 8, 3))
        x = L.TimeDistributed(L.Flatten())(L.TimeDistributed(layer())(inputs))
        return keras.Model(inputs, L.Dense(3)(L.Flatten()(x))), [(4, 8, 8, 3)]

    return make


def _encoder() -> Any:
    return keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.MaxPooling2D()])


def _patches(size: int, stride: int, padding: str) -> Callable[[], Made]:
    def make() -> Made:
        inputs = keras.Input((8, 8, 3))
        x = tf.image.extract_patches(inputs, [1, size, size, 1], [1, stride, stride, 1], [1, 1, 1, 1], padding)
        return keras.Model(inputs, L.Conv2D(4, 1)(x)), [(8, 8, 3)]

    return make


CASES: dict[str, Callable[[], Made]] = {
    "positions": _learned(lambda x, p: x + p, p=(1, 9, 8)),
    "positions without a batch axis": _learned(lambda x, p: x + p, p=(9, 8)),
    "gain of each step": _learned(lambda x, g: x * g, g=(9, 1)),
    "weights in a list": _learned(lambda x, a, b: tf.nn.relu(tf.tensordot(x, a, (-1, 0))) + b, a=(8, 8), b=(8,)),
    "matmul": _learned(tf.matmul, w=(8, 5)),
    "matmul transposed": _learned(lambda x, w: tf.matmul(x, w, transpose_b=True), w=(5, 8)),
    "operator @": _learned(lambda x, w: x @ tf.cast(w, x.dtype), w=(8, 5)),
    "backend dot": _learned(K.dot, w=(8, 5)),
    "einsum": _learned(lambda x, w: tf.einsum("btc,cd->btd", x, w), w=(8, 5)),
    "normalised weight": _learned(lambda x, w: x @ (w / tf.norm(w, axis=0)), w=(8, 5)),
    "one weight in two products": _learned(lambda x, w: (x @ w) @ tf.transpose(w), w=(8, 5)),
    "looked up": _learned(lambda x, t: x + tf.nn.embedding_lookup(t, tf.argmax(x, -1)), t=(8, 8)),
    "token": _class_token,
    "tiled token": _tiled_token,
    "bias table": _bias_table,
    "convolutions": _hand_convolutions,
    "standardised kernel": _standardized_kernel,
    "makes layers in call": lambda: _with(MakesAdd()),
    "hands a variable on": lambda: _with(HandsVariableOn()),
    "second tensor": _second_tensor(),
    "second tensor by name": _second_tensor(scale=0.5),
    "called twice": _shared,
    "model in a model": lambda: _with(Block()),
    "subclassed": _subclassed,
    "subclassed, built only": _built_only,
    "lambdas": _lambdas,
    "convolution at each step": _over_time(lambda: L.Conv2D(4, 3, activation="relu")),
    "model at each step": _over_time(_encoder),
    "spectral normalisation": lambda: _with(L.SpectralNormalization(L.Dense(8))),
    "unit length": lambda: _with(L.UnitNormalization()),
    "unit length by function": lambda: _with(lambda x: tf.math.l2_normalize(x, axis=[1, 2])),
    "patches": _patches(2, 2, "VALID"),
    "overlapping patches": _patches(3, 2, "SAME"),
}


class ChangesItsKernel(L.Layer):
    """As wrappers for weight normalisation do: the inner layer's kernel is replaced during the call."""

    def build(self, input_shape: Any) -> None:
        self.inner = L.Dense(8)
        self.inner.build(input_shape)
        self.direction, self.length = self.inner.kernel, self.add_weight("length", (8,), initializer="ones")
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        self.inner.kernel = tf.nn.l2_normalize(self.direction, axis=0) * self.length
        self.kept = inputs
        return self.inner(inputs)


def test_a_layer_whose_call_replaces_a_kernel_computes_the_same_afterwards() -> None:
    model, shapes = _with(ChangesItsKernel())
    x = _samples(shapes)[0]
    layer, before = model.layers[2], model.predict(x, verbose=0)
    flat = core.normalize(model)
    assert np.allclose(flat.predict(x, verbose=0), before, atol=1e-5)
    assert not any(keras.backend.is_keras_tensor(value) for value in (layer.inner.kernel, layer.kept))


@pytest.mark.parametrize("make", CASES.values(), ids=list(CASES))
def test_is_int8_throughout_and_computes_the_same(make: Callable[[], Made], tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model, shapes = make()
    x = _samples(shapes)
    given = x if len(x) > 1 else x[0]
    before, after = (np.asarray(net(given, training=False)) for net in (model, core.normalize(model)))
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()

    stripped = core.strip(core.prune(model, SPARSE)[0])
    quantized, reports = core.quantize(stripped, SPARSE, given)
    assert [report for report in reports if report.outcome is Outcome.KEPT_FLOAT] == []
    quantized.compile("sgd", "mse")
    weights = [weight.numpy() for weight in quantized.trainable_weights]
    quantized.fit(given, np.ones_like(quantized(given)), verbose=0)
    moved = [np.any(old != new.numpy()) for old, new in zip(weights, quantized.trainable_weights, strict=True)]
    assert np.mean(moved) > 0.8  # a kernel whose gradient is 0 by chance stays
    file = core.export_tflite(quantized, SPARSE)
    profile = core.profile_tflite(file)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0), profile.op_counts
    assert core.sqnr_db(np.asarray(quantized(given)), core.predict(file, given)) >= 30.0

    core.save_model(quantized, tmp_path / "qat.h5")
    assert core.export_tflite(core.load_model(tmp_path / "qat.h5"), SPARSE) == file


def test_a_hand_written_kernel_is_pruned_and_trained() -> None:
    model, shapes = CASES["matmul"]()
    pruned, reports = core.prune(model, SPARSE)
    names = {report.path for report in reports if report.outcome is Outcome.PRUNED}
    assert any("matmul" in name for name in names)
    quantized, _ = core.quantize(core.strip(pruned), SPARSE, _samples(shapes)[0])
    assert len(core.assert_sparsity(quantized, SPARSE)) == 3


def test_a_weight_keeps_its_regulariser_and_being_frozen() -> None:
    class Positions(L.Layer):
        def build(self, input_shape: Any) -> None:
            self.moving = self.add_weight("moving", (1, 9, 8), regularizer=keras.regularizers.L2(0.1))
            self.fixed = self.add_weight("fixed", (9, 8), trainable=False, initializer="ones")
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return (inputs + self.moving) * self.fixed

    model, _ = _with(Positions())
    opened = core.normalize(model)
    assert np.isclose(float(sum(opened.losses)), float(sum(model.losses)))
    assert len(opened.trainable_weights) == len(model.trainable_weights)
    assert len(opened.non_trainable_weights) == len(model.non_trainable_weights)


def test_the_users_layer_is_left_as_it_was() -> None:
    model, shapes = CASES["weights in a list"]()
    x = _samples(shapes)[0]
    before = model.predict(x, verbose=0)
    layer = next(layer for layer in model.layers if isinstance(layer, Learned))
    core.quantize(model, QAT, x)
    assert all(isinstance(weight, tf.Variable) for weight in layer.held.values())
    assert len(layer.trainable_weights) == 2
    assert np.array_equal(model.predict(x, verbose=0), before)


def test_a_lambda_that_cannot_be_recorded_is_refused_by_name() -> None:
    inputs = keras.Input((9, 8))
    calls = itertools.count()
    x = L.Lambda(lambda t: t * float(next(calls)), name="counts")(inputs)
    with pytest.raises(UnsupportedModelError, match="counts"):
        core.quantize(keras.Model(inputs, L.Dense(3)(x)), QAT)


def test_a_subclassed_model_that_was_never_called_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="never called") as caught:
        core.quantize(Net(), QAT)
    assert "call the model on one batch" in str(caught.value)


def test_masked_attention_is_int8_and_masked_positions_do_not_count() -> None:
    keras.utils.set_random_seed(0)
    inputs, mask = keras.Input((9, 8)), keras.Input((9,), dtype="bool")
    x = L.MultiHeadAttention(2, 4)(inputs, inputs, attention_mask=mask[:, None, :])
    model = keras.Model([inputs, mask], L.Dense(3)(x))
    rng = np.random.default_rng(0)
    values, valid = rng.normal(size=(32, 9, 8)).astype(np.float32), np.arange(9) < rng.integers(3, 10, 32)[:, None]
    quantized, reports = core.quantize(model, QAT, [values, valid])
    assert [report for report in reports if report.outcome is Outcome.KEPT_FLOAT] == []
    file = core.export_tflite(quantized, QAT)
    profile = core.profile_tflite(file)
    assert (profile.int8_mac_fraction, profile.float_ops) == (1.0, 0), profile.op_counts
    expected = model.predict([values, valid], verbose=0)
    found = core.predict(file, [values, valid])
    assert core.sqnr_db(expected, found) >= 25.0
    # Other values at masked steps, within the calibrated range, change nothing at the other steps.
    other = np.where(valid[..., None], values, -values)
    steps = valid.nonzero()
    assert np.array_equal(core.predict(file, [other, valid])[steps], found[steps])
