"""`core.evaluate` on models of each task, arrays and tf.data.Dataset: the figures are those of NumPy and Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.errors import SamplesError, SpecError

RNG = np.random.default_rng(0)
N = 700  # more than one group of a Dataset's batches
X = RNG.random((N, 6), dtype=np.float32)
layers = keras.layers


def dense(outputs: int, activation: str | None = None) -> Any:
    keras.utils.set_random_seed(1)
    inputs = layers.Input((6,), name="features")
    return keras.Model(inputs, layers.Dense(outputs, activation=activation, name="scores")(inputs))


def as_dataset(*parts: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(32)


def as_file(model: Any) -> bytes:
    return core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), calibration=X)


LABELS = RNG.integers(0, 3, N)
NUMBERS = RNG.normal(size=(N, 2)).astype(np.float32)


def test_classes_from_a_dataset_as_from_arrays():
    model = dense(3, "softmax")
    right = float(np.mean(model.predict(X, verbose=0).argmax(1) == LABELS))
    for labels in (LABELS, LABELS[:, np.newaxis], LABELS.astype(np.float32), np.eye(3)[LABELS]):
        assert core.evaluate(model, X, labels)["accuracy"] == pytest.approx(right)
        assert core.evaluate(model, as_dataset(X, labels))["accuracy"] == pytest.approx(right)
    weighted = as_dataset(X, LABELS, np.ones(N))
    assert core.evaluate(model, weighted)["accuracy"] == pytest.approx(right)
    assert core.evaluate(model, as_dataset({"features": X}, LABELS))["accuracy"] == pytest.approx(right)


def test_a_file_takes_a_dataset_and_one_hot_rows():
    file = as_file(dense(3, "softmax"))
    right = float(np.mean(core.predict(file, X).argmax(1) == LABELS))
    assert core.evaluate(file, as_dataset(X, np.eye(3, dtype=np.float32)[LABELS]))["accuracy"] == pytest.approx(right)


def test_classes_that_no_sample_has_count():
    """Test samples of two of three classes are still those of a classifier of three."""
    model = dense(3, "softmax")
    assert core.evaluate(model, X, LABELS % 2)["accuracy"] == pytest.approx(
        np.mean(model.predict(X, verbose=0).argmax(1) == LABELS % 2)
    )


def test_a_regression_model():
    model = dense(2)
    errors = model.predict(X, verbose=0) - NUMBERS
    for figures in (core.evaluate(model, X, NUMBERS), core.evaluate(model, as_dataset(X, NUMBERS))):
        assert figures["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)
        assert figures["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-5)
    assert core.evaluate(as_file(model), X, NUMBERS)["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.05)
    whole = NUMBERS[:, 0].round().astype(int)
    assert core.evaluate(dense(1), X, whole, task="regression").keys() == {"rmse", "mae", "r2"}


def test_an_autoencoder():
    model = dense(6)
    errors = np.mean((model.predict(X, verbose=0) - X) ** 2, axis=1)
    for figures in (
        core.evaluate(model, X),
        core.evaluate(model, X, X),
        core.evaluate(model, as_dataset(X)),
        core.evaluate(model, as_dataset(X, X)),
        core.evaluate(model, X, X, task="reconstruction"),
    ):
        assert figures == {"error": pytest.approx(errors.mean(), rel=1e-5)}
    flags = (errors > np.median(errors)).astype(int)
    assert core.evaluate(model, X, flags, task="reconstruction")["auc"] == 1.0
    assert core.evaluate(model, as_dataset(X, flags), task="reconstruction")["auc"] == 1.0


def test_independent_labels_and_pixels():
    several = RNG.integers(0, 2, (N, 4)).astype(np.float32)
    assert "mean_average_precision" in core.evaluate(dense(4, "sigmoid"), X, several)
    images, masks = RNG.random((40, 8, 8, 1), dtype=np.float32), RNG.integers(0, 3, (40, 8, 8))
    inputs = layers.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Conv2D(3, 3, padding="same", activation="softmax")(inputs))
    right = np.mean(model.predict(images, verbose=0).argmax(-1) == masks)
    assert core.evaluate(model, images, masks)["pixel_accuracy"] == pytest.approx(right)
    assert core.evaluate(model, as_dataset(images, masks))["pixel_accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("by_name", [False, True], ids=["list", "dict"])
def test_several_outputs_are_measured_by_the_compiled_loss(by_name: bool):
    inputs = layers.Input((6,))
    heads = [layers.Dense(3, activation="softmax", name="kind")(inputs), layers.Dense(2, name="place")(inputs)]
    model = keras.Model(inputs, heads)
    targets = {"kind": LABELS, "place": NUMBERS} if by_name else [LABELS, NUMBERS]
    with pytest.raises(SpecError, match="no loss to measure by"):
        core.evaluate(model, X, targets)
    model.compile("sgd", ["sparse_categorical_crossentropy", "mse"])
    expected = model.evaluate(X, [LABELS, NUMBERS], verbose=0)[0]
    assert core.evaluate(model, X, targets) == {"loss": pytest.approx(expected, rel=1e-5)}
    dataset = as_dataset(X, targets if by_name else tuple(targets))
    assert core.evaluate(model, dataset) == {"loss": pytest.approx(expected, rel=1e-5)}
    figures = core.evaluate(model, X, targets, metric="place:mse")
    assert figures["place_mse"] == pytest.approx(np.mean((model.predict(X, verbose=0)[1] - NUMBERS) ** 2), rel=1e-5)
    with pytest.raises(SpecError, match="which of its outputs"):
        core.evaluate(as_file(model), X, {"kind": LABELS, "place": NUMBERS})


def test_targets_of_another_task_are_refused_not_measured():
    """Accuracy 0.0 of a regression model was the figure that nobody asked for."""
    with pytest.raises(SpecError, match="follows from the targets") as caught:
        core.evaluate(dense(2), X, LABELS)
    assert "task='regression'" in caught.value.remedy
    with pytest.raises(SpecError, match="do not fit the task classification"):
        core.evaluate(dense(3, "softmax"), X, NUMBERS, task="classification")
    with pytest.raises(SpecError, match="one-hot rows or independent labels"):
        core.evaluate(dense(3, "sigmoid"), X, np.eye(3)[LABELS])
    with pytest.raises(SpecError, match="no task named"):
        core.evaluate(dense(3), X, LABELS, task="telling_the_future")


def test_later_batches_that_say_something_else_are_refused():
    rows = np.eye(3, dtype=np.float32)[LABELS]
    rows[-1] = 0.5
    with pytest.raises(SpecError, match="targets do not fit the task classification"):
        core.evaluate(dense(3, "softmax"), as_dataset(X, rows))


def test_samples_that_are_missing_are_named():
    with pytest.raises(SamplesError, match="no samples"):
        core.evaluate(dense(3), as_dataset(X, LABELS).take(0))
    with pytest.raises(SpecError, match="brings its targets along"):
        core.evaluate(dense(3), as_dataset(X), LABELS)
