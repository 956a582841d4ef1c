"""What public models write by hand: constant masks, attention pooling, losses in `call`, distances of vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras

L = keras.layers
QAT = core.recipes.decode("wi8_ai8")
RNG = np.random.default_rng(0)
SEQUENCE = RNG.normal(size=(16, 6, 8)).astype(np.float32)
CAUSAL = np.tri(6, dtype=np.float32)
#: Every second position may be read, so the mask is not causal.
BAND = np.float32(np.abs(np.subtract.outer(np.arange(6), np.arange(6))) % 2 == 0)


def _flat(value: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(part, np.float32)) for part in tf.nest.flatten(value)])


def _outputs(model: Any, x: Any) -> np.ndarray:
    """All outputs, without the time that `predict` takes to compile."""
    return _flat(model(tf.nest.map_structure(tf.convert_to_tensor, x), training=False))


def _quantized(model: Any, x: Any) -> Any:
    """The QAT model; it and the normalised model are close to the float model, and nothing stays in float."""
    expected = _outputs(model, x)
    assert np.allclose(_outputs(core.normalize(model), x), expected, rtol=1e-4, atol=1e-5)
    quantized, reports = core.quantize(model, QAT, x)
    assert [report.path for report in reports if report.outcome is Outcome.KEPT_FLOAT] == []
    assert core.sqnr_db(expected, _outputs(quantized, x)) > 25.0
    return quantized


def _int8(model: Any, x: Any) -> Any:
    """The QAT model, whose file is int8 throughout and close to it."""
    quantized = _quantized(model, x)
    file = core.export_tflite(quantized, QAT)
    assert core.sqnr_db(_outputs(quantized, x), _flat(core.predict(file, x))) > 30.0
    profile = core.profile_tflite(file)
    assert (profile.float_ops, profile.requantize_ops, profile.int8_mac_fraction) == (0, 0, 1.0), profile.op_counts
    return quantized


def _fill(scores: Any) -> Any:
    return tf.fill(tf.shape(scores), -1e9)


def _triangle(scores: Any) -> Any:
    size = tf.shape(scores)[1]
    return tf.linalg.band_part(tf.ones((size, size)), -1, 0)


def _swin(scores: Any) -> Any:
    masked = tf.reshape(scores, [-1, 2, 3, 6]) + np.float32(100.0 * (BAND.reshape(1, 2, 3, 6) - 1.0))
    return tf.reshape(masked, [-1, 6, 6])


MASKS: dict[str, Callable[[Any], Any]] = {
    "sum": lambda s: s + (1.0 - CAUSAL) * -1e9,
    "difference": lambda s: s * CAUSAL - 1e10 * (1.0 - CAUSAL),
    "choice": lambda s: tf.where(CAUSAL[None] > 0, s, -1e9),
    "choice of a tensor": lambda s: tf.where(CAUSAL > 0, s, tf.ones_like(s) * (-(2.0**32) + 1)),
    "of the present size": lambda s: tf.where(tf.range(tf.shape(s)[1])[:, None] >= tf.range(6), s, _fill(s)),
    "triangle of the present size": lambda s: s + (1.0 - _triangle(s)) * -1e9,
    "scaled afterwards": lambda s: (s + (1.0 - CAUSAL) * -1e9) / 3.0,
    "not causal": lambda s: s + (BAND - 1.0) * 1e4,
    "moved, -100": _swin,
}


@pytest.mark.parametrize("name", MASKS)
def test_constant_masks_leave_the_scores_their_range(name: str) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    scores = tf.matmul(L.Dense(8)(inputs), L.Dense(8)(inputs), transpose_b=True)
    weights = tf.nn.softmax(MASKS[name](scores))
    model = keras.Model(inputs, L.Dense(3)(tf.matmul(weights, L.Dense(8)(inputs))))
    (_int8 if name in {"sum", "not causal"} else _quantized)(model, SEQUENCE)


def test_a_small_addend_is_no_mask() -> None:
    inputs = keras.Input((6, 8))
    scores = tf.matmul(inputs, inputs, transpose_b=True)
    normalized = core.normalize(keras.Model(inputs, tf.nn.softmax(scores - CAUSAL)))
    assert "MaskedScores" not in {type(layer).__name__ for layer in normalized.layers}


@pytest.mark.parametrize("by_sum", [True, False])
def test_a_maximum_of_masked_values_keeps_their_range(*, by_sum: bool) -> None:
    keras.utils.set_random_seed(0)
    inputs, lengths = keras.Input((6, 8)), keras.Input((6, 1), dtype="bool")
    values = L.Dense(8)(inputs)
    low = (1.0 - tf.cast(lengths, tf.float32)) * -1e9
    masked = values + low if by_sum else tf.where(lengths, values, -1e9)
    best = tf.reduce_max(masked, 1) if by_sum else L.GlobalMaxPooling1D()(masked)
    valid = (np.arange(6) < RNG.integers(1, 7, 16)[:, None])[:, :, None]
    _int8(keras.Model([inputs, lengths], L.Dense(3)(best)), [SEQUENCE, valid])


def test_a_product_with_a_mask_is_a_choice() -> None:
    keras.utils.set_random_seed(0)
    inputs, mask = keras.Input((6, 8)), keras.Input((6,), dtype="bool")
    values = L.Dense(8, activation="relu")(inputs) * tf.cast(mask, tf.float32)[..., None]
    model = keras.Model([inputs, mask], L.Dense(3)(tf.reduce_max(values, 1)))
    _int8(model, [SEQUENCE, np.arange(6) < RNG.integers(0, 7, 16)[:, None]])


def _pooled(weights: Any, values: Any) -> Any:
    return tf.reduce_sum(weights * values, axis=1)


def _masked_exponentials(scores: Any, mask: Any) -> Any:
    weights = tf.exp(scores) * tf.cast(mask, tf.float32)
    return weights / (tf.reduce_sum(weights, axis=1, keepdims=True) + 1e-7)


def _flat_exponentials(scores: Any, mask: Any) -> Any:
    flat = keras.backend.squeeze(scores, -1)
    weights = tf.cast(mask[:, :, 0], tf.float32) * tf.exp(flat - tf.reduce_max(flat, 1, keepdims=True))
    return (weights / (tf.reduce_sum(weights, 1, keepdims=True) + keras.backend.epsilon()))[:, :, None]


def _unmasked_exponentials(scores: Any, mask: Any) -> Any:
    del mask
    weights = tf.exp(scores)
    return weights / (tf.reduce_sum(weights, axis=1, keepdims=True) + 1e-7)


@pytest.mark.parametrize("weigh", [_masked_exponentials, _flat_exponentials, _unmasked_exponentials])
def test_attention_pooling_by_exponentials_is_int8(weigh: Callable[..., Any]) -> None:
    keras.utils.set_random_seed(0)
    inputs, lengths = keras.Input((6, 8)), keras.Input((6, 1), dtype="int32")
    values = L.Dense(8)(inputs)
    weights = weigh(L.Dense(1)(L.Dense(8, activation="tanh")(inputs)), tf.not_equal(lengths, 0))
    model = keras.Model([inputs, lengths], L.Dense(3)(_pooled(weights, values)))
    valid = np.int32(np.arange(6) < RNG.integers(2, 7, 16)[:, None])[:, :, None]
    valid[0] = 0  # a sample without any position that counts
    (_int8 if weigh is _masked_exponentials else _quantized)(model, [SEQUENCE, valid])


def test_a_maximum_over_another_axis_does_not_cancel() -> None:
    inputs = keras.Input((6, 8))
    powers = tf.exp(inputs - tf.reduce_max(inputs, 1, keepdims=True))
    model = keras.Model(inputs, powers / tf.reduce_sum(powers, -1, keepdims=True))
    expected = _outputs(model, SEQUENCE)
    assert np.allclose(_outputs(core.normalize(model), SEQUENCE), expected, atol=1e-6)
    quantized, _ = core.quantize(model, QAT, SEQUENCE)
    assert core.sqnr_db(expected, _outputs(quantized, SEQUENCE)) > 20.0


@keras.saving.register_keras_serializable("hand_written")
class Divergence(L.Layer):
    """Adds a loss and a metric, as the layers of variational autoencoders do."""

    def call(self, inputs: Any) -> Any:
        mean, log_variance = inputs
        loss = -0.5 * tf.reduce_mean(1 + log_variance - mean**2 - tf.exp(log_variance))
        self.add_loss(loss)
        self.add_metric(loss, name="divergence")
        return mean * 1.5


class Autoencoder(keras.Model):
    """A subclassed model that adds a loss in its `call`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = L.Dense(4), L.Dense(8)

    def call(self, inputs: Any) -> Any:
        code = self.encoder(inputs)
        self.add_loss(tf.reduce_mean(code**2))
        return self.decoder(code)


