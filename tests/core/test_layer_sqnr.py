"""Noise by layer: a right match of two float forms leaves rounding of float32 only, and a spoilt layer shows."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.measure.sqnr_by_layer import layer_sqnr, layer_sqnr_csv
from tfmot_ops.errors import ArtifactError

pytestmark = pytest.mark.slow

L = keras.layers
X = np.random.default_rng(0).random((24, 12, 12, 3), dtype=np.float32)
FLOAT = Recipe(name="float32")
#: Wrong matches gave 5 to 30 dB; float32 rounding through a dozen layers leaves over 100.
SAME_DB = 90.0


def plain() -> Any:
    x = inputs = L.Input((12, 12, 3))
    x = L.ReLU(name="stem_relu")(L.BatchNormalization(name="stem_bn")(L.Conv2D(8, 3, name="stem", padding="same")(x)))
    y = L.BatchNormalization(name="side_bn")(L.Conv2D(8, 1, name="side")(x))
    x = L.ReLU(name="sum_relu")(L.Add(name="sum")([x, y]))
    x = L.Dropout(0.5, name="drop")(L.ZeroPadding2D(name="pad")(x))
    x = L.Activation("swish", name="swish")(L.DepthwiseConv2D(3, strides=2, name="depthwise")(x))
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(4, activation="softmax", name="scores")(x))


def shared() -> Any:
    """A convolution called twice beside one whose name is what TensorFlow makes of the second call's scope."""
    inputs = L.Input((12, 12, 3))
    conv = L.Conv2D(3, 3, padding="same", name="conv")
    other = L.Conv2D(3, 3, padding="same", name="conv_1")
    x = L.Add(name="sum")([conv(inputs), other(conv(conv(inputs)))])
    return keras.Model(inputs, L.Flatten(name="flat")(x))


def two_ends() -> Any:
    inputs = [L.Input((12, 12, 3)), L.Input((12, 12, 3))]
    twice = L.Conv2D(4, 3, name="twice")
    a, b = twice(inputs[1]), twice(inputs[0])
    joined = L.Concatenate(name="joined")([a, b])
    pooled = L.MaxPooling2D(name="pooled")(joined)
    rows = L.Reshape((25, 8), name="rows")(pooled)
    return keras.Model(inputs, [L.Conv1D(4, 3, activation="relu", name="line")(rows), L.Flatten(name="flat")(pooled)])


@dataclass(frozen=True)
class Net:
    """A model, its inputs, and the calls that are computed together with the next one."""

    make: Callable[[], Any]
    x: Any
    absorbed: frozenset[str]


NETS = {
    "plain": Net(plain, X, frozenset({"stem", "stem_bn", "side", "sum"})),
    # The converter computes the same call on the same input once.
    "shared": Net(shared, X, frozenset({"conv#2"})),
    # A Conv1D is a Conv2D of another shape until its ReLU is done; two reshapes in a row are one.
    "two ends": Net(two_ends, [X, X[::-1]], frozenset({"line", "rows"})),
}


def with_statistics(make: Callable[[], Any]) -> Any:
    """The model with random weights that no two calls have the same output by chance."""
    keras.utils.set_random_seed(3)
    model = make()
    random = np.random.default_rng(1)
    model.set_weights(
        [random.uniform(0.1, 0.6, w.shape) * random.choice([-1, 1, 1], w.shape) for w in model.get_weights()]
    )
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_variance.assign(random.uniform(0.5, 2.0, layer.moving_variance.shape))
    return model


@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
def test_in_a_float_file_each_matched_tensor_is_that_of_its_call(net):
    model = with_statistics(net.make)
    rows = layer_sqnr(model, None, core.export_tflite(model, FLOAT), net.x)
    figures = {row.path: row.float_to_tflite_db for row in rows}
    assert all(row.float_to_qat_db is row.qat_to_tflite_db is None for row in rows)
    assert {path: db for path, db in figures.items() if db is not None and db < SAME_DB} == {}
    assert {path for path, db in figures.items() if db is None} == net.absorbed
    assert len(rows) > 4


def test_a_shared_layer_has_a_row_for_each_call():
    model = with_statistics(shared)
    rows = layer_sqnr(model, None, core.export_tflite(model, FLOAT), X)
    assert [row.path for row in rows if row.class_name == "Conv2D"] == ["conv", "conv#2", "conv#3", "conv_1"]


@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
def test_float_qat_and_file_side_by_side(net):
    model, recipe = with_statistics(net.make), core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(model, recipe, net.x)
    rows = layer_sqnr(model, quantized, core.export_tflite(quantized, recipe), net.x)
    both = [row for row in rows if row.float_to_tflite_db is not None]
    assert len(both) >= 3
    assert all(row.float_to_qat_db is not None for row in rows)
    for row in both:
        assert row.float_to_qat_db > 20.0, row
        assert row.qat_to_tflite_db > 25.0, row


def test_the_layer_that_hurts_shows():
    model, recipe = with_statistics(plain), core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(model, recipe, X)
    spoilt = next(layer for layer in quantized.layers if layer.name == "quant_side_bn")
    variables = spoilt._output_quantizer_vars
    for name in ("min_var", "max_var"):
        variables[name].assign(variables[name] * 0.1)
    data = core.export_tflite(quantized, recipe)
    figures = {row.path: row for row in layer_sqnr(model, quantized, data, X)}
    assert figures["stem_relu"].float_to_qat_db > 30.0
    assert figures["side_bn"].float_to_qat_db < 10.0
    assert figures["side_bn"].float_to_tflite_db < 10.0
    # The export is faithful to the spoilt model.
    assert figures["side_bn"].qat_to_tflite_db > 25.0


def test_the_table_is_csv():
    model = with_statistics(plain)
    rows = layer_sqnr(model, None, core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), X), X)
    table = list(csv.DictReader(layer_sqnr_csv(rows).splitlines()))
    assert [row["path"] for row in table] == [row.path for row in rows]
    for line, row in zip(table, rows, strict=True):
        assert line["float_to_qat_db"] == ""
        if row.float_to_tflite_db is None:
            assert line["float_to_tflite_db"] == ""
        else:
            assert float(line["float_to_tflite_db"]) == pytest.approx(row.float_to_tflite_db, abs=0.005)


def test_models_alone_can_be_compared():
    model = with_statistics(plain)
    quantized, _ = core.quantize(model, core.recipes.decode("wi8_ai8"), X)
    rows = layer_sqnr(model, quantized, None, X)
    assert all(row.float_to_tflite_db is None and row.float_to_qat_db is not None for row in rows)


def test_bytes_that_are_no_file_are_refused():
    with pytest.raises(ArtifactError, match="cannot be read"):
        layer_sqnr(with_statistics(shared), None, b"no model", X)
