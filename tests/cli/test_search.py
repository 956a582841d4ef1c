"""`tfmot-ops search` as a person runs it: what it tries, prints, writes and records, and what a kill costs."""

from __future__ import annotations

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
from tfmot_ops.cli.shared_steps import SharedSteps
from tfmot_ops.contract import ACCURACY
from tfmot_ops.core import keras, save_model
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.search.goals import Goals
from tfmot_ops.search.ladder import ladder

pytestmark = pytest.mark.slow

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


def test_zeros_are_tried_where_ptq_is_too_large_and_the_float_model_is_made_once(given: list[str], tmp_path: Path):
    place = ["--output", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    goals = ["--max-drop", "30", "--max-gzip", "3300", "--fine-tune-epochs", "2"]
    result = run(*given, *goals, *place, "--json")
    assert result.exit_code == 0, result.output
    found = document(result)
    names = [each["name"] for each in found["candidates"]]
    assert names[0] == "wi8_ai8_ptq"
    assert found["chosen"] == names[-1]
    assert names[-1].startswith("sparse")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment_id(client)])
    kinds = [each.data.tags["tfmot_ops.kind"] for each in runs]
    assert kinds.count("train") == 1
    assert kinds.count("quantize") == len(names)
    assert {each.info.status for each in runs} == {"FINISHED"}
    (parent,) = [each for each in runs if each.info.run_name.startswith("search")]
    chains = [each for each in runs if each.data.tags["tfmot_ops.kind"] == "open_run" and each is not parent]
    assert {each.data.tags["mlflow.parentRunId"] for each in chains} == {parent.info.run_id}
    # Other goals take what is known: a new run of MLflow, and no candidate is tried again.
    again = run(*given, "--max-drop", "30", "--max-gzip", "1M", "--fine-tune-epochs", "2", *place, "--json")
    assert again.exit_code == 0, again.output
    assert document(again)["chosen"] == "wi8_ai8_ptq"
    assert len(client.search_runs([experiment_id(client)])) == len(runs) + 1
    chosen = found["candidates"][-1]["metrics"]
    assert parent.data.metrics["int8_accuracy"] == pytest.approx(chosen["accuracy"])
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {"search.html", "search.png"}


def test_an_unreachable_goal_ends_with_4_and_the_nearest(given: list[str], tmp_path: Path):
    result = run(*given, "--max-ram", "1", "--target", "cortex_m", "--no-tracking", "--output", str(tmp_path))
    assert result.exit_code == 4, result.output
    assert "No candidate meets every goal. The nearest:" in result.stdout
    assert "ram at most 0.0 KiB, received" in result.stdout
    # Nothing that a recipe changes would help, so the search ends after the first.
    assert not (tmp_path / "wi8_ai8").exists()


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


def test_a_candidate_that_failed_is_tried_again(tmp_path: Path):
    goals = Goals(max_drop=1.0)
    wanted = search.Search("mlp", "digits", goals, tmp_path, None)
    (first, second, *_) = ladder(goals, None).candidates
    (tmp_path / "good.tflite").write_bytes(b"")
    failed = search.Found(candidate=first, metrics={}, headline=ACCURACY, seconds=1.0, error="no space left")
    good = search.Found(
        candidate=second, metrics={"accuracy": 0.9}, headline=ACCURACY, seconds=1.0, tflite=tmp_path / "good.tflite"
    )
    target = targets.resolve_target("litert_cpu")
    wanted._taken_up(target, lambda _: None)  # gives the identity, by which a next start knows the state
    wanted.found = [failed, good]
    wanted._write(SharedSteps())
    again = search.Search("mlp", "digits", goals, tmp_path, None)
    again._taken_up(target, lambda _: None)
    assert again.found == [good]


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