def test_a_layer_that_adds_losses_is_exported_and_keeps_them() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    code = Divergence()([L.Dense(4)(inputs), L.Dense(4)(inputs)])
    model, x = keras.Model(inputs, L.Dense(8)(code)), SEQUENCE[:, 0]
    quantized, _ = core.quantize(model, QAT, x)
    file = core.export_tflite(quantized, QAT)
    assert core.sqnr_db(_outputs(model, x), _flat(core.predict(file, x))) > 25.0
    quantized(x)
    assert len(quantized.losses) == len(model.losses) == 1
    model(x)
    assert len(model.losses) == 1


def test_a_subclassed_model_that_adds_losses_is_traced_and_said(caplog: Any) -> None:
    keras.utils.set_random_seed(0)
    model, x = Autoencoder(), SEQUENCE[:, 0]
    model(x)
    with caplog.at_level(logging.WARNING):
        _quantized(model, x)
    assert "leaves out what its call adds by add_loss" in caplog.text
    model(x)
    assert len(model.losses) == 1


POOLS: dict[str, Callable[[Any], Any]] = {
    "maximum": L.MaxPooling3D((2, 3, 2), padding="same"),
    "mean": L.AveragePooling3D((2, 2, 3), strides=(1, 2, 2), padding="same"),
    "one axis": L.MaxPooling3D((1, 1, 2)),
    "function": lambda x: tf.nn.avg_pool3d(tf.nn.max_pool3d(x, 2, 1, "VALID"), (1, 2, 2), (1, 2, 1), "SAME"),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_over_three_axes_is_int8(name: str) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 5, 6, 2))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(POOLS[name](inputs))))
    (_int8 if name in {"mean", "function"} else _quantized)(model, RNG.random((16, 4, 5, 6, 2), np.float32))


