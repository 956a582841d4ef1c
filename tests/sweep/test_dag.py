"""The DAG compat_sweep under Airflow: mapped shards, a summary that is right, and a notifier for what broke."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from tfmot_ops.contract import Status
from tfmot_ops.demo.bench import Workbench
from tfmot_ops.tracking import earlier_sweeps

pytestmark = pytest.mark.usefixtures("plugin")

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["sound", "sound_1", "sound_2", "sound_3", "sound_4", "fickle"]
CELLS = {f"{name}/wi8_ai8" for name in NAMES}
EXPERIMENT = "tfmot_ops_sweep"


@pytest.fixture
def bench(tmp_path):
    bench = Workbench(home=tmp_path / "bench", dags=ROOT / "dags")
    bench.prepare(lambda _: None)
    return bench


def run(bench, dag="compat_sweep", params=None, **more):
    answer = bench.home / "answer.json"
    params = json.dumps(params or {"architectures": NAMES, "recipes": ["wi8_ai8"], "force": bool(more)})
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_dag.py")), dag, params, str(answer)],
        env=bench.environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(answer.read_text(encoding="utf-8")), done.stdout


def test_six_architectures_then_a_regression_is_told(bench) -> None:
    answer, log = run(bench)
    states = {(task["task"], task["state"]) for task in answer["tasks"]}
    assert answer["state"] == "success", log[-6000:]
    assert {("light", "success"), ("heavy", "skipped"), ("summarize", "success")} <= states
    labels = [task["label"] for task in answer["tasks"] if task["task"] == "light"]
    assert labels
    assert all("wi8_ai8 light" in label for label in labels)
    (sweep,) = earlier_sweeps(bench.tracking_uri, EXPERIMENT)
    assert {cell.cell for cell in sweep.cells if cell.status is Status.OK} == CELLS
    assert set(sweep.judgement.new) == CELLS

    answer, log = run(bench, TEST_BREAK="yes")
    states = {task["task"]: task["state"] for task in answer["tasks"]}
    # A red cell is a result, and its shard green; the sweep as a whole is not.
    assert (answer["state"], states["light"], states["summarize"]) == ("failed", "success", "failed"), log[-3000:]
    assert "regressions: fickle/wi8_ai8 unknown at build: planted" in log
    latest = earlier_sweeps(bench.tracking_uri, EXPERIMENT)[0]
    assert list(latest.judgement.regressions) == ["fickle/wi8_ai8"]
    assert latest.repros

    client = mlflow.MlflowClient(bench.tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    red = client.search_runs([experiment.experiment_id], "tags.stage = 'build' and tags.status = 'failed'")
    assert [each.data.tags["architecture"] for each in red] == ["fickle"]
    parent = latest.run_url.removeprefix("runs:/")
    assert client.get_run(parent).info.status == "FAILED"
    assert {"page.html", "sweep.json", "matrix.json"} <= {file.path for file in client.list_artifacts(parent)}


def test_a_forecast_tells_what_another_interpreter_would_break(bench, tmp_path) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexport TEST_BREAK=yes\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    params = {"architectures": ["fickle", "sound"], "recipes": ["wi8_ai8"], "next_python": str(other)}
    answer, log = run(bench, "compat_forecast", params)
    states = {task["task"]: task["state"] for task in answer["tasks"]}
    assert (answer["state"], states["now"], states["then"], states["forecast"]) == (
        "failed",
        "success",
        "success",
        "failed",
    ), log[-4000:]
    assert "fickle/wi8_ai8  ok   build: unknown (RuntimeError)  breaks" in log
    assert "no-go: 1 of 2 cells get worse" in log
    assert earlier_sweeps(bench.tracking_uri, EXPERIMENT) == [], "a forecast is no sweep"
