"""The command as a user starts it: real processes, real data, MLflow on SQLite."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

from tfmot_ops import core, store
from tfmot_ops.cli import chain_table as report
from tfmot_ops.cli import execute, main, schemas
from tfmot_ops.contract import (
    Artifact,
    ArtifactFormat,
    FineTuneOptions,
    ListOptions,
    OpenRunOptions,
    QuantizeOptions,
    RegisterOptions,
    Status,
    StepResult,
    StepSpec,
    Tracking,
    TrainOptions,
)
from tfmot_ops.errors import ArtifactError, SpecError
from tfmot_ops.tracking.client import connect

CHAIN = ["train", "prune", "fine_tune", "strip", "quantize", "evaluate"]
DATA: dict[str, Any] = {"dataset": "digits", "limit": 100, "batch_size": 32}
# What a machine takes for its own: times, and ids of runs.
OWN = ("duration_s", "latency")


def _command(*arguments: str, folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    # MLflow puts the server and the experiment of this process into its environment.
    env = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    command = [sys.executable, "-m", "tfmot_ops.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, env=env, check=False)


def _write(spec: StepSpec, folder: Path) -> Path:
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json())
    return path


class Optimized(NamedTuple):
    folder: Path
    lines: list[str]
    uri: str


@pytest.fixture(scope="module")
def optimized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimize")
    arguments = "optimize --model resnet8 --dataset digits --recipe sparse50_wi8_ai8 --output out"
    budget = "--epochs 2 --fine-tune-epochs 2 --qat-epochs 1 --limit 100 --batch-size 32 --seed 3"
    done = _command(*f"{arguments} {budget}".split(), folder=folder)
    assert done.returncode == 0, done.stderr
    return Optimized(folder, done.stdout.splitlines(), f"sqlite:///{folder}/out/mlflow.db")


@pytest.mark.slow
def test_optimize_ends_with_a_table_and_the_path_of_an_int8_file(optimized):
    *_, last = optimized.lines
    path = Path(last.removeprefix("TFLite: "))
    profile = core.profile_tflite(path.read_bytes())
    assert (profile.int8_mac_fraction, profile.float_ops, profile.input_dtypes) == (1.0, 0, ("int8",))
    head = next(index for index, line in enumerate(optimized.lines) if line.startswith("step "))
    rows = [line.split() for line in optimized.lines[head + 1 : head + 1 + len(CHAIN)]]
    assert [row[0] for row in rows] == CHAIN
    assert rows[-1][2] == "50.0%"


@pytest.mark.slow
def test_progress_is_one_marked_line_an_epoch(optimized):
    told = [line.removeprefix("tfmot-ops: ") for line in optimized.lines if line.startswith("tfmot-ops: ")]
    epochs = [line for line in told if " epoch " in line]
    assert [line.split(" loss ")[0] for line in epochs] == [
        "train epoch 1/2",
        "train epoch 2/2",
        "fine_tune epoch 1/2",
        "fine_tune epoch 2/2",
        "quantize epoch 1/1",
    ]
    assert all(re.search(r" accuracy 0\.\d{3} val_loss [\d.]+ val_accuracy 0\.\d{3}$", line) for line in epochs)
    assert not any("[====" in line for line in optimized.lines)


@pytest.mark.slow
def test_optimize_leaves_one_run_a_step_under_one_parent(optimized):
    client, experiment = connect(optimized.uri, "tfmot_ops")
    runs = client.search_runs([experiment], order_by=["start_time"])
    parent, *children = sorted(runs, key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert [run.info.run_name for run in children] == CHAIN
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.info.run_name == "resnet8 digits sparse50_wi8_ai8"
    evaluated = children[CHAIN.index("evaluate")].data.metrics
    assert parent.data.metrics["int8_accuracy"] == evaluated["accuracy"]
    assert parent.data.metrics["accuracy_drop"] == evaluated["accuracy_drop"]
    assert not any("." in name for name in parent.data.metrics)
    quantize = children[CHAIN.index("quantize")]
    assert quantize.data.params["compile.optimizer"] == "Adam"
    assert float(quantize.data.params["compile.optimizer.learning_rate"]) == pytest.approx(1e-3)
    assert float(quantize.data.params["learning_rate"]) == pytest.approx(1e-4)
    assert quantize.data.metrics["least_layer_sparsity"] >= 0.49
    files = {entry.path for entry in client.list_artifacts(quantize.info.run_id)}
    assert files == {"layers.json", "model.h5", "result.json", "tflite.tflite"}
    assert not (optimized.folder / "mlruns").exists()


@pytest.mark.slow
def test_a_step_of_its_own_process_gives_the_same_numbers(optimized, tmp_path):
    """Nothing leaks between the steps of one process: fine_tune and quantize alone repeat what the chain got."""
    done = {result.step_id: result for result in _results(optimized)}
    options = {
        "fine_tune": FineTuneOptions(**DATA, recipe="sparse50_wi8_ai8", epochs=2),
        "quantize": QuantizeOptions(**DATA, recipe="sparse50_wi8_ai8", epochs=1),
    }
    before = {"fine_tune": "prune", "quantize": "strip"}
    for name, step_options in options.items():
        spec = StepSpec(
            step_id=name,
            inputs={"model": done[before[name]].outputs["model"]},
            output_uri=str(tmp_path / name),
            seed=3,
            tracking=Tracking(uri=optimized.uri, experiment="again"),
            options=step_options,
        )
        answer = tmp_path / f"{name}.json"
        ran = _command("run", "--spec", str(_write(spec, tmp_path)), "--result", str(answer), folder=tmp_path)
        assert ran.returncode == 0, ran.stderr
        again = StepResult.model_validate_json(answer.read_text())
        assert _numbers(again) == _numbers(done[name])
        assert {artifact.uri.split(":")[0] for artifact in again.outputs.values()} == {"file"}
    assert again.outputs["tflite"].sha256 == done["quantize"].outputs["tflite"].sha256


def _results(optimized: Optimized) -> list[StepResult]:
    client, experiment = connect(optimized.uri, "tfmot_ops")
    with tempfile.TemporaryDirectory() as folder:
        return [
            StepResult.model_validate_json(
                Path(client.download_artifacts(run.info.run_id, "result.json", folder)).read_text()
            )
            for run in client.search_runs([experiment])
        ]


def _numbers(result: StepResult) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if not name.startswith(OWN)}


class Bad(NamedTuple):
    change: dict[str, Any]
    field: str
    required: str
    received: str


TFLITE = {"tflite": {"uri": "gone", "sha256": "0" * 64, "size_bytes": 1, "format": "tflite"}}
TRAIN = {"kind": "train", "model": "resnet8", **DATA}
BAD = {
    "range": Bad({"options": {**TRAIN, "epochs": -1}}, "options.epochs", "greater than or equal to 0", "-1"),
    "missing": Bad({"options": {"kind": "train", **DATA}}, "options.model", "Field required", "nothing"),
    "extra": Bad({"options": {**TRAIN, "epoch": 3}}, "options.epoch", "not permitted", "3"),
    "kind": Bad({"options": {"kind": "shrink"}}, "options", "'train'", "shrink"),
    "recipe": Bad(
        {"options": {"kind": "prune", **DATA, "recipe": {"name": "x", "sparsity": {"ratio": 1.5}}}},
        "options.recipe.sparsity.ratio",
        "less than 1",
        "1.5",
    ),
    "place": Bad({"output_uri": None}, "(whole)", "give output_uri or tracking", "train"),
    "model name": Bad({"options": {**TRAIN, "model": "resnet9"}}, "options.model", "resnet8", "resnet9"),
    "data set name": Bad({"options": {**TRAIN, "dataset": "digit"}}, "options.dataset", "digits", "digit"),
    "recipe name": Bad(
        {"options": {"kind": "evaluate", **DATA, "recipe": "int7"}, "inputs": TFLITE}, "int7", "wi8", "int7"
    ),
    "input": Bad({"options": {"kind": "prune", **DATA, "recipe": "wi8_ai8"}}, "inputs", "model", "no inputs"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_a_bad_spec_is_told_by_field_and_writes_nothing(case, tmp_path, capsys):
    document = {"step_id": "train", "output_uri": str(tmp_path / "out"), "options": TRAIN, **case.change}
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SpecError) as caught:
        execute.execute(execute.read_spec(path))
    assert caught.value.exit_code == 2
    lines = str(caught.value).splitlines()
    assert case.field in lines[0]
    assert case.required in lines[1]
    assert lines[1].startswith("  required: ")
    assert lines[2].startswith("  received: ")
    assert case.received in lines[2]
    assert list(tmp_path.iterdir()) == [path]
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_bad_spec_ends_the_command_with_2_and_leaves_no_file_and_no_run(tmp_path):
    document = {
        "step_id": "train",
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "options": {**TRAIN, "model": "resnet9"},
    }
    (tmp_path / "spec.json").write_text(json.dumps(document))
    done = _command("run", "--spec", "spec.json", "--result", "result.json", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "  received: resnet9" in done.stderr
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["spec.json"]


TYPOS = {
    "model": ("resnet9", "digits", "wi8_ai8", "received: resnet9"),
    "application": ("application:MobileNetV9", "digits", "wi8_ai8", "received: 'MobileNetV9'"),
    "data set": ("resnet8", "digit", "wi8_ai8", "received: digit"),
    "recipe": ("resnet8", "digits", "int7", "recipe name 'int7' cannot be decoded"),
}


@pytest.mark.parametrize(("model", "dataset", "recipe", "told"), TYPOS.values(), ids=TYPOS.keys())
def test_optimize_with_a_wrong_name_writes_nothing(model, dataset, recipe, told, tmp_path, monkeypatch, capsys):  # noqa: PLR0917 - fixtures
    arguments = ["--model", model, "--dataset", dataset, "--recipe", recipe, "--epochs", "1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tfmot-ops", "optimize", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_step_that_fails_says_so_in_its_result_and_exit_code(tmp_path):
    lost = Artifact(uri=f"{tmp_path}/gone.h5", sha256="0" * 64, size_bytes=1, format=ArtifactFormat.KERAS_H5)
    options = FineTuneOptions(**DATA, recipe="wi8_ai8")
    spec = StepSpec(step_id="fine_tune", inputs={"model": lost}, output_uri=str(tmp_path / "out"), options=options)
    done = _command("run", "--spec", str(_write(spec, tmp_path)), "--result", "result.json", folder=tmp_path)
    assert done.returncode == 4, done.stderr
    result = StepResult.model_validate_json((tmp_path / "result.json").read_text())
    assert result.status is Status.FAILED
    assert result.error is not None
    assert (result.error.type, result.error.exit_code) == ("ArtifactError", 4)
    assert result.spec_sha256 == spec.sha256()
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_retry_with_the_same_key_leaves_one_run_and_one_result(tmp_path):
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", key={"dag_id": "d", "task_id": "train"})
    spec = StepSpec(step_id="train", tracking=tracking, options=TrainOptions(model="resnet8", **DATA, epochs=0))
    first, second = execute.execute(spec), execute.execute(spec)
    assert first.status is Status.OK, first.error
    assert first.tracking_run_id == second.tracking_run_id
    assert first.outputs == second.outputs
    client, experiment = connect(tracking.uri, "tfmot_ops")
    (_,) = client.search_runs([experiment])

    # The logged model, by its MLflow URI, is what another training starts from.
    (logged,) = client.search_logged_models([experiment])
    options = spec.options.model_copy(update={"model": logged.model_uri})
    taken_up = spec.model_copy(update={"options": options, "seed": 0})
    result = execute.execute(taken_up)
    assert result.status is Status.OK, result.error
    assert result.metrics["accuracy"] == first.metrics["accuracy"]
    assert (result.spec_sha256, result.parameters["model"]) == (taken_up.sha256(), logged.model_uri)


def test_kinds_without_a_model(tmp_path):
    def run(options: Any, **fields: Any) -> StepResult:
        return execute.execute(StepSpec(step_id="s", output_uri=str(tmp_path), options=options, **fields))

    assert run(OpenRunOptions()).status is Status.OK
    listed = run(ListOptions(what="recipes"))
    assert "sparse50_wi8_ai8" in json.loads((tmp_path / "list.json").read_text())
    assert "sparse50_wi8_ai8" in listed.parameters["list"]
    gate = RegisterOptions(name="m", metrics={"accuracy": 0.7}, gates={"accuracy": 0.8})
    closed = run(gate, inputs={"tflite": listed.outputs["list"]})
    assert closed.error is not None
    assert "accuracy at_least: required 0.8 or more, received 0.7" in closed.error.message


def test_a_result_appears_complete_or_not_at_all(tmp_path):
    result = execute.execute(StepSpec(step_id="s", output_uri=str(tmp_path / "out"), options=ListOptions()))
    path = tmp_path / "deep" / "result.json"
    execute.write_result(result, path)
    execute.write_result(result, path)
    assert StepResult.model_validate_json(path.read_text()) == result
    blocked = tmp_path / "blocked"
    (blocked / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        execute.write_result(result, blocked)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["blocked", "deep", "out"]


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "tfmot_ops.cli", *sys.argv[1:]], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, start_new_session=True, text=True)
print(child.pid, flush=True)
for line in child.stdout:
    print(line, end="", flush=True)
"""


