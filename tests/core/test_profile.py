"""The figures of a TFLite file, against counts made by hand."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.measure.latency import latency_ms
from tfmot_ops.core.tflite.profile import profile_tflite
from tfmot_ops.errors import ArtifactError

layers = keras.layers


def convert(model: Any, kind: str = "float", shape: tuple[int, ...] = (8, 8, 4), io_type: Any = tf.int8) -> bytes:
    function = tf.function(model).get_concrete_function(tf.TensorSpec([None, *shape], tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    if kind != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        samples = np.random.default_rng(0).random((8, 1, *shape), dtype=np.float32)
        converter.representative_dataset = lambda: ([sample] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io_type
    return converter.convert()


def network() -> Any:
    return keras.Sequential(
        [
            layers.Input((8, 8, 4)),
            layers.Conv2D(8, 3, padding="same", name="conv"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(16, name="dense"),
        ]
    )


NETWORK_MACS = 8 * 8 * 8 * (3 * 3 * 4) + 8 * 8 * 8 * (3 * 3) + 8 * 16


@dataclass(frozen=True)
class Counted:
    """A layer and its multiply-accumulates, counted by hand."""

    id: str
    layer: Callable[[], Any]
    op: str
    macs: int


COUNTED = [
    Counted("conv", lambda: layers.Conv2D(5, 3, strides=2), "CONV_2D", 3 * 3 * 5 * (3 * 3 * 4)),
    Counted("grouped", lambda: layers.Conv2D(6, 3, groups=2), "CONV_2D", 6 * 6 * 6 * (3 * 3 * 2)),
    Counted("depthwise", lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), "DEPTHWISE_CONV_2D", 6 * 6 * 8 * 9),
    Counted("transposed", lambda: layers.Conv2DTranspose(5, 3, strides=2), "TRANSPOSE_CONV", 8 * 8 * 4 * (5 * 3 * 3)),
    Counted("dense", lambda: layers.Dense(7), "FULLY_CONNECTED", 8 * 8 * 4 * 7),
    Counted(
        "matmul",
        lambda: layers.Lambda(lambda x: tf.matmul(x[..., 0], x[..., 1][:, :, :6])),
        "BATCH_MATMUL",
        8 * 8 * 6,
    ),
    Counted(
        "adjoint",
        lambda: layers.Lambda(lambda x: tf.matmul(x[..., 0][:, :, :5], x[..., 1][:, :, :6], transpose_a=True)),
        "BATCH_MATMUL",
        5 * 6 * 8,
    ),
]


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: case.id)
def test_macs(case: Counted):
    profile = profile_tflite(convert(keras.Sequential([layers.Input((8, 8, 4)), case.layer()])))
    assert profile.op_counts[case.op] == 1
    assert profile.macs == case.macs
    assert profile.int8_mac_fraction == 0.0


def test_a_float_file():
    data = convert(network())
    profile = profile_tflite(data)
    assert profile.macs == NETWORK_MACS
    assert profile.int8_mac_fraction == 0.0
    assert profile.float_ops == sum(profile.op_counts.values()) == 4
    assert profile.requantize_ops == 0
    assert profile.input_dtypes == profile.output_dtypes == ("float32",)
    assert profile.size_bytes == len(data)
    assert len(gzip.compress(data, 6)) == profile.gzip_bytes


def test_an_int8_file():
    profile = profile_tflite(convert(network(), "int8"))
    assert profile.macs == NETWORK_MACS
    assert profile.int8_mac_fraction == 1.0
    assert profile.float_ops == 0
    assert profile.requantize_ops == 0
    assert profile.input_dtypes == profile.output_dtypes == ("int8",)
    assert sorted(profile.weight_sizes.values()) == [8 * 9, 8 * 16, 3 * 3 * 4 * 8]


def test_conversions_at_the_boundary_do_not_count():
    profile = profile_tflite(convert(network(), "int8", io_type=tf.float32))
    assert profile.input_dtypes == ("float32",)
    assert profile.op_counts["QUANTIZE"] == profile.op_counts["DEQUANTIZE"] == 1
    assert profile.float_ops == 0
    assert profile.requantize_ops == 0
    assert profile.int8_mac_fraction == 1.0


def test_conversions_inside_the_graph_count():
    # Fake-quant on one convolution's data only: the converter has to dequantise in the middle of the graph.
    def middle(x: Any) -> Any:
        x = tf.quantization.fake_quant_with_min_max_args(x, -4, 4)
        x = tf.reshape(x, (-1, 4, 16, 4))
        return tf.sin(x)

    inputs = layers.Input((8, 8, 4))
    model = keras.Model(inputs, layers.Lambda(middle)(layers.Conv2D(4, 1)(layers.Lambda(tf.sin)(inputs))))
    profile = profile_tflite(convert(model, "dynamic"))
    assert profile.requantize_ops == profile.op_counts["QUANTIZE"] + profile.op_counts["DEQUANTIZE"] == 2
    assert profile.float_ops >= 4
    assert profile.int8_mac_fraction == 0.0


@pytest.mark.parametrize("kind", ["float", "float16", "dynamic", "int8"])
def test_sparsity_is_read_per_weight_tensor(kind: str):
    # Over 1024 weights: the converter leaves smaller ones in float when only the weights are quantised.
    inputs = layers.Input((8, 8, 4))
    hidden = layers.Conv2D(64, 3, name="sparse", bias_initializer="ones")(inputs)
    model = keras.Model(inputs, layers.Dense(32, name="full")(layers.Flatten()(hidden)))
    rng = np.random.default_rng(0)
    kernel = rng.uniform(0.5, 1.0, (3, 3, 4, 64)).astype(np.float32)
    kernel.reshape(-1, 64)[:9] = 0.0  # a quarter of the 36 weights of each filter
    model.layers[1].kernel.assign(kernel)
    dense = model.layers[-1].kernel
    dense.assign(rng.uniform(0.5, 1.0, dense.shape))
    profile = profile_tflite(convert(model, kind))
    by_size = {size: profile.sparsity[name] for name, size in profile.weight_sizes.items()}
    assert by_size == {kernel.size: 0.25, int(np.prod(dense.shape)): 0.0}
    total = kernel.size + int(np.prod(dense.shape))
    assert profile.weight_sparsity == pytest.approx(kernel.size / 4 / total)
    assert profile.int8_mac_fraction == (1.0 if kind == "int8" else 0.0)


def test_float16_weights_are_neither_float_ops_nor_conversions_of_their_own():
    profile = profile_tflite(convert(network(), "float16"))
    assert profile.op_counts["DEQUANTIZE"] > 0
    assert profile.requantize_ops == 0
    assert profile.float_ops == 4


def test_a_file_without_weights():
    profile = profile_tflite(convert(keras.Sequential([layers.Input((8, 8, 4)), layers.ReLU()])))
    assert (profile.macs, profile.int8_mac_fraction, profile.weight_sparsity) == (0, 0.0, 0.0)


@pytest.mark.parametrize("data", [b"", b"no model at all"])
def test_bytes_that_are_no_file_are_refused(data: bytes):
    with pytest.raises(ArtifactError, match="cannot be read"):
        profile_tflite(data)


def test_latency_is_in_order_and_in_milliseconds():
    latency = latency_ms(convert(network(), "int8"), runs=20)
    assert 0.0 < latency.p10 <= latency.median <= latency.p90 < 1000.0
