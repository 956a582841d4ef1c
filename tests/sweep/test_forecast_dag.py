"""The DAG compat_forecast under Airflow: what another interpreter would break."""

from __future__ import annotations

import json
import sys

import pytest
from mlflow import MlflowClient

from tfmot_ops.tracking import earlier_sweeps

pytestmark = [pytest.mark.usefixtures("plugin"), pytest.mark.slow]


def test_a_forecast_tells_what_another_interpreter_would_break(bench, run_dag, tmp_path) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexport TEST_BREAK=yes\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    params = {"architectures": ["fickle", "sound"], "recipes": ["wi8_ai8"], "next_python": "broken"}
    listed = json.dumps({"broken": str(other)})
    answer, log = run_dag("compat_forecast", params, TFMOT_OPS_FORECAST_PYTHONS=listed)
    states = {task["task"]: task["state"] for task in answer["tasks"]}
    assert (answer["state"], states["now"], states["then"], states["forecast"]) == (
        "failed",
        "success",
        "success",
        "failed",
    ), log[-4000:]
    assert "fickle/wi8_ai8  ok   build: unknown (RuntimeError)  breaks" in log
    assert "no-go: 1 of 2 cells get worse" in log
    assert earlier_sweeps(bench.tracking_uri, "tfmot_ops_sweep") == [], "a forecast is no sweep"
    client = MlflowClient(tracking_uri=bench.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("tfmot_ops_sweep").experiment_id])
    assert "RUNNING" not in {run.info.status for run in runs}


@pytest.mark.parametrize("parameter", ["next_python", "next_image"])
def test_what_the_deployment_does_not_list_is_refused_before_the_first_step(run_dag, tmp_path, parameter) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    listed = json.dumps({"tf-next": "/opt/next"})
    variables = {"TFMOT_OPS_FORECAST_PYTHONS": listed, "TFMOT_OPS_FORECAST_IMAGES": listed}
    answer, log = run_dag("compat_forecast", {parameter: str(program)}, **variables)
    states = {task["task"]: task["state"] for task in answer["tasks"]}
    assert (answer["state"], states["check"], states["open_run"]) == ("failed", "failed", "upstream_failed"), log[
        -4000:
    ]
    assert "required: one of 'tf-next'" in log
    assert not (tmp_path / "ran").exists()
