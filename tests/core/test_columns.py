"""Samples that are read by index train, validate and measure as arrays in memory do, bit for bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.measure.predictions import outputs_by_batch
from tfmot_ops.core.training.checkpoint import Checkpoint
from tfmot_ops.core.training.loop import fit
from tfmot_ops.data.columns import Lazy, Rows
from tfmot_ops.errors import SpecError, StepFailedError

RNG = np.random.default_rng(0)
X = RNG.random((70, 6, 6, 1), np.float32)
Y = RNG.integers(0, 3, 70)
FLOAT = Recipe(name="float32")


def lazy(array: np.ndarray) -> Lazy[int]:
    return Lazy(range(len(array)), lambda place: array[place], array.shape[1:], array.dtype)


def mapped(array: np.ndarray, folder: Path, name: str) -> Rows:
    path = folder / f"{name}.npy"
    np.save(path, array)
    return Rows(np.load(path, mmap_mode="r"))


def model(outputs: int = 3) -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((6, 6, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
    made = keras.Model(inputs, keras.layers.Dense(outputs, activation="softmax")(keras.layers.Dropout(0.2)(x)))
    made.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return made


def trained(x: Any, y: Any, **more: Any) -> tuple[Any, Any]:
    made = model()
    history = fit(made, x, y, (x, y), epochs=2, batch_size=16, seed=5, **more)
    return made.get_weights(), history


@pytest.mark.slow
def test_columns_train_as_arrays_do(tmp_path: Path):
    weights, history = trained(X, Y)
    for x, y in ((lazy(X), Y), (mapped(X, tmp_path, "x"), mapped(Y, tmp_path, "y")), (X, lazy(Y))):
        again, same_history = trained(x, y, data_digest="of these samples")
        assert all(np.array_equal(a, b) for a, b in zip(weights, again, strict=True))
        assert same_history == history


@pytest.mark.slow
def test_a_column_is_read_in_batches_only():
    most = 0

    class Counting(Lazy[int]):
        def __getitem__(self, index: Any) -> np.ndarray:
            nonlocal most
            read: np.ndarray = super().__getitem__(index)
            most = max(most, len(read))
            return read

    x = Counting(range(len(X)), lambda place: X[place], X.shape[1:], X.dtype)
    trained(x, Y, data_digest="of these samples")
    assert most == 16


@pytest.mark.slow
def test_a_checkpoint_of_columns_belongs_to_their_digest(tmp_path: Path):
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path / "state.npz", said.append)
    trained(lazy(X), Y, data_digest="first", checkpoint=checkpoint)
    trained(lazy(X), Y, data_digest="first", checkpoint=checkpoint)
    trained(lazy(X), Y, data_digest="second", checkpoint=checkpoint)
    assert said == [
        "continues after epoch 2 of 2",
        "starts from the beginning: the checkpoint is of another training (other data)",
    ]


@pytest.mark.parametrize("batch", [1, 16, 70])
def test_outputs_by_batch_are_those_of_all_samples(batch: int):
    made = model()
    file = core.export_tflite(made, FLOAT)
    for measured in (made, file):
        done: list[tuple[int, int]] = []
        parts = list(outputs_by_batch(measured, lazy(X), batch, lambda *counts, done=done: done.append(counts)))
        together = np.concatenate([outputs for _, outputs in parts])
        np.testing.assert_allclose(together, core.predict(measured, X), rtol=1e-5, atol=1e-6)
        assert [index.start for index, _ in parts] == [0, *(stop for stop, _ in done[:-1])]
        assert done[-1] == (70, 70)
    assert np.array_equal(together, core.predict(file, X, batch))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_sample_that_cannot_be_read_ends_the_training_with_its_own_error(part: str):
    def broken(place: int) -> np.ndarray:
        if place == 37:
            raise SpecError("37.jpg cannot be decoded", required="a JPEG", received="half of one", remedy="mend it")
        return X[place]

    column = Lazy(range(70), broken, X.shape[1:], X.dtype)
    x, validation = (column, X) if part == "training" else (X, column)
    with pytest.raises(SpecError, match=r"37\.jpg cannot be decoded"):
        fit(model(), x, Y, (validation, Y), epochs=1, batch_size=16, seed=5, data_digest="of these samples")


def test_the_first_sample_with_nan_is_named_by_its_index():
    def spoilt(place: int) -> np.ndarray:
        return np.full_like(X[0], np.nan) if place == 37 else X[place]

    column = Lazy(range(70), spoilt, X.shape[1:], X.dtype)
    file = core.export_tflite(model(), FLOAT)
    with pytest.raises(StepFailedError, match=r"1 of 16 samples from index 32 on, the first at index 37"):
        list(outputs_by_batch(file, column, 16))


def test_agreement_of_columns_is_that_of_arrays():
    made = model()
    file = core.export_tflite(made, FLOAT)
    assert core.agreement(made, file, lazy(X)) == core.agreement(made, file, X)


def test_taking_and_mapping_leave_samples_unread(tmp_path: Path):
    read: list[int] = []

    def note(place: int) -> np.ndarray:
        read.append(place)
        return X[place]

    column = Lazy(range(70), note, X.shape[1:], X.dtype)
    part = column.take([3, 1, 2]).then(lambda image: image + 1.0, X.shape[1:], np.float32)
    assert read == []
    assert np.array_equal(part[1:], X[[1, 2]] + 1.0)
    assert sorted(read) == [1, 2]
    rows = mapped(X, tmp_path, "x").take(np.array([5, 3, 9])).take(slice(1, 3))
    assert rows.shape == (2, 6, 6, 1)
    assert np.array_equal(rows[np.array([1, 0])], X[[9, 3]])


def test_threads_stay_from_batch_to_batch_and_columns_of_columns_do_not_block():
    names: set[str] = set()

    def read(place: int) -> np.ndarray:
        names.add(threading.current_thread().name)
        return X[place]

    column = Lazy(range(len(X)), read, X.shape[1:], X.dtype)
    for start in range(0, len(X), 10):
        assert np.array_equal(column[start : start + 10], X[start : start + 10])
    assert len(names) <= 4
    pairs = Lazy(range(30), lambda place: column[place : place + 2], (2, *X.shape[1:]), X.dtype)
    assert np.array_equal(pairs[:], np.stack([X[place : place + 2] for place in range(30)]))


def test_many_samples_are_read_in_their_order():
    numbers = np.arange(2500)
    assert np.array_equal(lazy(numbers)[:], numbers)


def test_a_model_that_is_measured_batch_by_batch_gives_what_keras_predict_gives():
    made = model()
    assert np.array_equal(core.predict(made, X, 16), made.predict(X, batch_size=16, verbose=0))