@pytest.mark.slow
def test_a_killed_parent_takes_the_step_with_it(tmp_path):
    options = TrainOptions(model="resnet8", **DATA, epochs=100_000)
    spec = StepSpec(step_id="train", output_uri=str(tmp_path / "out"), options=options)
    arguments = ["run", "--spec", str(_write(spec, tmp_path)), "--result", "result.json", "--die-with-parent"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    while "epoch" not in parent.stdout.readline():  # in the middle of the training
        assert parent.poll() is None
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < deadline, "the step outlived its parent"
        time.sleep(0.05)
    assert not (tmp_path / "result.json").exists()
    parent.stdout.close()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_help_version_list_and_schema_answer(tmp_path):
    assert "optimize" in _command("--help", folder=tmp_path).stdout
    assert _command("--version", folder=tmp_path).stdout.startswith("tfmot-ops 0.")
    assert "resnet8" in json.loads(_command("list", "models", "--json", folder=tmp_path).stdout)


def test_every_document_has_a_schema(monkeypatch, capsys):
    offered = get_args(schemas.DocumentName)
    assert list(offered) == list(schemas.SCHEMAS)
    for name in offered:
        monkeypatch.setattr(sys, "argv", ["tfmot-ops", "schema", name])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in {None, 0}, name
        assert json.loads(capsys.readouterr().out)["title"] == schemas.SCHEMAS[name].__name__


def test_store_puts_whole_files_and_fetches_what_was_put(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    for uri in (str(tmp_path / "plain"), f"file://{tmp_path}/uri", "memory://folder"):
        artifact = store.FsspecStore(uri).put(file, "tflite", ArtifactFormat.TFLITE)
        assert artifact.size_bytes == 3
        assert store.fetch(artifact, tmp_path / "back").read_bytes() == b"abc"
    assert [entry.name for entry in (tmp_path / "plain").iterdir()] == ["tflite.tflite"]
    (tmp_path / "uri" / "tflite.tflite").write_bytes(b"abd")
    changed = artifact.model_copy(update={"uri": f"file://{tmp_path}/uri/tflite.tflite"})
    with pytest.raises(ArtifactError, match="not the file that was recorded"):
        store.fetch(changed, tmp_path / "back")
    with pytest.raises(ArtifactError, match="cannot read"):
        store.fetch(artifact.model_copy(update={"uri": "nothing://there"}), tmp_path / "back")


def test_the_table_has_a_row_for_what_was_measured_and_for_what_failed():
    measured = {"accuracy": 0.8765, "size_bytes": 12_300.0, "latency_ms": 0.0123}
    told = {"spec_sha256": "", "duration_s": 1.25}
    results = [
        StepResult(step_id="open_run", kind="open_run", status=Status.OK, **told),
        StepResult(step_id="train", kind="train", status=Status.OK, metrics=measured, **told),
        StepResult(step_id="prune", kind="prune", status=Status.FAILED, **told),
    ]
    lines = report.summary_lines(results)
    assert [line.split()[0] for line in lines] == ["step", "train", "prune"]
    assert lines[1].split()[1:] == ["87.6%", "-", "12.3", "kB", "-", "-", "0.012", "ms", "1.2", "s"]
    assert report.summary_table(results).row_count == 2
