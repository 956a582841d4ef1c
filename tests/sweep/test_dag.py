"""The DAG compat_sweep under Airflow: mapped shards, a summary that is right, and a notifier for what broke."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import mlflow
import pytest

from tfmot_ops.contract import Status
from tfmot_ops.tracking import earlier_sweeps

pytestmark = [pytest.mark.usefixtures("plugin"), pytest.mark.slow]

NAMES = ["sound", "sound_1", "fickle"]
PARAMS = {"architectures": NAMES, "recipes": ["wi8_ai8"]}
CELLS = {f"{name}/wi8_ai8" for name in NAMES}
EXPERIMENT = "tfmot_ops_sweep"


@pytest.fixture
def webhook():
    """A server that keeps what is posted to it: (address, bodies)."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


def test_three_architectures_then_a_regression_is_told(bench, run_dag, webhook) -> None:
    address, told = webhook
    answer, log = run_dag("compat_sweep", PARAMS)
    states = {(task["task"], task["state"]) for task in answer["tasks"]}
    assert answer["state"] == "success", log[-6000:]
    assert {("medium", "success"), ("heavy", "skipped"), ("summarize", "success")} <= states
    labels = [task["label"] for task in answer["tasks"] if task["task"] == "medium"]
    assert labels
    assert all("wi8_ai8 medium" in label for label in labels)
    (sweep,) = earlier_sweeps(bench.tracking_uri, EXPERIMENT)
    assert {cell.cell for cell in sweep.cells if cell.status is Status.OK} == CELLS
    assert set(sweep.judgement.new) == CELLS

    asked = PARAMS | {"force": True}
    answer, log = run_dag("compat_sweep", asked, TEST_BREAK="yes", TFMOT_OPS_SWEEP_WEBHOOK=address)
    states = {task["task"]: task["state"] for task in answer["tasks"]}
    # A red cell is a result, and its shard green; the sweep as a whole is not.
    assert (answer["state"], states["medium"], states["summarize"]) == ("failed", "success", "failed"), log[-3000:]
    assert "regressions: fickle/wi8_ai8 expected: passes; now: fails at build with unknown: planted" in log
    (message,) = told
    assert list(message["regressions"]) == ["fickle/wi8_ai8"]
    assert "compat_sweep" in message["text"]
    assert "planted" in message["text"]
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
