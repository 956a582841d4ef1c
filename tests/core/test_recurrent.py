"""Recurrent layers in int8: their steps compute what the layer computes, and the file what the steps compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core.graph.rules.recurrent import MOST_STEPS
from tfmot_ops.core.quantization.without_rounding import outputs_without_fake_quant
from tfmot_ops.core.training.loop import fit

pytestmark = pytest.mark.slow

keras = core.keras
L = keras.layers
QAT, SPARSE = core.recipes.decode("wi8_ai8"), core.recipes.decode("sparse50_wi8_ai8")
_RNG = np.random.default_rng(0)
SERIES = _RNG.normal(size=(32, 5, 6)).astype(np.float32)
#: Words of sentences; 0 stands where there is no word: at the end, at the start, in a sentence of none.
WORDS = _RNG.integers(1, 20, (32, 5))
WORDS[:10, 3:], WORDS[10:20, :2], WORDS[20] = 0, 0, 0


def _of_series(layers: Callable[[Any], Any]) -> tuple[Any, np.ndarray]:
    inputs = keras.Input(SERIES.shape[1:])
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(layers(inputs)))), SERIES


def _of_words(layers: Callable[[Any], Any]) -> tuple[Any, np.ndarray]:
    inputs = keras.Input(WORDS.shape[1:], dtype="int32")
    table = L.Embedding(20, 6, mask_zero=True, embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(layers(table(inputs))))), WORDS


def _encoder_and_decoder(x: Any) -> Any:
    line, *state = L.LSTM(4, return_state=True)(x)
    return L.LSTM(4, return_sequences=True)(L.RepeatVector(3)(line), initial_state=state)


KINDS: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {
    "lstm": lambda: _of_series(L.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid", dropout=0.2)),
    "gru backwards": lambda: _of_series(L.GRU(4, go_backwards=True, return_sequences=True)),
    "gru with the reset before": lambda: _of_series(L.GRU(4, reset_after=False, activation="relu", use_bias=False)),
    "simple": lambda: _of_series(lambda x: L.Concatenate()(L.SimpleRNN(4, return_state=True)(x))),
    "both ways, averaged": lambda: _of_series(L.Bidirectional(L.GRU(4), merge_mode="ave")),
    "a cell": lambda: _of_series(L.RNN(L.LSTMCell(4))),
    "encoder and decoder": lambda: _of_series(_encoder_and_decoder),
    "masked lstm": lambda: _of_words(L.LSTM(4)),
    "masked gru backwards": lambda: _of_words(L.GRU(4, go_backwards=True)),
    "masked, both ways, twice": lambda: _of_words(
        lambda x: L.SimpleRNN(4)(L.Bidirectional(L.LSTM(4, return_sequences=True))(x))
    ),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))
def test_the_steps_compute_what_the_layer_computes_in_int8(make: Callable[[], tuple[Any, np.ndarray]]) -> None:
    keras.utils.set_random_seed(0)
    model, x = make()
    sparse = core.strip(core.prune(model, SPARSE)[0])
    recurrent = [layer.name for layer in model.layers if isinstance(layer, L.RNN | L.Bidirectional)]
    assert all(core.assert_sparsity(sparse, SPARSE)[name] >= 0.49 for name in recurrent)
    quantized, reports = core.quantize(sparse, SPARSE, x)
    assert not [row for row in reports if row.outcome == "kept_float"]
    np.testing.assert_allclose(
        np.asarray(outputs_without_fake_quant(quantized, [x])), core.predict(sparse, x), atol=1e-5
    )
    # The export checks the zeros of each kernel.
    file = core.export_tflite(quantized, SPARSE)
    profile = core.profile_tflite(file)
    assert (profile.int8_mac_fraction, profile.float_ops) == (1.0, 0)
    assert core.sqnr_db(core.predict(quantized, x), core.predict(file, x)) > 30.0


STAY_FLOAT = {
    "any number of steps": lambda: (keras.Input((None, 6)), L.LSTM(4)),
    "too many steps": lambda: (keras.Input((MOST_STEPS + 1, 6)), L.GRU(4)),
    "state that is kept": lambda: (keras.Input((5, 6), batch_size=2), L.GRU(4, stateful=True)),
    "constraint": lambda: (keras.Input((5, 6)), L.SimpleRNN(4, recurrent_constraint="unit_norm")),
    "cells": lambda: (keras.Input((5, 6)), L.RNN([L.LSTMCell(4), L.GRUCell(3)])),
}


@pytest.mark.parametrize("make", STAY_FLOAT.values(), ids=list(STAY_FLOAT))
def test_what_has_no_int8_steps_is_named(make: Callable[[], tuple[Any, Any]]) -> None:
    inputs, layer = make()
    _, reports = core.quantize(keras.Model(inputs, L.Dense(2)(layer(inputs))), QAT)
    (row,) = [row for row in reports if row.outcome == "kept_float"]
    assert row.class_name == type(layer).__name__
    assert "int8 needs a known number of steps, at most 128" in row.reason


def test_a_trained_model_is_as_good_in_int8_and_its_steps_are_compared() -> None:
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(1).normal(size=(512, 6, 3)).astype(np.float32)
    y = (x.sum(axis=(1, 2)) > 0).astype(int)
    model = keras.Sequential([L.Input((6, 3)), L.LSTM(8, name="lstm"), L.Dense(2, name="scores")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=8, verbose=0)
    quantized, _ = core.quantize(model, QAT, x)
    fit(quantized, x, y, None, epochs=2, batch_size=32, seed=0)
    file = core.export_tflite(quantized, QAT)
    assert core.sqnr_db(core.predict(quantized, x), core.predict(file, x)) > 30.0
    right = [np.mean(np.argmax(core.predict(each, x), axis=1) == y) for each in (model, file)]
    assert right[0] > 0.9
    assert right[1] > right[0] - 0.02
    rows = {row.path: row for row in core.layer_sqnr(model, quantized, file, x[:64])}
    assert {"lstm", "lstm_recurrent", "lstm_carry", "lstm_hidden", "scores"} <= rows.keys()
    assert rows["lstm_hidden"].float_to_qat_db > 10.0
    assert rows["lstm_hidden"].qat_to_tflite_db > 30.0


def test_a_kernel_that_is_written_in_two_parts_is_as_sparse_as_a_whole() -> None:
    inputs = keras.Input((4, 6))
    layer = L.GRU(4, reset_after=False)
    model = keras.Model(inputs, L.Dense(2)(layer(inputs)))
    kernel, recurrent, bias = layer.get_weights()
    recurrent[:, :8] *= 10.0  # pruning takes most zeros from the last third
    layer.set_weights([kernel, recurrent, bias])
    sparse = core.strip(core.prune(model, SPARSE)[0])
    core.assert_sparsity(sparse, SPARSE)
    quantized, _ = core.quantize(sparse, SPARSE, SERIES[:, :4])
    assert core.profile_tflite(core.export_tflite(quantized, SPARSE)).float_ops == 0


@pytest.mark.parametrize("kind", ["a dict for a list", "one target of two", "a dict for one output"])
def test_targets_that_keras_takes_are_trained(kind: str) -> None:
    inputs = keras.Input((3,))
    outputs = [L.Dense(2, name="a")(inputs), L.Dense(1, name="b")(inputs)]
    targets = {"a": np.ones((8, 2), np.float32), "b": np.ones((8, 1), np.float32)}
    loss: Any = {"a": "mse", "b": "mse"}
    if kind == "one target of two":
        outputs, loss = {"a": outputs[0], "b": outputs[1]}, {"a": "mse"}
        del targets["b"]
    if kind == "a dict for one output":
        outputs, loss = outputs[1], "mse"
        del targets["a"]
    model = keras.Model(inputs, outputs)
    model.compile("adam", loss)
    history = fit(model, np.ones((8, 3), np.float32), targets, None, epochs=2, batch_size=4, seed=0)
    assert history["loss"][1] < history["loss"][0]


def test_a_training_step_is_traced_once() -> None:
    traces = []

    def loss(y_true: Any, y_pred: Any) -> Any:
        traces.append(y_pred)
        return tf.reduce_mean(tf.square(y_true - y_pred))

    x, y = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
    for metrics in (None, ["mae"]):
        model = keras.Sequential([L.Input((3,)), L.Dense(2)])
        model.compile("adam", loss, metrics=metrics)
        traces.clear()
        fit(model, x, y, None, epochs=2, batch_size=4, seed=0)
        assert len(traces) == 1


@keras.saving.register_keras_serializable("test_recurrent")
class DoubledIfPositive(L.Layer):
    """A layer that needs AutoGraph: a Python `if` on a tensor."""

    def call(self, inputs: Any) -> Any:
        if tf.reduce_sum(inputs) > 0:
            return inputs * 2.0
        return tf.sin(inputs)


def test_a_layer_with_an_if_on_a_tensor_is_trained() -> None:
    model = keras.Sequential([L.Input((3,)), L.Dense(2), DoubledIfPositive(), L.Dense(2)])
    model.compile("sgd", "mse")
    x = np.ones((8, 3), np.float32)
    quantized, _ = core.quantize(model, QAT, x)
    assert core.sqnr_db(core.predict(model, x), core.predict(quantized, x)) > 20.0
    quantized.fit(x, x[:, :2], verbose=0)
