"""Calls that TFLite has no int8 operation for, composed of calls that it has: statistics, roots, sums over windows.

Each test takes several calls as outputs of one model, as quantising and exporting cost more than the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import rebuild

pytestmark = pytest.mark.slow

L, K = keras.layers, keras.backend
QAT = core.recipes.decode("wi8_ai8")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6, 8)).astype(np.float32)
IMAGES = RNG.normal(size=(64, 4, 4, 6)).astype(np.float32)
TABLE = np.abs(RNG.normal(size=(6, 8))).astype(np.float32) + 0.5

Call = Callable[[Any], Any]


def _squash(x: Any, compute: Call) -> Any:
    """Of a capsule network, from the sum of squares."""
    return compute(tf.reduce_sum(tf.square(x), -1, keepdims=True))


def _squash_by_exponential(x: Any) -> Any:
    """Of Efficient-CapsNet (Mazzia et al. 2021, arXiv:2101.12491)."""
    norm = tf.norm(x, axis=-1, keepdims=True)
    return (1 - 1 / (tf.exp(norm) + 1e-20)) * (x / (norm + 1e-7))


def _response(x: Any) -> Any:
    """As in ConvNeXt V2."""
    norm = tf.norm(x, axis=-1, keepdims=True)
    return x * (norm / (tf.reduce_mean(norm, 1, keepdims=True) + 1e-6))


@keras.saving.register_keras_serializable("composed")
class Fusion(L.Layer):
    """The weighted sum of EfficientDet's BiFPN: weights divided by their sum."""

    def build(self, shapes: Any) -> None:
        self.parts = self.add_weight("parts", (len(shapes),), initializer="ones")

    def call(self, inputs: Any) -> Any:
        parts = tf.nn.relu(self.parts)
        return tf.reduce_sum([parts[i] * x for i, x in enumerate(inputs)], 0) / (tf.reduce_sum(parts) + 1e-4)


@keras.saving.register_keras_serializable("composed")
class GeneralizedMean(L.Layer):
    """Pooling [N, T, C] -> [N, C] with a learned exponent (Radenović et al. 2018, arXiv:1711.02512)."""

    def build(self, _: Any) -> None:
        self.power = self.add_weight("power", (), initializer=keras.initializers.Constant(2.0))

    def call(self, inputs: Any) -> Any:
        mean = tf.reduce_mean(tf.pow(tf.maximum(inputs, 1e-6), self.power), 1)
        return tf.pow(mean, 1 / self.power)


def _layer(kind: Any, *arguments: Any, **named: Any) -> Call:
    """A call of a layer that is made in the call, and not at import.

    Another test may reset Keras' numbers of layers in between, and two layers of a model would have one name.
    """

    def call(x: Any) -> Any:
        return kind(*arguments, **named)(x)

    return call


