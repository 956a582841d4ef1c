"""`tfmot-ops search` as a person runs it: what it tries, prints, writes and records, and what a kill costs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from typer.testing import CliRunner

from tfmot_ops import targets
from tfmot_ops.cli import search
from tfmot_ops.cli.app import app
from tfmot_ops.cli.execute import execute
from tfmot_ops.cli.shared_steps import SharedSteps
from tfmot_ops.contract import ACCURACY, Found, Goals, Status, StepSpec, Tracking
from tfmot_ops.core import keras, save_model
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.errors import SpecError
from tfmot_ops.search.ladder import ladder
from tools.demo.workbench import Workbench

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]

L = keras.layers


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments with a small trained model, of 2,000 weights, and its samples."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    y = np.arange(400) % 4
    x = (rng.normal(size=(400, 16)) + 3.0 * np.eye(4).repeat(4, 1)[y]).astype(np.float32)
    np.savez(folder / "rows.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    set_seed(0)
    layers = [L.Dense(64, activation="relu"), L.Dense(32, activation="relu"), L.Dense(4, activation="softmax")]
    model = keras.Sequential([L.Input((16,)), *layers])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(x[:300], y[:300], epochs=8, verbose=0)
    save_model(model, folder / "rows.h5")
    return ["--model", str(folder / "rows.h5"), "--dataset", f"npz:{folder / 'rows.npz'}", "--qat-epochs", "1"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["search", *arguments])


def experiment_id(client: Any) -> str:
    return str(client.get_experiment_by_name("tfmot_ops").experiment_id)


def document(result: Any) -> dict[str, Any]:
    text: str = result.stdout
    return dict(json.loads(text[text.index("{") :]))


def test_a_goal_that_ptq_meets_takes_one_candidate(given: list[str], tmp_path: Path):
    result = run(*given, "--max-drop", "2", "--no-tracking", "--json", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    found = document(result)
    assert found["chosen"] == "wi8_ai8_ptq"
    (only,) = found["candidates"]
    assert only["goals"]["max_drop"]["met"]
    assert Path(only["tflite"]).read_bytes()[4:8] == b"TFL3"
    html = Path(found["page"]).read_text()
    assert "wi8_ai8_ptq" in html
    assert "<script src" not in html
    assert "<link" not in html
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")


#: Of the command and of the DAG: PTQ is accurate and too large, and half of the weights zero is small enough.
GOALS = {"target": "per_tensor_npu", "max_drop": 30, "max_gzip": "4000"}
EPOCHS = {"fine_tune_epochs": 2, "qat_epochs": 1}


@pytest.fixture(scope="module")
def zeros(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, Any]]:
    """A search that registers what it chooses: (folder, arguments for where it is recorded, its answer)."""
    folder = tmp_path_factory.mktemp("zeros")
    place = ["--output", str(folder), "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    goals = [f"--{name.replace('_', '-')}={value}" for name, value in (GOALS | EPOCHS).items()]
    result = run(*given, *goals, *place, "--register", "rows", "--promote", "--json")
    assert result.exit_code == 0, result.output
    return folder, place, document(result)


def test_zeros_are_tried_where_ptq_is_too_large_and_the_float_model_is_made_once(
    given: list[str], zeros: tuple[Path, list[str], dict[str, Any]]
):
    folder, place, found = zeros
    names = [each["name"] for each in found["candidates"]]
    assert names == ["wi8_ai8_ptq", "sparse50_wi8_ai8"]
    assert found["chosen"] == names[-1]
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([experiment_id(client)])
    kinds = [each.data.tags["tfmot_ops.kind"] for each in runs]
    assert kinds.count("train") == 1
    assert kinds.count("quantize") == len(names)
    assert {each.info.status for each in runs} == {"FINISHED"}
    (parent,) = [each for each in runs if each.info.run_name.startswith("search")]
    chains = [each for each in runs if each.data.tags["tfmot_ops.kind"] == "open_run" and each is not parent]
    assert {each.data.tags["mlflow.parentRunId"] for each in chains} == {parent.info.run_id}
    chosen = found["candidates"][-1]["metrics"]
    assert parent.data.metrics["int8_accuracy"] == pytest.approx(chosen["accuracy"])
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"search.html", "search.png", "search.csv"}
    # Other goals take what is known: a new run of MLflow, and no candidate is tried again.
    goals = [
        *given,
        "--target",
        "per_tensor_npu",
        "--max-drop",
        "30",
        "--max-gzip",
        "1M",
        "--fine-tune-epochs",
        "2",
        *place,
    ]
    again = run(*goals, "--json")
    assert again.exit_code == 0, again.output
    assert document(again)["chosen"] == "wi8_ai8_ptq"
    assert len(client.search_runs([experiment_id(client)])) == len(runs) + 1


def test_the_chosen_file_is_registered_with_its_card(zeros: tuple[Path, list[str], dict[str, Any]]):
    folder, _, found = zeros
    assert found["registered"] == {"name": "rows", "alias": "candidate", "version": "1", "replaced": None}
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    version = client.get_model_version_by_alias("rows", "champion")
    assert str(version.version) == "1"
    assert "steps: prune, fine_tune, strip, quantize, evaluate" in version.description
    assert "`sparse50_wi8_ai8`" in version.description
    digest = hashlib.sha256(Path(found["candidates"][-1]["tflite"]).read_bytes()).hexdigest()
    assert digest in version.description


@pytest.fixture(scope="module")
def dag_runs(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `search_dag.py` wrote down: one run of the DAG with real steps, some with made-up figures."""
    bench = Workbench(home=tmp_path_factory.mktemp("bench"), dags=ROOT / "dags")
    bench.prepare(lambda _: None)
    params = {"model": given[1], "dataset": given[3], "candidates": 2, "register": "rows", **GOALS, **EPOCHS}
    answer = bench.home / "answer.json"
    script = Path(__file__).with_name("search_dag.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(params), str(answer)],
        env=bench.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return {**json.loads(answer.read_text()), "log": done.stdout, "uri": bench.tracking_uri}


def test_the_dag_chooses_as_the_command_does(dag_runs: dict[str, Any], zeros: tuple[Path, list[str], dict[str, Any]]):
    real, by_command = dag_runs["real"], zeros[2]
    assert real["state"] == "success", dag_runs["log"][-6000:]
    # The second rung would have more candidates, but the budget is used up.
    assert real["labels"] == ["sparse50_wi8_ai8", "wi8_ai8_ptq"]
    assert real["tasks"]["rung_3[-1]"][0] == "skipped"
    chosen = real["results"]["choose[-1]"]
    assert chosen["parameters"]["chosen"] == by_command["chosen"] == "sparse50_wi8_ai8"
    of_command = by_command["candidates"][-1]["metrics"]
    for metric in ("accuracy", "accuracy_drop", "size_bytes", "gzip_bytes", "sparsity", "target_ram_bytes"):
        assert chosen["metrics"][metric] == of_command[metric], metric
    file = chosen["outputs"]["tflite"]
    assert file["sha256"] == hashlib.sha256(Path(by_command["candidates"][-1]["tflite"]).read_bytes()).hexdigest()


def test_the_dag_records_what_the_command_does_and_registers(dag_runs: dict[str, Any]):
    client = mlflow.MlflowClient(dag_runs["uri"])
    runs = client.search_runs([experiment_id(client)])
    kinds = [each.data.tags["tfmot_ops.kind"] for each in runs]
    assert (kinds.count("train"), kinds.count("quantize"), kinds.count("evaluate")) == (1, 2, 2)
    assert {each.info.status for each in runs} == {"FINISHED"}
    (parent,) = [each for each in runs if each.info.run_name == "search rows.h5 rows.npz"]
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"search.html", "search.png", "search.csv"}
    chains = [each for each in runs if each.data.tags["tfmot_ops.kind"] == "open_run" and each is not parent]
    assert {each.data.tags["mlflow.parentRunId"] for each in chains} == {parent.info.run_id}
    version = client.get_model_version_by_alias("rows", "candidate")
    assert "steps: prune, fine_tune, strip, quantize, evaluate" in version.description
    assert dag_runs["real"]["tasks"]["approve[-1]"][0] == "skipped"


