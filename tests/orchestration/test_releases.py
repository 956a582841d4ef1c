"""Under a real scheduler: a new champion starts other DAGs, a person decides about it, and new data start a chain."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tfmot_ops.operators import model_asset
from tfmot_ops.operators.data import dag_on_data
from tools.demo.servers import HOST, airflow_environment, airflow_is_healthy, free_port, wait_for
from tools.demo.workbench import Workbench, group

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(900), pytest.mark.slow]

DATA = "s3://bucket/digits.npz"
WAIT_S = 300.0
_CONFLICT, _SERVER_FAILED = 409, 500


@dataclass(frozen=True)
class Airflow:
    """A running standalone and its REST API."""

    port: int
    token: str

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer; one server process and SQLite on a busy machine may need several tries."""
        request = urllib.request.Request(
            f"http://{HOST}:{self.port}/api/v2{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
        )
        for is_last in (False, False, False, True):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http to loopback
                    return json.loads(response.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code == _CONFLICT and method != "GET":
                    return None  # what an earlier try has done
                if is_last or error.code < _SERVER_FAILED:
                    raise
            except TimeoutError:
                if is_last:
                    raise
            time.sleep(2)
        return None

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        run_id = uuid.uuid4().hex
        self.call("POST", f"/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf})
        return run_id

    def runs(self, dag_id: str) -> list[Any]:
        return list(self.call("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"])

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        tasks = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {each["task_id"]: each["state"] for each in tasks}

    def ended(self, dag_id: str, run_id: str) -> dict[str, str]:
        """The states of a run's tasks once it has ended."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}"
        until(lambda: self.call("GET", path)["state"] in {"success", "failed"}, f"{run_id} ends")
        return self.states(dag_id, run_id)

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        value = self.call("GET", path)["value"]
        return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value


def until(what: Callable[[], Any], title: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {title}"
        time.sleep(0.5)
    return answer


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    home = tmp_path_factory.mktemp("releases")
    bench = Workbench(home=home, dags=Path(__file__).with_name("release_dags"))
    bench.prepare(lambda _: None)
    port, log = free_port(), bench.new_log("airflow")
    settings = airflow_environment(bench, port)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        server = stack.enter_context(group([sys.executable, "-m", "airflow", "standalone"], settings, output))
        wait_for(lambda: airflow_is_healthy(port), {"Airflow": (server, log)})
        with urllib.request.urlopen(f"http://{HOST}:{port}/auth/token", timeout=30) as response:
            token = json.loads(response.read())["access_token"]
        running = Airflow(port, token)

        def is_known() -> bool:
            with contextlib.suppress(urllib.error.HTTPError):
                return bool(running.call("GET", "/dags")["total_entries"] == 7)
            return False

        until(is_known, "the DAGs are known")
        yield running


def _decided(airflow: Airflow, choice: str) -> tuple[str, dict[str, str], Any]:
    """(run, states of its tasks, what the person was shown) after a person has decided."""
    run_id = airflow.trigger("release", {"approval": True})
    path = f"/dags/release/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"

    def shown() -> Any:
        with contextlib.suppress(urllib.error.HTTPError):  # not asked yet
            return airflow.call("GET", path)
        return None

    detail = until(shown, "a person is asked")
    # Airflow 3.2 defers what later versions let wait for input.
    until(lambda: airflow.states("release", run_id)["approve"] in {"awaiting_input", "deferred"}, "it waits")
    assert airflow.states("release", run_id)["promote"] is None
    # Airflow 3.3 takes a task for lost, and fails it, whose answer comes before the scheduler has read that its first
    # process has ended. The scheduler reads that about once a second; a person is slower.
    time.sleep(10)
    airflow.call("PATCH", path, {"chosen_options": [choice], "params_input": {}})
    return run_id, airflow.ended("release", run_id), detail


def test_after_approval_the_version_is_promoted_and_its_champion_starts_a_dag(airflow: Airflow) -> None:
    before = len(airflow.runs("deploy"))
    _, states, detail = _decided(airflow, "Approve")
    assert states == {"register": "success", "approve": "success", "promote": "success"}
    assert detail["subject"] == "Shall version 3 of my digits become the champion?"
    assert "| accuracy, this file | 91.3% |" in detail["body"]
    assert "| size of the file | 91,234 bytes |" in detail["body"]
    for dag_id in ("deploy", "by_hand", "try_out"):
        until(lambda dag_id=dag_id: len(airflow.runs(dag_id)) > before, f"{dag_id} is started")
    run_id = airflow.runs("deploy")[-1]["dag_run_id"]
    assert airflow.ended("deploy", run_id) == {"extras": "success"}
    assert airflow.xcom("deploy", run_id, "extras") == [{"version": "3", "run_id": "f" * 32, "replaced_version": "2"}]
    assert airflow.runs("other") == []


def test_after_a_rejection_nothing_is_promoted_and_the_chain_ends_well(airflow: Airflow) -> None:
    deployed = len(airflow.runs("deploy"))
    run_id, states, _ = _decided(airflow, "Reject")
    assert states == {"register": "success", "approve": "success", "promote": "skipped"}
    assert airflow.call("GET", f"/dags/release/dagRuns/{run_id}")["state"] == "success"
    log = airflow.call("GET", f"/dags/release/dagRuns/{run_id}/taskInstances/approve/logs/1?full_content=true")
    assert "my digits gets no new champion" in json.dumps(log)
    # The candidate is new; the champion is not.
    until(lambda: len(airflow.runs("try_out")) > deployed, "try_out is started")
    assert len(airflow.runs("deploy")) == deployed


def test_without_approval_nobody_is_asked(airflow: Airflow) -> None:
    run_id = airflow.trigger("release", {})
    assert airflow.ended("release", run_id) == {"register": "success", "approve": "skipped", "promote": "skipped"}


def test_new_data_start_a_chain_with_the_parameters_of_their_dag(airflow: Airflow) -> None:
    (asset,) = airflow.call("GET", "/assets?uri_pattern=digits.npz")["assets"]
    airflow.call("POST", "/assets/events", {"asset_id": asset["id"], "extra": {}})
    run, *_ = until(lambda: airflow.runs("optimize_model"), "optimize_model is started")
    assert run["conf"] == {"dataset": f"npz:{DATA}"}
    assert airflow.ended("optimize_model", run["dag_run_id"]) == {"dataset": "success"}
    assert airflow.xcom("optimize_model", run["dag_run_id"], "dataset") == f"npz:{DATA}"


def test_assets_of_different_models_and_aliases_differ() -> None:
    names = ("net", "net/", "a b", "a%20b", "ä", "net@x", "net?x#y")
    assets = [model_asset(name, alias).uri for name in names for alias in ("champion", "candidate")]
    assert len(set(assets)) == len(assets)
    assert model_asset("net").uri == "mlflow://net/champion"


def test_each_data_set_has_a_dag_of_its_own() -> None:
    dags = [dag_on_data(uri, {}) for uri in ("s3://a/b", "s3://a_b", "s3://" + "a" * 300)]
    assert len({dag.dag_id for dag in dags}) == 3
    assert all(len(dag.dag_id) < 200 for dag in dags)
    assert dag_on_data("s3://a/b", {}, dag_id="mine").dag_id == "mine"
