"""Models of a fixed batch size, recurrent layers that keep their state, and inputs [N] for models that take [N, 1]."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core.tflite.interpreter import make_interpreter
from tfmot_ops.errors import CalibrationError, SamplesError

pytestmark = pytest.mark.slow

K = core.keras
L = K.layers
QAT, PTQ, FLOAT = (core.recipes.decode(name) for name in ("wi8_ai8", "wi8_ai8_ptq", "wi8_afp32"))
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(37, 8, 8, 3)).astype("float32")
SERIES = RNG.normal(size=(22, 8, 4)).astype("float32")


def _sqnr(a: Any, b: Any, x: Any) -> float:
    return core.sqnr_db(core.predict(a, x), core.predict(b, x))


def _convolutional(batch: int | None) -> Any:
    K.utils.set_random_seed(0)
    i = K.Input((8, 8, 3), batch_size=batch)
    h = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3)(i)))
    h = tf.pad(h, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1.0)
    return K.Model(i, L.Dense(3)(L.Flatten()(L.Conv2D(4, 3)(h))))


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_fixed_batch_size_gives_what_a_free_one_gives(batch: int) -> None:
    model, free = _convolutional(batch), _convolutional(None)
    quantized, _ = core.quantize(model, QAT, IMAGES)
    expected, _ = core.quantize(free, QAT, IMAGES)
    np.testing.assert_allclose(core.predict(quantized, IMAGES), core.predict(expected, IMAGES), atol=2e-5)
    for recipe, keras_model, free_model in ((QAT, quantized, expected), (PTQ, model, free)):
        file = core.export_tflite(keras_model, recipe, IMAGES)
        assert make_interpreter(file).get_input_details()[0]["shape"][0] == batch
        free_file = core.export_tflite(free_model, recipe, IMAGES)
        assert len(core.predict(file, IMAGES)) == len(IMAGES)
        assert _sqnr(free_file, file, IMAGES) > 50.0
    rows = core.layer_sqnr(model, quantized, core.export_tflite(quantized, QAT), IMAGES)
    free_rows = core.layer_sqnr(free, expected, core.export_tflite(expected, QAT), IMAGES)
    measured = [[row.class_name for row in each if row.qat_to_tflite_db is not None] for each in (rows, free_rows)]
    assert measured[0] == measured[1]
    assert min(row.qat_to_tflite_db for row in rows if row.qat_to_tflite_db is not None) > 35.0


def test_measures_of_a_fixed_batch_size() -> None:
    model = _convolutional(5)
    quantized, _ = core.quantize(model, QAT, IMAGES)
    file = core.export_tflite(quantized, QAT)
    assert core.agreement(model, file, IMAGES)["sqnr_db"] > 25.0
    y = RNG.integers(0, 3, len(IMAGES))
    accuracy = [core.evaluate(each, IMAGES, y)["accuracy"] for each in (quantized, file)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.06)
    assert core.arena_bytes(file) > 0
    assert core.latency_ms(file).median > 0


def test_fewer_samples_than_a_batch() -> None:
    quantized, _ = core.quantize(_convolutional(16), QAT, IMAGES[:3])
    expected, _ = core.quantize(_convolutional(None), QAT, IMAGES[:3])
    np.testing.assert_allclose(core.predict(quantized, IMAGES), core.predict(expected, IMAGES), atol=2e-5)
    with pytest.raises(CalibrationError, match="no calibration data"):
        core.quantize(_convolutional(16), QAT, IMAGES[:0])


def test_a_dataset_whose_batches_have_another_size() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(7)
    quantized, _ = core.quantize(_convolutional(5), QAT, dataset)
    expected, _ = core.quantize(_convolutional(5), QAT, IMAGES)
    np.testing.assert_array_equal(core.predict(quantized, IMAGES), core.predict(expected, IMAGES))


# State


def _recurrent(batch: int, layer: Any) -> Any:
    K.utils.set_random_seed(0)
    i = K.Input((8, 4), batch_size=batch)
    return K.Model(i, L.Dense(3)(layer(i)))


LAYERS = {
    "gru": lambda stateful: L.GRU(6, stateful=stateful),
    "lstm": lambda stateful: L.LSTM(6, stateful=stateful),
    "bidirectional": lambda stateful: L.Bidirectional(L.LSTM(6, stateful=stateful)),
    "cells": lambda stateful: L.RNN([L.LSTMCell(6), L.LSTMCell(5)], stateful=stateful),
}


@pytest.mark.parametrize(("name", "batch"), [("gru", 1), ("lstm", 4), ("bidirectional", 4), ("cells", 4)])
def test_recurrent_layers_that_keep_their_state(name: str, batch: int, caplog) -> None:
    model = _recurrent(batch, LAYERS[name](True))
    model(SERIES[:batch])
    states = [variable.numpy() for variable in _states(model)]
    assert states
    quantized, _ = core.quantize(model, QAT, SERIES)
    # Both from a state of 0 for each batch.
    assert _sqnr(model, quantized, SERIES) > 30.0
    with caplog.at_level(logging.WARNING):
        file = core.export_tflite(quantized, QAT)
    assert "each call starts from 0" in caplog.text
    assert _sqnr(quantized, file, SERIES) > 35.0
    assert _sqnr(model, core.export_tflite(model, PTQ, SERIES), SERIES) > 20.0
    assert _sqnr(model, core.export_tflite(model, FLOAT), SERIES) > 25.0
    core.layer_sqnr(model, quantized, file, SERIES)
    for variable, value in zip(_states(model), states, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert not any(variable.numpy().any() for variable in _states(quantized))


def _states(model: Any) -> list[Any]:
    return [
        state
        for part in model._flatten_layers()
        if isinstance(part, L.RNN) and part.stateful
        for state in tf.nest.flatten(part.states)
        if state is not None
    ]


def test_a_stateful_model_still_keeps_its_state_in_training_and_use() -> None:
    model = _recurrent(2, L.GRU(6, stateful=True))
    quantized, _ = core.quantize(model, QAT, SERIES)
    quantized.compile("sgd", "mse")
    quantized.fit(SERIES, np.zeros((22, 3)), batch_size=2, verbose=0)
    quantized.reset_states()
    first, second = (np.asarray(quantized(SERIES[:2])) for _ in range(2))
    assert not np.array_equal(first, second)
    quantized.reset_states()
    np.testing.assert_array_equal(np.asarray(quantized(SERIES[:2])), first)


# Number of axes


def _prices() -> tuple[Any, dict[str, Any]]:
    K.utils.set_random_seed(0)
    user, price = K.Input((1,), name="user", dtype="int32"), K.Input((1,), name="price")
    h = L.Concatenate()([L.Flatten()(L.Embedding(50, 8)(user)), price])
    model = K.Model([user, price], L.Dense(1)(h))
    model.compile("sgd", "mse")
    return model, {"user": RNG.integers(0, 50, 32), "price": RNG.normal(size=32).astype("float32")}


def test_inputs_without_a_last_axis_as_in_fit() -> None:
    model, x = _prices()
    model.fit(x, np.zeros(32), verbose=0)
    full = {name: values[:, None] for name, values in x.items()}
    quantized, _ = core.quantize(model, QAT, x)
    expected, _ = core.quantize(model, QAT, full)
    np.testing.assert_array_equal(core.predict(quantized, x), core.predict(expected, full))
    file = core.export_tflite(quantized, QAT)
    for inputs in (x, full, list(x.values())):
        assert _sqnr(quantized, file, inputs) > 50.0
    assert _sqnr(model, core.export_tflite(model, PTQ, x), x) > 25.0
    for each in (quantized, file):
        short, long = (list(inputs.values()) for inputs in (x, full))
        figures = [core.evaluate(each, inputs, np.zeros(32), task="regression")["rmse"] for inputs in (short, long)]
        assert figures[0] == figures[1]
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(8)
    again, _ = core.quantize(model, QAT, dataset)
    np.testing.assert_array_equal(core.predict(again, x), core.predict(quantized, x))
    assert core.layer_sqnr(model, quantized, file, list(x.values()))


def test_a_series_of_one_value_with_and_without_its_axis() -> None:
    K.utils.set_random_seed(0)
    with_axis = K.Sequential([L.Input((8, 1)), L.Conv1D(4, 3), L.Flatten(), L.Dense(2)])
    without = K.Sequential([L.Input((8,)), L.Dense(4), L.Dense(2)])
    values = RNG.normal(size=(20, 8)).astype("float32")
    for model, given in ((with_axis, values), (without, values[..., None])):
        quantized, _ = core.quantize(model, QAT, given)
        assert _sqnr(quantized, core.export_tflite(quantized, QAT), given) > 45.0
        assert _sqnr(model, core.export_tflite(model, PTQ, given), given) > 25.0


def test_shapes_that_do_not_fit_are_still_refused() -> None:
    model, x = _prices()
    with pytest.raises(CalibrationError):
        core.quantize(model, QAT, {**x, "price": np.zeros((32, 2), "float32")})
    file = core.export_tflite(core.quantize(model, QAT, x)[0], QAT)
    with pytest.raises(SamplesError):
        core.predict(file, [x["user"], np.zeros((32, 2), "float32")])
