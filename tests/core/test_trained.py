"""Small nets trained on real digits: the file answers as its QAT model does, and still tells digits apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.data.splits import Dataset, load_dataset

pytestmark = pytest.mark.slow

L = keras.layers


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def _norm() -> Any:
    # Keras' own momentum of 0.99 needs more steps than these trainings have.
    return L.BatchNormalization(momentum=0.9)


def _conv_bn_relu(x: Any, filters: int) -> Any:
    return L.ReLU()(_norm()(L.Conv2D(filters, 3, padding="same", use_bias=False)(x)))


def _plain(x: Any) -> Any:
    return _conv_bn_relu(L.MaxPooling2D()(_conv_bn_relu(x, 16)), 32)


def _residual(x: Any) -> Any:
    x = _conv_bn_relu(x, 16)
    for _ in range(2):
        y = _norm()(L.Conv2D(16, 3, padding="same")(_conv_bn_relu(x, 16)))
        x = L.ReLU()(x + y)
    return x


def _pre_activation(x: Any) -> Any:
    x = L.Conv2D(16, 3, padding="same")(x)
    for _ in range(2):
        x = x + L.Conv2D(16, 3, padding="same")(L.ReLU()(_norm()(x)))
    return L.ReLU()(_norm()(x))


def _dense(x: Any) -> Any:
    x = L.Conv2D(16, 3, padding="same")(x)
    for _ in range(3):
        y = L.Conv2D(8, 3, padding="same")(L.ReLU()(_norm()(x)))
        x = L.Concatenate()([x, y])
    return L.ReLU()(_norm()(x))


def _inverted_residual(x: Any) -> Any:
    x = _conv_bn_relu(x, 16)
    y = L.Activation("swish")(_norm()(L.Conv2D(48, 1, use_bias=False)(x)))
    y = L.Activation("swish")(_norm()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(y)))
    gate = L.Conv2D(12, 1, activation="swish")(L.GlobalAveragePooling2D(keepdims=True)(y))
    y = L.Multiply()([y, L.Conv2D(48, 1, activation="sigmoid")(gate)])
    return L.Add()([x, _norm()(L.Conv2D(16, 1, use_bias=False)(y))])


def _layer_norm(x: Any) -> Any:
    x = L.LayerNormalization()(L.Conv2D(16, 2, 2)(x))
    for _ in range(2):
        y = L.LayerNormalization()(L.DepthwiseConv2D(3, padding="same")(x))
        x = x + L.Dense(16)(L.Dense(32, activation="gelu")(y))
    return x


@pytest.mark.parametrize(
    "body", [_plain, _residual, _pre_activation, _dense, _inverted_residual, _layer_norm], ids=lambda f: f.__name__[1:]
)
def test_the_file_answers_as_the_trained_model(
    body: Callable[[Any], Any], digits: Dataset, record_property: Callable[[str, Any], None]
) -> None:
    set_seed(0)
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    inputs = L.Input(digits.input_shape)
    model = keras.Model(inputs, L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(body(inputs))))
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", ["accuracy"])
    train = {"x": digits.x_train, "y": digits.y_train, "batch_size": 64, "verbose": 0}
    model.fit(**train, epochs=8)
    pruned, _ = core.prune(model, recipe)
    pruned.fit(**train, epochs=2, callbacks=core.pruning_callbacks())
    quantized, _ = core.quantize(core.strip(pruned), recipe, digits.x_calibration)
    quantized.optimizer.learning_rate.assign(1e-3)
    quantized.fit(**train, epochs=2)
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0), profile.op_counts
    sqnr = core.agreement(quantized, data, digits.x_test)["sqnr_db"]
    accuracy = float(np.mean(np.argmax(core.predict(data, digits.x_test), -1) == digits.y_test))
    record_property("sqnr_db", round(sqnr, 1))
    record_property("accuracy", round(accuracy, 3))
    assert sqnr >= 20.0
    # A net that learnt nothing would agree with itself just as well.
    assert accuracy >= 0.85
