"""Under a real scheduler: what `make ui` starts (LocalExecutor, MLflow server), the real DAG, real steps, three faults.

The two faulty runs go on at the same time, as each is mostly start-up of TensorFlow.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.demo.servers import HOST
from tools.demo.workbench import Workbench

DAG = "optimize_model"
STEPS = ("train", "prune", "fine_tune", "strip", "quantize", "evaluate")
CONF = {"limit": 300, "epochs": 1, "fine_tune_epochs": 40, "qat_epochs": 0}
RUN_S = 600.0
# A task process and its step have to be gone well within Airflow's own patience.
GONE_S = 15.0

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]


@dataclass(frozen=True)
class Airflow:
    """A running standalone and its REST API."""

    bench: Workbench
    port: int
    mlflow_port: int
    token: str

    def mlflow(self, method, path, body=None):
        """The answer of MLflow's REST API."""
        status, answer = self.call(method, f"/api/2.0/mlflow/{path}", body, port=self.mlflow_port)
        assert status == 200, answer
        return answer

    def call(self, method, path, body=None, port=None):
        """(HTTP status, answer) of Airflow's REST API."""
        request = urllib.request.Request(
            f"http://{HOST}:{port or self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - http to loopback
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def trigger(self, conf):
        return self.call("POST", f"/api/v2/dags/{DAG}/dagRuns", {"logical_date": None, "conf": conf})

    def run_state(self, run_id):
        return self.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run_id}")[1]["state"]

    def task(self, run_id, task_id):
        return self.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/{task_id}")[1]

    def wait_for_run(self, run_id, *states):
        return until(lambda: (state := self.run_state(run_id)) in states and state, RUN_S, f"{run_id} ends")

    def log(self, run_id, task_id):
        """The logs of all attempts of a task."""
        folder = self.bench.airflow_home / "logs" / f"dag_id={DAG}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("attempt=*.log")))


def until(what, seconds, title):
    """What `what()` gives, once that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {title}"
        time.sleep(0.5)
    return answer


def step_pid(run_id, task_id):
    """Process of a step: the one that was given the spec with the run's key."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
            if "tfmot_ops.cli" in words and "--spec" in words:
                spec = json.loads(Path(words[words.index("--spec") + 1]).read_bytes())
                key = spec["tracking"]["key"]
                if (key.get("run_id"), key.get("task_id")) == (run_id, task_id):  # other tests have keys of their own
                    return int(entry.name)
        except (OSError, ValueError):
            continue
    return None


