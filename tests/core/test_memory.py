"""The arena, against sums made by hand and against what a process really takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.contract import Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.measure.memory import arena_bytes
from tfmot_ops.errors import ArtifactError

L = keras.layers
FLOAT = Recipe(name="float32")
#: Prints by how many bytes a process grows while it runs a file with TFLite's own kernels.
GROWTH = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter, OpResolverType
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
def run(path):
    kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=path, experimental_op_resolver_type=kind, num_threads=1)
    interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]
    # A page that is never written takes no memory.
    interpreter.set_tensor(detail["index"], numpy.ones(detail["shape"], detail["dtype"]))
    interpreter.invoke()
    return interpreter
small = run(sys.argv[1])  # what the runtime itself takes is there from now on
before = resident()
large = run(sys.argv[2])
print(resident() - before)
"""


def pointwise(size: int, *channels: int) -> Any:
    """1x1 convolutions without bias or activation: no scratch space, nothing computed in place."""
    x = inputs = L.Input((size, size, channels[0]))
    for count in channels[1:]:
        x = L.Conv2D(count, 1, use_bias=False)(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("channels", "live"),
    [
        ((4, 8), 4 + 8),
        # The input stays to the end, the first convolution's output until the second is done.
        ((4, 8, 2), 4 + 8 + 2),
        # The third's output takes the place of the first's.
        ((4, 8, 6, 8, 2), 4 + 8 + 6 + 2 - 2),
        ((4, 16, 4, 16, 4), 4 + 16 + 4),
    ],
)
def test_the_arena_of_a_chain_is_what_lives_at_once(channels, live):
    model = pointwise(16, *channels)
    assert arena_bytes(core.export_tflite(model, FLOAT)) == 16 * 16 * 4 * live


def test_int8_takes_a_quarter_of_float32():
    model, recipe = pointwise(16, 4, 8, 2), core.recipes.decode("wi8_ai8_ptq")
    calibration = np.random.default_rng(0).random((8, 16, 16, 4), np.float32)
    assert arena_bytes(core.export_tflite(model, recipe, calibration)) == 16 * 16 * 14


def test_scratch_space_counts():
    inputs = L.Input((16, 16, 4))
    data = core.export_tflite(keras.Model(inputs, L.Conv2D(8, 3, padding="same", use_bias=False)(inputs)), FLOAT)
    columns = 16 * 16 * 4 * (3 * 3 * 4)  # im2col of the built-in kernel, which may do without
    assert 16 * 16 * 4 * 12 <= arena_bytes(data) <= 16 * 16 * 4 * 12 + columns


def test_a_process_grows_by_the_arena(tmp_path):
    files = [tmp_path / "small.tflite", tmp_path / "large.tflite"]
    for path, size in zip(files, (8, 512), strict=True):
        path.write_bytes(core.export_tflite(pointwise(size, 8, 32, 8, 32, 4), FLOAT))
    arena = arena_bytes(files[1].read_bytes())
    assert arena == 512 * 512 * 4 * (8 + 32 + 8)
    command = [sys.executable, "-c", GROWTH, *map(str, files)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(tmp_path), timeout=120)
    assert int(answer.stdout) == pytest.approx(arena, rel=0.05)


def test_bytes_that_are_no_file_are_refused():
    with pytest.raises(ArtifactError, match="cannot be read"):
        arena_bytes(b"no model")