#: Kind -> (shape of an input, calls on it).
CALLS: dict[str, tuple[np.ndarray, dict[str, Call]]] = {
    "statistics": (
        X,
        {
            "reduce_std": lambda x: tf.math.reduce_std(x, 1),
            "reduce_std over all axes": lambda x: tf.math.reduce_std(x, [1, 2]),
            "reduce_variance": lambda x: tf.math.reduce_variance(x, -1),
            "K.std": lambda x: K.std(x, -1, True),
            "reduce_logsumexp": lambda x: tf.reduce_logsumexp(x, -1),
            "norm": lambda x: tf.norm(x, axis=-1),
            "norm of magnitudes": lambda x: tf.norm(x, ord=1, axis=1, keepdims=True),
            "reduce_euclidean_norm": lambda x: tf.math.reduce_euclidean_norm(x, 1),
            "linalg.normalize": lambda x: tf.linalg.normalize(x, axis=-1)[0],
        },
    ),
    "roots": (
        X,
        {
            "fractional power": lambda x: tf.nn.relu(x) ** 0.5,
            "generalised mean": lambda x: tf.pow(tf.reduce_mean(tf.pow(tf.maximum(x, 1e-6), 2.0), 1), 1 / 2),
            "generalised mean with a learned power": GeneralizedMean(),
            "root": lambda x: tf.sqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True)),
            "squash": lambda x: _squash(x, lambda n: x * n / (1 + n) / tf.sqrt(n + 1e-7)),
            "squash by a factor": lambda x: _squash(x, lambda n: n / (1 + n) / tf.sqrt(n + 1e-7) * x),
            "squash by a norm": lambda x: _squash(x, lambda n: x * (tf.norm(x, axis=-1, keepdims=True) / (1 + n))),
            "squash by an exponential": _squash_by_exponential,
            "division by a norm": lambda x: x / (tf.norm(x, axis=-1, keepdims=True) + 1e-7),
            "response normalisation": _response,
            "cosine": lambda x: tf.nn.l2_normalize(x, -1) * tf.nn.l2_normalize(x[:, ::-1], -1),
        },
    ),
    "images": (
        IMAGES,
        {
            "layer over all axes": _layer(L.LayerNormalization, axis=[1, 2, 3]),
            "layer over an image": _layer(L.LayerNormalization, axis=[1, 2]),
            "layer over rows": lambda x: L.LayerNormalization(axis=1)(tf.reshape(x, [-1, 16, 6])),
            "group of rows": _layer(L.GroupNormalization, 2, axis=1),
            "unit over several": _layer(L.UnitNormalization, axis=[1, 2]),
            "random height": _layer(L.RandomHeight, 0.2),
            "random width": _layer(L.RandomWidth, 0.2),
            "local response": lambda x: tf.nn.local_response_normalization(x, 2, alpha=0.5),
        },
    ),
    "windows": (
        X,
        {
            "cumsum": lambda x: tf.cumsum(x, 1),
            "cumsum of later ones": lambda x: tf.math.cumsum(x, -1, exclusive=True, reverse=True),
            "max_pool1d": lambda x: tf.nn.max_pool1d(x, 2, 2, "SAME"),
            "avg_pool1d": lambda x: tf.nn.avg_pool1d(x, 2, 2, "VALID"),
            "pool": lambda x: tf.nn.pool(x, [2], "AVG", strides=[2]),
            "crelu": tf.nn.crelu,
        },
    ),
    "constants": (
        X,
        {
            "log_softmax": tf.nn.log_softmax,
            "log_softmax over rows": lambda x: tf.nn.log_softmax(x, axis=1),
            "quotient": lambda x: x / TABLE,
            "scalar product": lambda x: tf.math.scalar_mul(0.3, x),
            "weighted sum": lambda x: Fusion()([x, x[:, ::-1]]),
        },
    ),
    "attention": (
        X,
        {
            "additive": lambda x: L.AdditiveAttention()([x, x[:, 1:]]),
            "additive without scale": lambda x: L.AdditiveAttention(use_scale=False)([x, x]),
            "concat": lambda x: L.Attention(score_mode="concat")([x, x]),
            "concat with scale": lambda x: L.Attention(use_scale=True, score_mode="concat")([x, x]),
            "scale": lambda x: L.Attention(use_scale=True)([x, x]),
            "causal": lambda x: L.Attention()([x, x], use_causal_mask=True),
            "causal by its old argument": lambda x: L.Attention(causal=True)([x, x]),
        },
    ),
}


def _model(kind: str) -> tuple[Any, np.ndarray]:
    x, calls = CALLS[kind]
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[1:])
    # Each call reads a tensor of its own, as the converter merges equal calls.
    found = [call(L.Dense(x.shape[-1])(inputs)) for call in calls.values()]
    return keras.Model(inputs, [L.Dense(3)(each if len(each.shape) > 1 else each[:, None]) for each in found]), x


def _decibels(kind: str, reference: Any, other: Any) -> dict[str, float]:
    pairs = zip(CALLS[kind][1], reference, other, strict=True)
    return {name: core.sqnr_db(np.ravel(one), np.ravel(two)) for name, one, two in pairs}