def test_unreachable_goals_fail_the_dag_without_a_retry_and_name_the_nearest(dag_runs: dict[str, Any]):
    ended = dag_runs["unreachable"]
    assert ended["state"] == "failed"
    assert ended["tasks"]["choose[-1]"] == ["failed", 1]
    assert ended["tasks"]["register[-1]"][0] == "upstream_failed"
    text = ended["reasons"]["choose"]
    assert "No candidate meets every goal. The nearest:" in text
    assert "  wi8_ai8: drop at most 1.0 points, received 2.0 points" in text
    assert "A smaller model, more epochs, or a milder goal would help." in text
    # A candidate whose task failed is left out, and the search went on.
    assert ended["labels"] == ["wi8_ai8", "wi8_ai8_distilled", "wi8_ai8_ptq", "wi8_ai8_ptq_aeq"]
    assert "failed: its task ended without a result" in text
    (closed,) = [spec for spec in ended["specs"] if spec["step_id"] == "close_run"]
    assert closed["options"]["failed"] == ["evaluate"]


def test_the_form_of_the_dag_has_the_fields_of_the_chain_and_the_goals(dag_runs: dict[str, Any]):
    fields = dag_runs["fields"]
    assert {"model", "dataset", "task", "metric", "training_file", "epochs", "limit", "register", "runner"} <= set(
        fields
    )
    assert set(Goals.model_fields) <= set(fields)
    assert fields["max_drop"]["type"] == ["null", "number"]
    assert all(dag_runs["refused"].values()), dag_runs["refused"]
    assert dag_runs["doc"].startswith("Find the recipe that meets your goals")
    assert dag_runs["slots"] >= 1
    assert "rung_1" in dag_runs["upstream"]["plan_2"]
    assert {"rung_1", "rung_4", "plan_4", "train"} <= set(dag_runs["upstream"]["choose"])


