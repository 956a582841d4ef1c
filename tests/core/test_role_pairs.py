"""Every producer before every reader: int8, and no conversion between them that TFLite does not need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core import keras

pytestmark = pytest.mark.slow

L = keras.layers
#: Gives a layer, or a function of a tensor.
Make = Callable[[], Callable[[Any], Any]]

#: What gives an image [N, 8, 8, 4], of a convolution's result.
_PRODUCERS: dict[str, Make] = {
    "convolution": lambda: L.Conv2D(4, 1),
    "transposed": lambda: L.Conv2DTranspose(4, 1),
    "affine": lambda: lambda x: L.BatchNormalization()(L.MaxPooling2D(1)(x)),
    "relu": L.ReLU,
    "sigmoid": lambda: L.Activation("sigmoid"),
    "softmax": L.Softmax,
    "tanh": lambda: L.Activation("tanh"),
    "pass": lambda: L.MaxPooling2D(2, 1, "same"),
    "pass of tanh": lambda: lambda x: L.MaxPooling2D(2, 1, "same")(L.Activation("tanh")(x)),
    "several results": lambda: lambda x: tf.split(L.Concatenate()([x, x]), 2, -1)[0],
    "same scale": lambda: L.AveragePooling2D(2, 1, "same"),
    "same scale of sigmoid": lambda: lambda x: L.AveragePooling2D(2, 1, "same")(L.Activation("sigmoid")(x)),
    "computes": lambda: lambda x: L.Add()([x, L.Conv2D(4, 1)(x)]),
    "swish": lambda: L.Activation("swish"),
    "normalised": L.LayerNormalization,
    "rows of a table": lambda: lambda _: L.Reshape((8, 8, 4))(L.Embedding(20, 4)(keras.Input((64,), dtype="int32"))),
    "input": lambda: lambda _: keras.Input((8, 8, 4)),
}
#: What reads it.
_READERS: dict[str, Make] = {
    "convolution": lambda: L.Conv2D(4, 1),
    "affine": L.BatchNormalization,
    "relu": L.ReLU,
    "relu6": lambda: L.ReLU(6.0),
    "leaky": L.LeakyReLU,
    "sigmoid": lambda: L.Activation("sigmoid"),
    "tanh": lambda: L.Activation("tanh"),
    "pass": L.MaxPooling2D,
    "function": lambda: lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]),
    "average pool": L.AveragePooling2D,
    "pool function": lambda: lambda x: tf.nn.relu(tf.nn.avg_pool2d(x, 2, 2, "SAME")),
    "resize": lambda: L.UpSampling2D(interpolation="bilinear"),
    "mean": L.GlobalAveragePooling2D,
    "itself twice": lambda: lambda x: L.Concatenate()([x, x]),
    "product": lambda: lambda x: tf.matmul(x, x, transpose_b=True),
}
#: TFLite's kernels fix the output range of these, so a merge with any other has to convert it: once for each.
_FIXED = {"sigmoid", "softmax", "tanh", "pass of tanh", "same scale of sigmoid"}


def _ends(tensors: list[Any]) -> list[Any]:
    return [L.Dense(2)(L.Flatten()(tensor)) for tensor in tensors]


def _inputs(tensor: Any) -> Iterator[Any]:
    """The inputs that a tensor is made from."""
    layer, node, _ = tensor._keras_history
    if isinstance(layer, L.InputLayer):
        yield tensor
    else:
        for before in tf.nest.flatten(layer._inbound_nodes[node].keras_inputs):
            yield from _inputs(before)


def _profile(outputs: list[Any]) -> Any:
    inputs = list({id(tensor): tensor for output in outputs for tensor in _inputs(output)}.values())
    rng = np.random.default_rng(0)
    x = [
        rng.integers(0, 20, (8, *tensor.shape[1:])).astype(np.int32)
        if tensor.dtype == tf.int32
        else rng.normal(size=(8, *tensor.shape[1:])).astype(np.float32)
        for tensor in inputs
    ]
    recipe = core.recipes.decode("wi8_ai8")
    quantized, reports = core.quantize(keras.Model(inputs, outputs), recipe, x if len(x) > 1 else x[0])
    profile = core.profile_tflite(core.export_tflite(quantized, recipe))
    assert (profile.int8_mac_fraction, profile.float_ops) == (1.0, 0), profile.op_counts
    return profile, reports


def _made(name: str) -> Any:
    return _PRODUCERS[name]()(L.Conv2D(4, 1)(keras.Input((8, 8, 4))))


@pytest.mark.parametrize("name", _PRODUCERS)
def test_one_reader(name: str) -> None:
    """Each reader has a producer of its own, which the converter may compute as one with it."""
    keras.utils.set_random_seed(0)
    profile, _ = _profile(_ends([make()(_made(name)) for make in _READERS.values()]))
    assert profile.requantize_ops == 0, profile.op_counts


@pytest.mark.parametrize("name", _PRODUCERS)
def test_several_readers(name: str) -> None:
    keras.utils.set_random_seed(0)
    made = _made(name)
    profile, _ = _profile(_ends([make()(made) for make in _READERS.values()]))
    assert profile.requantize_ops == 0, profile.op_counts


@pytest.mark.parametrize("name", _PRODUCERS)
def test_merged_with_a_convolution(name: str) -> None:
    """A merge is on one range with what it reads."""
    keras.utils.set_random_seed(0)
    merges = [L.Concatenate(name="merge_0"), L.Maximum(name="merge_1")]
    made = [_made(name) for _ in merges]
    profile, reports = _profile(_ends([merge([x, L.Conv2D(4, 1)(x)]) for merge, x in zip(merges, made, strict=True)]))
    assert profile.requantize_ops == len(merges) * int(name in _FIXED), profile.op_counts
    reasons = [report.reason for report in reports if report.path.startswith("merge")]
    assert ["is requantised" in reason for reason in reasons] == [name in _FIXED] * len(merges)


def test_two_fixed_ranges_are_one_conversion_apart() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    gates = [L.Conv2D(4, 1, activation=name)(inputs) for name in ("sigmoid", "tanh", "tanh")]
    profile, _ = _profile(_ends([L.Concatenate()(gates), L.Concatenate()(gates[1:])]))
    assert profile.requantize_ops == 1, profile.op_counts


def test_tables_that_are_concatenated_share_a_range() -> None:
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((5,), dtype="int32") for _ in "abc"]
    shared, other = L.Embedding(20, 4, name="shared"), L.Embedding(30, 4, name="other")
    rows = [L.Flatten()(table(ids)) for table, ids in zip((shared, shared, other), inputs, strict=True)]
    # A shared table has one range in both.
    profile, _ = _profile(_ends([L.Concatenate()([rows[0], rows[2]]), L.Concatenate()([rows[1], L.Dense(4)(rows[1])])]))
    assert profile.requantize_ops == 0, profile.op_counts


def test_zeros_of_a_table_that_shares_its_range_are_held(tmp_path: Any) -> None:
    keras.utils.set_random_seed(0)
    ids = keras.Input((5,), dtype="int32")
    tables = [L.Embedding(20, 4, name=name) for name in ("a", "b")]
    model = keras.Model(ids, L.Dense(2)(L.Flatten()(L.Concatenate()([table(ids) for table in tables]))))
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    x = np.random.default_rng(0).integers(0, 20, (16, 5)).astype(np.int32)
    quantized, _ = core.quantize(core.strip(core.prune(model, recipe)[0]), recipe, x)
    quantized.compile("sgd", "mse")
    quantized.fit(x, np.ones((16, 2), np.float32), epochs=2, verbose=0)
    core.save_model(quantized, tmp_path / "tables.h5")
    loaded = core.load_model(tmp_path / "tables.h5")
    assert core.assert_sparsity(loaded, recipe).keys() >= {"a", "b"}
    assert np.array_equal(loaded(x), quantized(x))
