"""Kernels that are written into the file after the conversion: the same file, at a fraction of the memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.core import export_tflite, quantize
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.measure.predictions import predict
from tfmot_ops.core.tflite.late_weights import SMALLEST_LATE_KERNEL, KernelLayout, LateWeights
from tfmot_ops.core.tflite.profile import profile_tflite
from tfmot_ops.recipes.names import decode

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).uniform(-1.0, 1.0, (8, 16, 16, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Convolutions of which one is called twice and one is grouped, a large depthwise one, and a square Dense."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = keras.Input((16, 16, 64))
    shared = layers.Conv2D(64, 3, padding="same", use_bias=False, name="shared")
    x = layers.BatchNormalization()(shared(shared(image)))
    x = layers.DepthwiseConv2D(16, padding="same", name="wide")(layers.ReLU()(x))
    x = layers.Conv2D(256, 3, groups=2, strides=2, name="grouped")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10)(layers.Dense(256, activation="relu", name="square")(x)))


def exported(model, recipe, monkeypatch, *, late: bool) -> bytes:
    with monkeypatch.context() as patch:
        if not late:
            patch.setattr(LateWeights, "takes", lambda *_: False)
        return export_tflite(model, recipe, IMAGES)


def constants(data: bytes) -> dict[bytes, np.ndarray]:
    model = schema.ModelT.InitFromPackedBuf(data)
    tensors = model.subgraphs[0].tensors
    return {
        t.name: np.asarray(model.buffers[t.buffer].data) for t in tensors if model.buffers[t.buffer].data is not None
    }


@pytest.mark.parametrize("name", ["wi8_ai8", "wi8_ai8_ptq", "wi8_ai16", "wi8_ai8_ptq_aeq", "wi8_afp32", "wi16f"])
def test_the_same_file(model, name, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tfmot_ops")
    recipe = decode(name)
    model = quantize(model, recipe, IMAGES)[0] if name == "wi8_ai8" else model
    late, plain = (exported(model, recipe, monkeypatch, late=late) for late in (True, False))
    assert "all weights in memory" not in caplog.text
    given, expected = constants(late), constants(plain)
    assert given.keys() == expected.keys()
    # A weight halfway between two levels may go to either.
    differing = sum(int((given[tensor] != expected[tensor]).sum()) for tensor in given)
    assert differing <= (20 if name == "wi8_ai8" else 0)
    profile = profile_tflite(late)
    assert profile.op_counts == profile_tflite(plain).op_counts
    assert abs(len(late) - len(plain)) < 4096
    a, b = (np.asarray(predict(data, IMAGES)) for data in (late, plain))
    assert np.abs(a - b).max() <= 0.02 * np.abs(b).max()


def test_a_shared_kernel_is_stored_once(model, monkeypatch):
    data = exported(model, decode("wi8_ai8_ptq"), monkeypatch, late=True)
    file = schema.Model.GetRootAs(data, 0)
    large = [
        size
        for index in range(file.BuffersLength())
        if (size := file.Buffers(index).DataLength()) >= SMALLEST_LATE_KERNEL
    ]
    assert sorted(large) == [16 * 16 * 64, 3 * 3 * 64 * 64, 256 * 256, 3 * 3 * 32 * 256]


def test_a_kernel_without_a_place_is_given_as_it_is(model, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tfmot_ops")
    with monkeypatch.context() as patch:
        patch.setattr("tfmot_ops.core.tflite.emit.KernelLayout", lambda _, axes: KernelLayout("CONV_3D", axes))
        data = export_tflite(model, decode("wi8_ai8_ptq"), IMAGES)
    assert "all weights in memory" in caplog.text
    assert data == exported(model, decode("wi8_ai8_ptq"), monkeypatch, late=False)