def test_an_unreachable_goal_ends_with_4_and_the_nearest(given: list[str], tmp_path: Path):
    place = ["--output", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    result = run(*given, "--max-ram", "1", "--target", "cortex_m", "--candidates", "1", "--register", "rows", *place)
    assert result.exit_code == 4, result.output
    assert "No candidate meets every goal. The nearest:" in result.stdout
    assert "ram at most 0.0 KiB, received" in result.stdout
    assert "rows: nothing registered, as no candidate meets every goal" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--max-drop"),
        (["--max-flash", "much"], "max_flash"),
        (["--max-drop", "1", "--target", "toaster"], "cortex_m"),
        (["--max-drop", "1", "--dataset", "no_such"], "unknown data set"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(
    given: list[str], arguments: list[str], message: str, tmp_path: Path
):
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "tfmot_ops.cli", "search", *given, *arguments, "--no-tracking", "--output", str(output)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--register", "rows", "--no-tracking"], "--register needs MLflow"),
        (["--promote"], "--register NAME"),
        (["--register", "a/b"], "field name"),
    ],
)
def test_a_registration_that_cannot_be_is_refused_before_anything_is_written(
    given: list[str], arguments: list[str], message: str, tmp_path: Path
):
    result = run(*given, "--max-drop", "1", *arguments, "--output", str(tmp_path / "out"))
    assert isinstance(result.exception, SpecError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_candidate_that_failed_is_tried_again(tmp_path: Path):
    goals = Goals(max_drop=1.0)
    wanted = search.Search("mlp", "digits", goals, tmp_path, None)
    (first, second, *_) = ladder(goals, None).candidates
    (tmp_path / "good.tflite").write_bytes(b"")
    failed = Found(candidate=first, metrics={}, headline=ACCURACY, seconds=1.0, error="no space left")
    good = Found(
        candidate=second, metrics={"accuracy": 0.9}, headline=ACCURACY, seconds=1.0, tflite=tmp_path / "good.tflite"
    )
    target = targets.resolve_target("litert_cpu")
    wanted._taken_up(target, lambda _: None)  # gives the identity, by which a next start knows the state
    wanted.found = [failed, good]
    wanted._write(SharedSteps())
    again = search.Search("mlp", "digits", goals, tmp_path, None)
    again._taken_up(target, lambda _: None)
    assert again.found == [good]


def test_a_retry_of_a_candidate_goes_on_in_its_runs(given: list[str], tmp_path: Path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    common = {"model": given[1], "dataset": given[3]}

    def spec(kind: str, **options: Any) -> StepSpec:
        key = {"dag_id": "search_model", "run_id": "r", "task_id": kind, "map_index": "0"}
        tracking = Tracking(uri=uri, key=key)
        return StepSpec.model_validate({"step_id": kind, "tracking": tracking, "options": {"kind": kind, **options}})

    trained = execute(spec("train", **common), lambda _: None)
    candidate = spec("candidate", **common, recipe="wi8_ai8_ptq", trained=trained)

    def killed(text: str) -> None:
        if text.startswith("quantize"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(candidate, killed)
    client = mlflow.MlflowClient(uri)
    (chain,) = client.search_runs([experiment_id(client)], "tags.`tfmot_ops.kind` = 'open_run'")
    # As after a kill by force: nobody ended the run.
    client.update_run(chain.info.run_id, status="RUNNING")
    said: list[str] = []
    result = execute(candidate, said.append)
    assert result.status is Status.OK, result.error
    assert f"continues run {chain.info.run_id}; done so far: train, prune, fine_tune, strip" in said
    assert result.tracking_run_id == chain.info.run_id
    assert result.metrics["latency_ratio"] > 0
    # An answer that was lost on the way is given again, and nothing runs twice.
    again = execute(candidate, lambda _: None)
    assert again.outputs == result.outputs
    runs = client.search_runs([experiment_id(client)])
    assert {each.info.status for each in runs} == {"FINISHED"}
    kinds = sorted(each.data.tags["tfmot_ops.kind"] for each in runs)
    assert kinds == ["evaluate", "fine_tune", "open_run", "prune", "quantize", "strip", "train"]


def test_a_killed_search_goes_on(given: list[str], tmp_path: Path):
    command = [sys.executable, "-m", "tfmot_ops.cli", "search", *given, "--no-tracking", "--json", "--max-drop", "-90"]
    command += ["--candidates", "3", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "trying wi8_ai8_ptq_aeq" in line:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.stderr.close()
    process.wait()
    before = json.loads((tmp_path / search.STATE).read_text())
    assert [each["candidate"]["name"] for each in before["found"]] == ["wi8_ai8_ptq"]
    trained = (tmp_path / "wi8_ai8_ptq" / "train" / "model.h5").stat().st_mtime_ns
    started = time.time_ns()
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert ended.returncode == 4, ended.stderr
    assert "continues; tried so far: wi8_ai8_ptq" in ended.stderr
    found = json.loads(ended.stdout)
    assert [each["name"] for each in found["candidates"]] == ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai8"]
    # Neither the first candidate nor the float model was made again.
    assert (tmp_path / "wi8_ai8_ptq" / "train" / "model.h5").stat().st_mtime_ns == trained < started
    assert not (tmp_path / "wi8_ai8" / "train").exists()
