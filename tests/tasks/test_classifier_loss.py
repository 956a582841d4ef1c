"""The loss that is chosen for a classifier without one, and the labels that a compiled one is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import Artifact, Status, StepResult, StepSpec
from tfmot_ops.core import keras
from tfmot_ops.data.splits import load_dataset
from tfmot_ops.errors import UnsupportedModelError
from tfmot_ops.tasks.classifier_loss import gives_logits, targets_for

pytestmark = pytest.mark.slow

L = keras.layers
DATA: dict[str, Any] = {"dataset": "digits", "limit": 200, "batch_size": 32}
X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
Y = np.arange(16) % 4


def _functional(*heads: Any) -> Any:
    keras.utils.set_random_seed(0)
    inputs = L.Input((6,))
    outputs = L.Dense(4, name="scores")(inputs)
    for head in heads:
        outputs = head(outputs)
    return keras.Model(inputs, outputs)


class Doubled(L.Layer):
    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


class Normalised(L.Layer):
    def call(self, inputs: Any) -> Any:
        positive = tf.exp(inputs)
        return positive / tf.reduce_sum(positive, axis=-1, keepdims=True)


def _nested(head: Any) -> Any:
    inner = _functional(head)
    inputs = L.Input((6,))
    return keras.Model(inputs, inner(inputs))


LOGITS = {
    "dense": _functional(),
    "linear activation": _functional(L.Activation("linear")),
    "linear activation of a layer that is one": _functional(L.Activation(keras.activations.linear)),
    "reshaped": _functional(L.Reshape((2, 2)), L.Flatten()),
    "relu": _functional(L.ReLU()),
    "normalised by batch": _functional(L.BatchNormalization()),
    "own layer": _functional(Doubled()),
    "function": _functional(lambda x: x * 2.0 - 1.0),
    "log softmax": _functional(L.Activation(tf.nn.log_softmax)),
    "nested": _nested(L.Activation("linear")),
    "pruned": core.prune(_functional(), core.recipes.decode("sparse50"))[0],
}
PROBABILITIES = {
    "softmax of a dense layer": _functional(L.Dense(4, activation="softmax")),
    "softmax activation": _functional(L.Activation("softmax")),
    "softmax layer": _functional(L.Softmax()),
    "softmax layer as activation": _functional(L.Dense(4, activation=L.Softmax())),
    "softmax function": _functional(tf.nn.softmax),
    "sigmoid": _functional(L.Dense(4, activation="sigmoid")),
    "sigmoid function": _functional(tf.math.sigmoid),
    "dropped out and reshaped": _functional(L.Softmax(), L.Dropout(0.1), L.Reshape((4,))),
    "own layer": _functional(Normalised()),
    "nested": _nested(L.Softmax()),
    "pruned": core.prune(_functional(L.Dense(4, activation="softmax")), core.recipes.decode("sparse50"))[0],
}


@pytest.mark.parametrize("model", LOGITS.values(), ids=LOGITS.keys())
def test_outputs_that_are_logits(model):
    assert gives_logits(model, X)


@pytest.mark.parametrize("model", PROBABILITIES.values(), ids=PROBABILITIES.keys())
def test_outputs_that_are_probabilities(model):
    assert not gives_logits(model, X)


@keras.saving.register_keras_serializable("test_classifier_loss")
def own_of_numbers(y_true: Any, y_pred: Any) -> Any:
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)


@keras.saving.register_keras_serializable("test_classifier_loss")
def own_of_one_hot(y_true: Any, y_pred: Any) -> Any:
    tf.debugging.assert_shapes([(y_true, ("n", "classes")), (y_pred, ("n", "classes"))])
    return keras.losses.categorical_crossentropy(y_true, y_pred)


NUMBERS = {
    "name": "sparse_categorical_crossentropy",
    "function": keras.losses.sparse_categorical_crossentropy,
    "object": keras.losses.SparseCategoricalCrossentropy(ignore_class=7),
    "list": [keras.losses.SparseCategoricalCrossentropy()],
    "own": own_of_numbers,
}
ONE_HOT = {
    "name": "categorical_crossentropy",
    "function": keras.losses.categorical_crossentropy,
    "object": keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
    "list": ["categorical_crossentropy"],
    "focal": keras.losses.CategoricalFocalCrossentropy(),
    "binary": "binary_crossentropy",
    "squared error": "mse",  # with numbers Keras would compare each output with the number, and say nothing
    "divergence": keras.losses.KLDivergence(),
    "own": own_of_one_hot,
}


def _compiled(loss: Any, metrics: Any = ("accuracy",)) -> Any:
    model = _functional(L.Softmax())
    model.compile("adam", loss, list(metrics))
    return model


@pytest.mark.parametrize("loss", NUMBERS.values(), ids=NUMBERS.keys())
def test_losses_that_get_the_numbers_of_the_classes(loss):
    assert targets_for(_compiled(loss), X, Y, 4)(Y) is Y


@pytest.mark.parametrize("loss", ONE_HOT.values(), ids=ONE_HOT.keys())
def test_losses_that_get_one_hot_vectors(loss):
    model = _compiled(loss)
    targets = targets_for(model, X, Y, 4)(Y)
    assert np.array_equal(targets, np.eye(4)[Y])
    history = model.fit(X, targets, epochs=30, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_looking_at_a_model_leaves_it_as_it_was():
    model = _compiled("categorical_crossentropy")
    before = [weight.numpy().copy() for weight in model.weights]
    targets_for(model, X, Y, 4)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True))
    assert [float(metric.result()) for metric in model.metrics] == [0.0, 0.0]
    assert int(model.optimizer.iterations.numpy()) == 0


@pytest.mark.parametrize(
    ("loss", "metrics"),
    [("sparse_categorical_crossentropy", [keras.metrics.AUC()]), (lambda y, p: keras.losses.mse(y["a"], p), [])],
    ids=["a metric that does not fit", "a loss of other labels"],
)
def test_what_takes_neither_is_refused_with_its_reason(loss, metrics):
    with pytest.raises(UnsupportedModelError, match="cannot be trained on class labels") as caught:
        targets_for(_compiled(loss, metrics), X, Y, 4)
    assert caught.value.exit_code == 3
    assert "Error: " in caught.value.received


# --- in the steps ------------------------------------------------------------------------------------------------


def _digits(activation: str | None) -> Any:
    keras.utils.set_random_seed(0)
    layers = [L.Input((8, 8, 1)), L.Flatten(), L.Dense(32, activation="relu"), L.Dense(10, activation=activation)]
    return keras.Sequential(layers)


def _train(path: str, folder: Any, epochs: int | None) -> tuple[StepResult, list[str]]:
    told: list[str] = []
    options = {"kind": "train", "model": path, "epochs": epochs, **DATA}
    spec = StepSpec.model_validate({"step_id": "train", "output_uri": str(folder), "options": options})
    return execute(spec, told.append), told


def _quantize(model: Artifact, folder: Any) -> tuple[StepResult, list[str]]:
    told: list[str] = []
    options = {"kind": "quantize", "recipe": "wi8_ai8", **DATA}
    document = {"step_id": "quantize", "inputs": {"model": model}, "output_uri": str(folder), "options": options}
    return execute(StepSpec.model_validate(document), told.append), told


@pytest.fixture(scope="module")
def trained() -> dict[str | None, list[np.ndarray]]:
    """Activation of the last layer -> the weights of a model that has learnt the digits."""
    data, weights = load_dataset("digits"), {}
    for activation in ("softmax", None):
        model = _digits(activation)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
        model.compile(keras.optimizers.Adam(0.01), loss)
        model.fit(data.x_train, data.y_train, epochs=10, verbose=0)
        weights[activation] = model.get_weights()
    return weights


@pytest.mark.parametrize(("activation", "said"), [("softmax", "probabilities"), (None, "logits")])
def test_a_model_without_compile_configuration_gets_the_loss_of_its_outputs(trained, activation, said, tmp_path):
    model = _digits(activation)
    model.set_weights(trained[activation])
    core.save_model(model, tmp_path / "model.h5")
    result, told = _train(str(tmp_path / "model.h5"), tmp_path / "train", epochs=None)
    assert result.status is Status.OK, result.error
    (line,) = [line for line in told if "compile configuration" in line]
    assert f"treated as {said}" in line
    assert ("from_logits=True" in str(result.parameters["compile"]["loss"])) == (activation is None)
    quantized, told = _quantize(result.outputs["model"], tmp_path / "quantize")
    assert quantized.metrics["accuracy"] >= result.metrics["accuracy"] - 0.01
    # Of labels as they are: the accuracy of an epoch is not that of one-hot vectors, which is one in ten here.
    epochs = [line for line in told if " epoch " in line]
    assert all(float(line.split(" accuracy ")[1].split()[0]) > 0.9 for line in epochs)


def test_a_model_compiled_for_one_hot_vectors_is_trained_and_quantised(trained, tmp_path):
    model = _digits("softmax")
    model.set_weights(trained["softmax"])
    model.compile("adam", "categorical_crossentropy", ["accuracy"])
    core.save_model(model, tmp_path / "model.h5")
    result, told = _train(str(tmp_path / "model.h5"), tmp_path / "train", epochs=1)
    assert result.status is Status.OK, result.error
    assert any("one-hot vectors" in line for line in told)
    assert result.metrics["accuracy"] > 0.9
    assert str(result.parameters["compile"]["loss"]).endswith("losses.categorical_crossentropy")
    quantized, _ = _quantize(result.outputs["model"], tmp_path / "quantize")
    assert quantized.status is Status.OK, quantized.error
    assert quantized.metrics["accuracy"] > 0.9


def test_a_model_that_cannot_be_trained_on_labels_is_refused_before_training(trained, tmp_path):
    model = _digits("softmax")
    model.set_weights(trained["softmax"])
    model.compile("adam", "sparse_categorical_crossentropy", [keras.metrics.AUC()])
    core.save_model(model, tmp_path / "model.h5")
    result, told = _train(str(tmp_path / "model.h5"), tmp_path / "train", epochs=1)
    assert result.error is not None
    assert result.error.exit_code == 3
    assert not any(" epoch " in line for line in told)
    measured, _ = _train(str(tmp_path / "model.h5"), tmp_path / "measured", epochs=None)
    assert measured.status is Status.OK, "a model that is only measured needs no loss"