@pytest.mark.parametrize("kind", CALLS)
def test_composed_calls_are_int8_and_close(kind: str) -> None:
    model, x = _model(kind)
    expected = core.predict(model, x)
    steps = rebuild(normalize_graph(read_graph(model), for_qat=True))
    for one, two in zip(expected, core.predict(steps, x), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
    quantized, reports = core.quantize(model, QAT, x)
    assert [row.path for row in reports if row.outcome is Outcome.KEPT_FLOAT] == []
    data = core.export_tflite(quantized, QAT)
    profile = core.profile_tflite(data)
    assert (profile.float_ops, profile.requantize_ops) == (0, 0), profile.op_counts
    trained = core.predict(quantized, x)
    too_far = {name: db for name, db in _decibels(kind, expected, trained).items() if db < 28.0}
    assert not too_far
    assert {name: db for name, db in _decibels(kind, trained, core.predict(data, x)).items() if db < 30.0} == {}


def test_training_stays_finite_where_int8_rounds_to_zero(tmp_path: Path) -> None:
    """A root of 0 has an infinite slope; calibration sets a range in which the small samples are rounded to 0."""
    x = np.concatenate([X[:8], X[:8] * 1e-3])
    inputs = keras.Input((6, 8))
    values = L.Dense(8, use_bias=False)(inputs)
    root = tf.sqrt(tf.reduce_mean(tf.square(values), -1))
    lengths = [root, tf.math.reduce_std(values, -1), tf.norm(values, axis=1), GeneralizedMean(name="mean")(values)]
    model = keras.Model(inputs, tf.concat(lengths, 1))
    quantized, _ = core.quantize(model, QAT, x)
    quantized.compile(keras.optimizers.SGD(1e-2), "mse")
    (loss,) = quantized.fit(x, np.ones((16, 28)), verbose=0).history["loss"]
    assert np.isfinite(loss)
    before = [weight.numpy() for weight in model.trainable_weights]
    trained = [weight.numpy() for weight in quantized.trainable_weights]
    assert all(np.isfinite(weight).all() for weight in trained)
    assert all(np.any(old != new) for old, new in zip(before, trained, strict=True))
    data = core.export_tflite(quantized, QAT)
    assert core.sqnr_db(core.predict(quantized, x), core.predict(data, x)) > 30.0
    core.save_model(quantized, tmp_path / "model.keras")
    assert core.export_tflite(core.load_model(tmp_path / "model.keras"), QAT) == data


def test_functions_that_are_too_steep_stay_in_float() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    values = L.Dense(8)(inputs)
    sums = tf.reduce_sum(tf.nn.relu(values), -1, keepdims=True)
    steep = [tf.nn.relu(values) ** 0.1, tf.math.log(tf.nn.relu(values) + 1e-3), values / (sums + 1e-7)]
    model = keras.Model(inputs, [L.Dense(3)(each) for each in steep])
    quantized, reports = core.quantize(model, QAT, X)
    kept = [row.path for row in reports if row.outcome is Outcome.KEPT_FLOAT]
    assert {"tf.math.pow", "tf.math.log", "tf.math.truediv"} <= {path.rstrip("_0123456789") for path in kept}
    data = core.export_tflite(quantized, QAT)
    assert core.profile_tflite(data).float_ops > 0
    for one, two in zip(core.predict(model, X), core.predict(data, X), strict=True):
        assert core.sqnr_db(np.ravel(one), np.ravel(two)) > 18.0


def test_two_normalisations_that_are_added_can_be_exported() -> None:
    """The converter exchanges the reshapes behind them with the sum; before, it then refused the model."""
    inputs = keras.Input((6, 8))
    values = L.Dense(8)(inputs)
    model = keras.Model(inputs, L.Flatten()(L.Add()([_normalised(values), _normalised(values[:, ::-1])])))
    quantized, _ = core.quantize(model, QAT, X)
    data = core.export_tflite(quantized, QAT)
    assert core.profile_tflite(data).float_ops == 0
    assert core.sqnr_db(core.predict(quantized, X), core.predict(data, X)) > 30.0


def _normalised(values: Any) -> Any:
    layer = L.BatchNormalization()
    result = layer(tf.nn.relu(values))
    layer.set_weights([RNG.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return result
