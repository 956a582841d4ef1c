"""A step that is run again continues the training of the attempt before."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tfmot_ops import core
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import Artifact, ArtifactFormat, Status, StepSpec, Tracking
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.steps.resume import StepCheckpoint, checkpoint_uri
from tfmot_ops.store import describe
from tfmot_ops.system.environment import CHECKPOINTS
from tfmot_ops.tasks.classification import compile_default

pytestmark = pytest.mark.slow

L = keras.layers
RECIPE = "sparse50_wi8_ai8"


def _spec(kind: str, model: Artifact, output: Path, epochs: int) -> StepSpec:
    options = {"kind": kind, "dataset": "digits", "limit": 100, "batch_size": 32, "recipe": RECIPE, "epochs": epochs}
    document = {"step_id": kind, "inputs": {"model": model}, "output_uri": str(output), "seed": 3, "options": options}
    return StepSpec.model_validate(document)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Artifact]:
    """Kind of step -> the model it starts from."""
    folder = tmp_path_factory.mktemp("models")
    set_seed(0)
    model = keras.Sequential([L.Input((8, 8, 1)), L.Conv2D(8, 3), L.BatchNormalization(momentum=0.9), L.ReLU()])
    for layer in (L.Flatten(), L.Dense(10, activation="softmax")):
        model.add(layer)
    compile_default(model, 0.001)
    pruned, _ = core.prune(model, core.recipes.decode(RECIPE))
    found = {}
    for kind, each in (("fine_tune", pruned), ("quantize", core.strip(pruned))):
        path = folder / f"{kind}.h5"
        core.save_model(each, path)
        found[kind] = describe(path, str(path), ArtifactFormat.KERAS_H5)
    return found


def test_the_command_killed_in_quantize_and_run_again_makes_the_same_file(models, tmp_path):
    spec, told = _spec("quantize", models["quantize"], tmp_path / "out", 30), []
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "tfmot_ops.cli", "run", "--spec", "spec.json", "--result", "result.json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert any("quantize epoch 3/30" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "out" / ".quantize.checkpoint.npz").exists()
    resumed = execute(spec, told.append)
    assert resumed.status is Status.OK
    (kept,) = re.findall(r"quantize continues after epoch (\d+) of 30$", "\n".join(told), re.MULTILINE)
    assert int(kept) >= 3
    # Of the epochs before the kill, the last one that was kept is reported again, and no other.
    reported = [int(number) for number in re.findall(r"quantize epoch (\d+)/30", "\n".join(told))]
    assert reported == list(range(int(kept), 31))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.h5", "tflite.tflite"]
    whole = execute(spec.model_copy(update={"output_uri": str(tmp_path / "whole")}), told.append)
    assert resumed.outputs["tflite"].sha256 == whole.outputs["tflite"].sha256


def test_a_stopped_fine_tune_continues_and_holds_its_sparsity(models, tmp_path):
    spec, told = _spec("fine_tune", models["fine_tune"], tmp_path, 3), []

    def stop(line: str) -> None:
        told.append(line)
        if "epoch 2/3" in line:
            raise RuntimeError(line)

    assert execute(spec, stop).status is Status.FAILED
    assert execute(spec, told.append).status is Status.OK
    assert "fine_tune continues after epoch 2 of 3" in told
    tuned = core.load_model(tmp_path / "model.h5")
    assert min(core.assert_sparsity(core.strip(tuned), core.recipes.decode(RECIPE)).values()) >= 0.49


def test_every_attempt_finds_the_same_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {"kind": "train", "dataset": "digits", "model": "first/model"}
    tracking = Tracking(uri="sqlite:///x.db", key={"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": "-1"})
    spec = StepSpec.model_validate({"step_id": "train", "tracking": tracking, "options": options})
    other = spec.model_copy(update={"options": spec.options.model_copy(update={"model": "second/model"})})
    assert checkpoint_uri(spec) == checkpoint_uri(other)
    assert checkpoint_uri(spec).startswith(f"{tmp_path}/tfmot_ops/checkpoints/train-")
    mapped = spec.model_copy(update={"tracking": tracking.model_copy(update={"key": {"map_index": "1"}})})
    assert checkpoint_uri(spec) != checkpoint_uri(mapped)
    monkeypatch.setenv(CHECKPOINTS.name, "s3://bucket/checkpoints/")
    assert checkpoint_uri(spec).startswith("s3://bucket/checkpoints/train-")


def test_a_checkpoint_may_be_anywhere_and_goes_in_the_end(models, tmp_path):
    told: list[str] = []
    spec = _spec("fine_tune", models["fine_tune"], tmp_path, 1).model_copy(update={"output_uri": "memory://out"})
    first = StepCheckpoint(spec, tmp_path, told.append).open()
    assert not first.path.exists()
    for state in (b"after epoch 1", b"after epoch 2"):
        first.path.write_bytes(state)
        first.saved(first.path)
    second = StepCheckpoint(spec, tmp_path / "second", told.append)
    assert second.open().path.read_bytes() == b"after epoch 2"
    second.remove()
    assert not StepCheckpoint(spec, tmp_path, told.append).open().path.exists()
    assert told == []


def test_a_place_that_cannot_be_reached_is_told_of(models, tmp_path):
    told: list[str] = []
    spec = _spec("fine_tune", models["fine_tune"], tmp_path, 1).model_copy(update={"output_uri": "nosuch://out"})
    checkpoint = StepCheckpoint(spec, tmp_path, told.append).open()
    assert told[0].startswith("fine_tune starts from the beginning: cannot read nosuch://out/.fine_tune.checkpoint.npz")
    with pytest.raises(OSError, match="nosuch"):  # which the training tells of, and goes on
        checkpoint.saved(checkpoint.path)


def test_checkpoints_that_nobody_came_back_to_are_swept(monkeypatch: pytest.MonkeyPatch, models, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "tfmot_ops" / "checkpoints"
    folder.mkdir(parents=True)
    for name, age in (("old", 15 * 86400), ("new", 0)):
        path = folder / f"{name}.npz"
        path.write_bytes(b"")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    StepCheckpoint(_spec("fine_tune", models["fine_tune"], tmp_path, 1), tmp_path, print).remove()
    assert [path.name for path in folder.iterdir()] == ["new.npz"]