def _distance(left: Any, right: Any) -> Any:
    return tf.square(tf.math.l2_normalize(left, 1) - tf.math.l2_normalize(right, 1))


def test_a_distance_of_unit_vectors_keeps_its_range_in_the_file() -> None:
    """The converter moves the reshapes of both vectors behind the square; the square's range has to survive that."""
    keras.utils.set_random_seed(0)
    inputs, tower = [keras.Input((8,)), keras.Input((8,))], L.Dense(8)
    model = keras.Model(inputs, L.Dense(2)(_distance(*map(tower, inputs))))
    _int8(model, [SEQUENCE[:, 0], SEQUENCE[:, 1]])
    summed = keras.Model(inputs, tf.reduce_sum(_distance(*map(tower, inputs)), axis=1, keepdims=True))
    _int8(summed, [SEQUENCE[:, 0], SEQUENCE[:, 1]])


def test_a_quantiser_behind_a_function_is_loaded_from_a_folder(tmp_path: Any) -> None:
    """Keras splits the names of variables at dots when it loads a SavedModel."""
    inputs = keras.Input((6, 8))
    hidden = L.Dense(8)(inputs)
    model = keras.Model(inputs, L.Dense(3)(tf.matmul(hidden, hidden, transpose_b=True) + CAUSAL))
    quantized, _ = core.quantize(model, QAT, SEQUENCE)
    core.save_model(quantized, tmp_path / "folder")
    loaded = core.load_model(tmp_path / "folder")
    assert np.allclose(loaded(SEQUENCE), quantized(SEQUENCE), atol=1e-6)


@keras.saving.register_keras_serializable("hand_written")
class Cross(L.Layer):
    """One layer of a deep and cross network: the features times a weighted sum of the features."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight("kernel", (shape[-1], 1))

    def call(self, inputs: Any) -> Any:
        column = tf.expand_dims(inputs, 2)
        return tf.squeeze(tf.matmul(column, tf.tensordot(column, self.kernel, axes=(1, 0))) + column, 2)


def test_a_sum_of_an_inner_axis_with_a_weight_is_int8() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    quantized = _quantized(keras.Model(inputs, L.Dense(3)(Cross()(inputs))), SEQUENCE[:, 0])
    assert any(type(layer).__name__ == "QuantizedLayer" and "tensordot" in layer.name for layer in quantized.layers)


def test_a_cosine_by_dot_is_int8() -> None:
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((8,)), keras.Input((8,))]
    model = keras.Model(inputs, L.Dot(1, normalize=True)([L.Dense(8)(one) for one in inputs]))
    _int8(model, [SEQUENCE[:, 0], SEQUENCE[:, 1]])


def test_a_normalization_of_an_inner_axis_is_int8_and_trains() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    layer = L.BatchNormalization(axis=1)
    model = keras.Model(inputs, L.Dense(3)(L.ReLU()(layer(L.Dense(8)(inputs)))))
    layer.set_weights([RNG.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    quantized = _int8(model, SEQUENCE)
    moving = [weight for weight in quantized.weights if "moving_mean" in weight.name]
    before = moving[0].numpy()
    quantized.compile("sgd", "mse")
    quantized.fit(SEQUENCE, np.zeros((16, 6, 3)), verbose=0)
    assert not np.allclose(moving[0].numpy(), before)
