"""Models as users write them go through prune, strip, quantize and export, fully int8 where TFLite can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras
from tfmot_ops.core.quantization.without_rounding import outputs_without_fake_quant

pytestmark = pytest.mark.slow

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class ChannelScale(L.Layer):
    """A custom layer with a weight, as people write them."""

    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight("gamma", (shape[-1],), initializer="ones")
        super().build(shape)

    def call(self, inputs: Any) -> Any:
        return inputs * self.gamma


def _conv_1d() -> Any:
    x = inputs = keras.Input((32, 4))
    for name in "ab":
        x = L.ReLU()(L.BatchNormalization()(L.Conv1D(8, 3, padding="causal", name=name)(x)))
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


def _u_net() -> Any:
    inputs = keras.Input((16, 16, 3))
    skip = L.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = L.Conv2D(8, 3, padding="same", activation="relu")(L.MaxPooling2D()(skip))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2DTranspose(8, 2, 2)(x)))
    x = L.Conv2D(8, 3, padding="same", activation="swish")(L.Concatenate()([x, skip]))
    return keras.Model(inputs, L.Conv2D(2, 1)(x))


def _layer_norm() -> Any:
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 4, 4)(inputs)
    y = L.LayerNormalization()(L.Conv2D(8, 3, padding="same", groups=8)(x))
    y = ChannelScale()(L.Dense(8)(L.Dense(16, activation="gelu")(y)))
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x + y)))


def _arithmetic() -> Any:
    inputs = keras.Input((16, 16, 3))
    x = inputs / 255.0 - 0.5
    x = tf.nn.relu6(L.Conv2D(8, 3, padding="same")(x))
    x = tf.concat([x, L.Conv2D(8, 3, padding="same")(x)], -1)
    return keras.Model(inputs, L.Dense(3, activation="softmax")(tf.reduce_mean(x, [1, 2])))


def _hard_swish() -> Any:
    inputs = keras.Input((16, 16, 3))
    x = L.BatchNormalization()(L.Conv2D(8, 3)(inputs))
    x = L.Multiply()([x, L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)])
    return keras.Model(inputs, {"scores": L.Dense(3)(L.GlobalAveragePooling2D()(x)), "image": L.Conv2D(1, 1)(x)})


@pytest.mark.parametrize("make", [_conv_1d, _u_net, _layer_norm, _arithmetic, _hard_swish], ids=lambda f: f.__name__)
def test_fully_int8_with_its_sparsity(make: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    model = make()
    x = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype(np.float32)
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    stripped = core.strip(core.prune(model, recipe)[0])
    quantized, reports = core.quantize(stripped, recipe, x)
    assert not [report for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    reference = np.concatenate([np.ravel(part) for part in tf.nest.flatten(stripped.predict(x, verbose=0))])
    same = np.concatenate([np.ravel(part) for part in tf.nest.flatten(outputs_without_fake_quant(quantized, [x]))])
    assert np.abs(reference - same).max() <= 1e-4 * np.abs(reference).max()
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0), profile.op_counts
    # Left out where the two are equal to the last bit.
    assert core.agreement(quantized, data, x).get("sqnr_db", np.inf) >= 20.0
    core.assert_sparsity(quantized, recipe)


def _between(call: Callable[[Any], Any]) -> Callable[[], Any]:
    def make() -> Any:
        inputs = keras.Input((8, 4))
        return keras.Model(inputs, L.Dense(3)(L.Flatten()(call(L.Dense(4)(inputs)))))

    return make


def _embedding() -> Any:
    inputs = keras.Input((8,), dtype="int32")
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Dense(4)(L.Embedding(20, 6)(inputs)))))


def _mixed_precision() -> Any:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        inputs = keras.Input((8, 8, 3))
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3)(inputs)))
        return keras.Model(inputs, L.Dense(3, dtype="float32")(L.GlobalAveragePooling2D()(x)))
    finally:
        keras.mixed_precision.set_global_policy("float32")


#: Model, and class of the layers that stay in float.
_KINDS = {
    "embedding": (_embedding, set()),
    "mixed precision": (_mixed_precision, set()),
    "repeat": (_between(lambda x: L.RepeatVector(3)(L.Flatten()(x))), set()),
    "time distributed": (_between(L.TimeDistributed(L.Dense(4, activation="relu"))), set()),
    "group norm": (_between(L.GroupNormalization(2)), set()),
    "average": (_between(lambda x: L.Average()([x, L.Dense(4)(x)])), set()),
    "separable over one axis": (_between(L.SeparableConv1D(4, 3)), set()),
    "transposed over one axis": (
        _between(L.Conv1DTranspose(4, 3, strides=2, padding="same", output_padding=1, activation="relu")),
        set(),
    ),
    "hard sigmoid": (_between(L.Activation("hard_sigmoid")), set()),
    "two cells": (_between(L.RNN([L.LSTMCell(4), L.LSTMCell(3)])), {"RNN"}),
    "recurrent dropout": (_between(L.GRU(4, recurrent_dropout=0.5)), {"GRU"}),
    "multi head": (_between(lambda x: L.MultiHeadAttention(2, 4)(x, x)), set()),
    "attention": (_between(lambda x: L.Attention()([x, x])), set()),
    "selu": (_between(L.Activation("selu")), set()),
}


@pytest.mark.parametrize(("make", "in_float"), _KINDS.values(), ids=list(_KINDS))
def test_what_stays_in_float_is_named_and_all_else_is_int8(make: Callable[[], Any], in_float: set[str]) -> None:
    keras.utils.set_random_seed(0)
    model = make()
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    is_table = model.inputs[0].dtype == tf.int32
    shape = (16, *model.input_shape[1:])
    x = rng.integers(0, 20, shape).astype(np.int32) if is_table else rng.normal(size=shape).astype(np.float32)
    recipe = core.recipes.decode("wi8_ai8")
    quantized, reports = core.quantize(model, recipe, x)
    assert {r.class_name for r in reports if r.outcome is Outcome.KEPT_FLOAT} == in_float
    quantized.train_on_batch(x, np.zeros((16, 3), np.float32))
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert bool(profile.float_ops) == bool(in_float)
    assert core.agreement(quantized, data, x).get("sqnr_db", np.inf) >= 20.0


def running_sum(x: Any) -> Any:
    """A function of all channels, which no table can compute."""
    return tf.cumsum(x, axis=-1)


def test_what_has_no_int8_form_is_reported_and_the_rest_is_quantised() -> None:
    inputs = keras.Input((12, 4))
    x = L.Dense(8, activation="relu")(inputs)
    x = L.Dense(8, activation=running_sum, name="odd")(x)
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(x)))
    data = np.random.default_rng(0).normal(size=(16, 12, 4)).astype(np.float32)
    recipe = core.recipes.decode("wi8_ai8")
    quantized, reports = core.quantize(model, recipe, data)
    kept = {report.path: report.reason for report in reports if report.outcome is Outcome.KEPT_FLOAT}
    assert list(kept) == ["odd_running_sum"]
    assert "running_sum" in kept["odd_running_sum"]
    profile = core.profile_tflite(core.export_tflite(quantized, recipe))
    assert profile.int8_mac_fraction == 1.0
    assert profile.float_ops > 0


def test_a_pruned_embedding_holds_its_zeros_in_the_file() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype=tf.int32)
    x = L.Flatten()(L.Embedding(20, 8, name="table")(inputs))
    model = keras.Model(inputs, L.Dense(3)(x))
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).integers(0, 20, (16, 6)).astype(np.int32)
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    pruned, _ = core.prune(model, recipe)
    quantized, _ = core.quantize(core.strip(pruned), recipe, x)
    profile = core.profile_tflite(core.export_tflite(quantized, recipe))
    assert min(profile.sparsity.values()) >= 0.49
    assert sorted(profile.weight_sizes.values()) == [144, 160]
