"""Strided convolutions whose training ends the process in TensorFlow's oneDNN: trained as slices."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tfmot_ops.core import keras
from tfmot_ops.core.training.convolutions import strides_as_slices

pytestmark = pytest.mark.slow

L = keras.layers
#: Trains a net with such a convolution; run in a process of its own, as the fault ends the process.
TRAINING = """
import numpy as np
from tfmot_ops.core import keras
from tfmot_ops.core.training.loop import fit
L = keras.layers
model = keras.Sequential([L.Input((60, 60, 8)), L.Conv2D(16, 1, strides=2), L.GlobalAveragePooling2D(), L.Dense(1)])
model.compile("sgd", "mse")
x = np.ones((64, 60, 60, 8), np.float32)
fit(model, x, np.ones((64, 1), np.float32), None, epochs=3, batch_size=32, seed=0)
"""


@pytest.mark.parametrize("channels", [3, 8, 16])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_computes_the_same(channels: int, size: int, padding: str) -> None:
    layers: list[tuple[Any, tuple[int, ...]]] = [
        (L.Conv2D(4, 1, strides=(2, 1), padding=padding), (size, size)),
        (L.Conv2D(4, 1, strides=3, padding=padding), (size, size)),
        (L.Conv1D(4, 1, strides=2, padding=padding), (size,)),
        (L.Conv2D(4, (1, 3), strides=(1, 2), padding=padding), (size, size)),
    ]
    for layer, sizes in layers:
        x = np.random.default_rng(0).normal(size=(2, *sizes, channels)).astype(np.float32)
        expected = layer(x)
        with strides_as_slices():
            found = layer(x)
        assert found.shape == expected.shape
        assert np.allclose(found, expected, atol=1e-6)
    assert "convolution_op" not in vars(L.Conv2D)


def test_a_net_that_ends_the_process_is_trained() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