def state_of(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return fields


def is_gone(pid):
    fields = state_of(pid)
    return fields is None or fields[0] == "Z"


def parent_of(pid):
    return int(state_of(pid)[1])


def descendants(pid):
    """Processes below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := state_of(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    below = list(parents.get(pid, ()))
    for child in below:
        below += parents.get(child, ())
    return below


@pytest.fixture(scope="module")
def airflow(bench):
    """`make ui`, with everything in a temporary folder; after the tests it has to stop with all its children."""
    settings = {
        # A task process that is killed is noticed by its supervisor at once; these are for what is noticed by time.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    }
    command = [sys.executable, "-m", "tools.demo", "--home", str(bench.home), "ui"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | settings) as ui:
        try:
            said = []
            while "Ctrl-C" not in (line := ui.stdout.readline()):
                said.append(line)
                assert line, "".join(said)
            ports = {
                name: int(port)
                for name, port in re.findall(r"^(\w+): +http://127.0.0.1:(\d+)", "".join(said), re.MULTILINE)
            }
            with urllib.request.urlopen(f"http://{HOST}:{ports['Airflow']}/auth/token", timeout=30) as response:
                token = json.loads(response.read())["access_token"]
            running = Airflow(bench, ports["Airflow"], ports["MLflow"], token)
            until(lambda: running.call("GET", f"/api/v2/dags/{DAG}")[0] == 200, 60, "the DAG is known")
            yield running
        finally:
            below = descendants(ui.pid)
            ui.terminate()
            ui.wait(60)
    assert ui.returncode == 0
    assert len(below) > 6
    assert [pid for pid in below if not is_gone(pid)] == []


@pytest.mark.parametrize(
    ("conf", "field"),
    [
        pytest.param({"recipe": "no_such_recipe"}, "recipe", id="enum"),
        pytest.param({"device": "tpu"}, "device", id="enum-device"),
        pytest.param({"epochs": -1}, "epochs", id="range"),
        pytest.param({"limit": 10}, "limit", id="nullable-range"),
        pytest.param({"recipe_file": "recipe.exe"}, "recipe_file", id="pattern"),
        pytest.param({"epochs": "many"}, "epochs", id="type"),
    ],
)
def test_a_wrong_value_is_refused_at_trigger_time(airflow, conf, field):
    status, answer = airflow.trigger(conf)
    assert status == 400, answer
    assert field in answer


def kill_step(_airflow, _run_id, step):
    os.kill(step, signal.SIGKILL)


def kill_task_process(_airflow, _run_id, step):
    os.kill(parent_of(step), signal.SIGKILL)


def mark_failed(airflow, run_id, _step):
    path = f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/fine_tune"
    status, answer = airflow.call("PATCH", path, {"new_state": "failed"})
    assert status == 200, answer


#: Name of a run -> what happens to its fine_tune, one after the other.
FAULTS = {"step": [kill_step], "task": [kill_task_process, mark_failed]}


@pytest.fixture(scope="module")
def faulty(airflow):
    """Name of a run -> (run id, seconds until the step was gone after each fault)."""
    runs = {}
    for name in FAULTS:
        status, answer = airflow.trigger(CONF)
        assert status == 200, answer
        runs[name] = answer["dag_run_id"]
    gone = {name: [] for name in FAULTS}

    def hit_all():
        for name, run_id in runs.items():
            if len(gone[name]) == len(FAULTS[name]):
                continue
            log = airflow.log(run_id, "fine_tune")
            assert airflow.run_state(run_id) in ("queued", "running"), log[-3000:]
            # The attempt after a kill says where it goes on, before its first epoch.
            step = step_pid(run_id, "fine_tune")
            if step and re.search("fine_tune epoch 2/" if not gone[name] else "fine_tune continues", log):
                FAULTS[name][len(gone[name])](airflow, run_id, step)
                began = time.monotonic()
                until(lambda step=step: is_gone(step), GONE_S, f"step of {name} is gone")
                gone[name].append(time.monotonic() - began)
        return all(len(gone[name]) == len(faults) for name, faults in FAULTS.items())

    until(hit_all, RUN_S, "all runs are in fine_tune")
    return {name: (run_id, gone[name]) for name, run_id in runs.items()}


def mlflow_runs(airflow, run_id):
    """[name, status, id] of the MLflow run of a DAG run, then of each of its children."""
    path = f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/open_run/xcomEntries/return_value"
    opened = airflow.call("GET", path)[1]["value"]
    parent_id = (json.loads(opened) if isinstance(opened, str) else opened)["tracking_run_id"]
    parent = airflow.mlflow("GET", f"runs/get?run_id={parent_id}")["run"]
    search = {
        "experiment_ids": [parent["info"]["experiment_id"]],
        "filter": f"tags.mlflow.parentRunId = '{parent_id}'",
    }
    children = airflow.mlflow("POST", "runs/search", search)["runs"]
    return [[run["info"][field] for field in ("run_name", "status", "run_id")] for run in (parent, *children)]


def check_green(airflow, run_id):
    assert airflow.wait_for_run(run_id, "success", "failed") == "success"
    parent, *children = mlflow_runs(airflow, run_id)
    assert parent[1] == "FINISHED"
    assert sorted(name for name, _, _ in children) == sorted(STEPS)
    assert {status for _, status, _ in children} == {"FINISHED"}
    assert [step_pid(run_id, task) for task in STEPS] == [None] * len(STEPS)


def check_continued(airflow, run_id):
    continued = re.search(r"fine_tune continues after epoch (\d+) of 40", airflow.log(run_id, "fine_tune"))
    assert continued
    assert 2 <= int(continued[1]) < 40


def test_after_a_kill_of_the_step_the_retry_succeeds(airflow, faulty):
    run_id, seconds = faulty["step"]
    assert max(seconds) < GONE_S
    check_green(airflow, run_id)
    task = airflow.task(run_id, "fine_tune")
    assert (task["state"], task["try_number"]) == ("success", 2)
    check_continued(airflow, run_id)


def test_after_a_kill_of_the_task_a_retry_that_is_marked_failed_ends_its_step_and_can_be_cleared(airflow, faulty):
    run_id, seconds = faulty["task"]
    assert max(seconds) < GONE_S
    check_continued(airflow, run_id)
    # Marked by hand, so no retry is due: the run fails, and close_run has run.
    assert airflow.wait_for_run(run_id, "success", "failed") == "failed"
    assert airflow.task(run_id, "close_run")["state"] == "success"
    status, answer = airflow.call(
        "POST",
        f"/api/v2/dags/{DAG}/clearTaskInstances",
        {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": ["fine_tune"],
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        },
    )
    assert status == 200, answer
    check_green(airflow, run_id)


def test_the_link_leads_to_the_run(airflow, faulty):
    run_id = faulty["step"][0]
    airflow.wait_for_run(run_id, "success", "failed")
    status, links = airflow.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/fine_tune/links")
    assert status == 200, links
    (child,) = [child for name, _, child in mlflow_runs(airflow, run_id) if name == "fine_tune"]
    assert links["extra_links"] == {"MLflow run": f"http://{HOST}:{airflow.mlflow_port}/#/runs/{child}"}
