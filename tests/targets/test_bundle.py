"""The bundle for a device: the C++ array is the file, and gives the test vectors in TFLite Micro."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tfmot_ops import core
from tfmot_ops.cli.app import app
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.errors import ArtifactError, SpecError, StepFailedError, UnsupportedModelError
from tfmot_ops.targets.bundle import method_of
from tfmot_ops.targets.kernels import run_tflm

L = keras.layers


def _file(folder: Path, activation: str = "relu") -> Path:
    set_seed(0)
    model = keras.Sequential([
        L.Input((8, 8, 1)), L.Conv2D(4, 3, activation=activation), L.GlobalAveragePooling2D(), L.Dense(10, "softmax"),
    ])  # fmt: skip
    recipe = core.recipes.decode("wi8_ai8_ptq")
    x = np.random.default_rng(0).random((64, 8, 8, 1), dtype=np.float32)
    path = folder / f"{activation}.tflite"
    path.write_bytes(core.export_tflite(model, recipe, x))
    return path


_PROGRAM = """
#include <cstdio>
#include <cstdint>
#include "model.h"
#include "test_vectors.h"
int main() {
  if (reinterpret_cast<uintptr_t>(model_data) % 16) return 1;
  std::fwrite(model_data, 1, model_size, stdout);
  std::fwrite(test_output_0, 1, sizeof(test_output_0), stderr);
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [[], ["--dataset", "digits"]])
def test_the_compiled_array_gives_the_vectors_in_tflite_micro(dataset: list[str], tmp_path: Path):
    file = _file(tmp_path)
    output = tmp_path / "out"
    done = CliRunner().invoke(app, ["bundle", str(file), "--output", str(output), "--samples", "5", "--json", *dataset])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout[done.stdout.index("{") :])
    assert {Path(name).name for name in document["files"]} == {path.name for path in output.iterdir()}
    compiler = shutil.which("g++")
    assert compiler is not None, "required: g++, for the C++ of the bundle"
    (output / "main.cc").write_text(_PROGRAM)
    program = str(tmp_path / "program")
    sources = [str(output / "main.cc"), str(output / "model.cc")]
    subprocess.run([compiler, "-Wall", "-Werror", "-std=c++17", *sources, "-o", program], check=True)
    ran = subprocess.run([program], capture_output=True, check=True)
    assert ran.stdout == file.read_bytes()
    with np.load(output / "test_vectors.npz") as vectors:
        inputs, expected = vectors["input_0"], vectors["output_0"]
    assert inputs.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(np.frombuffer(ran.stderr, np.int8).reshape(expected.shape), expected)
    micro = run_tflm(ran.stdout, [inputs], "cortex_m")
    np.testing.assert_array_equal(micro.outputs[0], expected)
    assert document["figures"]["target_ram_bytes"] == micro.arena_bytes
    for line in (output / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == digest
    assert "AddConv2D" in (output / "op_resolver.h").read_text()


@pytest.mark.parametrize(
    ("operation", "method"),
    [
        ("CONV_2D", "AddConv2D"), ("DEPTHWISE_CONV_2D", "AddDepthwiseConv2D"), ("RELU6", "AddRelu6"),
        ("ADD_N", "AddAddN"), ("PADV2", "AddPadV2"), ("REVERSE_V2", "AddReverseV2"), ("GATHER_ND", "AddGatherNd"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", "AddUnidirectionalSequenceLSTM"), ("SOFTMAX", "AddSoftmax"),
    ],
)  # fmt: skip
def test_methods_are_called_as_in_tflite_micro(operation: str, method: str):
    assert method_of(operation) == method


def test_nothing_is_written_for_a_file_that_the_target_does_not_take(tmp_path: Path):
    output = tmp_path / "out"
    (tmp_path / "tiny.yaml").write_text("name: tiny\ntflm: true\nlimits: {flash_bytes: 1k}\n")
    cases = [
        ([str(_file(tmp_path, "gelu"))], UnsupportedModelError, "GELU"),
        ([str(_file(tmp_path)), "--target", str(tmp_path / "tiny.yaml")], StepFailedError, "1,024"),
        ([str(tmp_path / "missing.tflite")], ArtifactError, "cannot be read"),
        ([str(tmp_path / "tiny.yaml")], ArtifactError, "cannot be read"),
        ([str(_file(tmp_path)), "--target", "toaster"], SpecError, "cortex_m"),
    ]
    for arguments, kind, message in cases:
        done = CliRunner().invoke(app, ["bundle", *arguments, "--output", str(output)])
        assert isinstance(done.exception, kind), (arguments, done.output)
        assert message in str(done.exception)
        assert not output.exists()
