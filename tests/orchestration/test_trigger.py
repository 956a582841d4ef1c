"""Who may trigger a DAG run may not thereby run a program, choose a place or read a file; by `dag.test()`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tfmot_ops.operators import CompatSweepOperator, TrainOperator
from tfmot_ops.runners import IMAGES_VARIABLE, OPTIONS_VARIABLE, RUNNER_VARIABLE
from tools.demo.workbench import Workbench

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

FOLDER = Path(__file__).with_name("trigger_dags")
SECRET = "hunter2secret"  # noqa: S105 - made up
#: Files that somebody who may trigger a run, and not read this machine's files, names as a recipe.
FILES = {
    "values.yaml": f"name: {SECRET}!\nsparsity: {{ratio: {SECRET}}}\n",
    "keys.yaml": f"{SECRET}: 1\nname: a\n",
    "list.yaml": f"- {SECRET}\n",
    "text.yaml": SECRET,
    "broken.yaml": f"password: [{SECRET}\n",
    "tag.yaml": f"!{SECRET} a\n",
    "alias.yaml": f"name: *{SECRET}\n",
    "values.json": json.dumps({"name": SECRET + "!", "budget": {"qat_epochs": SECRET}}),
    "broken.json": f'{{"password": "{SECRET}" oops',
}
RAN = ("allowed by a template", "allowed by the parameter")
URIS = ("a secret URI", "a mapped secret URI")
REFUSED = {
    "a runner's arguments as text": "a template gives arguments of a runner",
    "a runner with its name": "a template gives arguments of a runner",
    "an argument": "a template gives arguments of a runner",
    "a runner by a template": "required: docker",
    "a runner by the parameter": "required: docker",
    "arguments by the parameter": "no runner has the name",
    "an interpreter": "required: one of 'next'",
    "an interpreter where none is listed": "required: a listed name, but the list is empty",
    "a mapped interpreter": "required: one of 'next'",
    "an image": "required: one of 'next'",
    "a mapped image": "required: one of 'next'",
    "a recipe outside": "does not let a DAG run name this place: recipe",
    "a model outside": "does not let a DAG run name this place: model",
    "a data set outside": "does not let a DAG run name this place: dataset",
    "an output outside": "does not let a DAG run name this place: output_uri",
    "a server": "does not let a DAG run choose an MLflow server",
    **{f"file {name}": "recipe file" for name in FILES},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a workbench of Airflow, the program that must not run, and the files that must not be quoted."""
    home = tmp_path_factory.mktemp("trigger")
    (home / "files").mkdir()
    for name, text in FILES.items():
        (home / "files" / name).write_text(text, encoding="utf-8")
    program = home / "program"
    program.write_text(f'#!/bin/sh\necho "$@" >> {home}/ran\nexec {sys.executable} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return home


@pytest.fixture(scope="module")
def attempted(home):
    """Attempt -> (states and tries of its tasks, its log)."""
    bench = Workbench(home=home / "bench", dags=FOLDER)
    bench.prepare(lambda _: None)
    clean = {
        name: value
        for name, value in bench.environment().items()
        if not name.startswith(("TFMOT_OPS_RUNNER", "TFMOT_OPS_ALLOWED"))
    }
    clean |= {"AIRFLOW_VAR_MLFLOW": f"http://svc:{SECRET}@127.0.0.1:1", "TFMOT_OPS_TRACKING_WAIT": "2"}
    connection = {"conn_type": "tfmot_ops_mlflow", "host": "127.0.0.1", "port": 1, "login": "svc", "password": SECRET}
    clean["AIRFLOW_CONN_MLFLOW"] = json.dumps(connection)
    done = subprocess.run(
        [sys.executable, str(FOLDER / "attempts.py"), str(home)],
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    answers = json.loads((home / "answers.json").read_text(encoding="utf-8"))
    logs = dict(part.split("\n", 1) for part in done.stdout.split("=== ")[1:])
    return {name: (answers[name], logs[name]) for name in answers}


@pytest.mark.parametrize("name", REFUSED)
def test_an_attempt_is_refused_once_and_in_words(attempted, name):
    states, log = attempted[name]
    assert states == [["failed", 1]], "a refusal is not retried" + log[-4000:]
    assert REFUSED[name] in log


def test_no_attempt_ran_the_program(attempted, home):
    assert attempted
    assert not (home / "ran").exists(), (home / "ran").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RAN)
def test_what_the_deployment_allows_runs(attempted, name):
    states, log = attempted[name]
    assert states == [["success", 1]], log[-4000:]


@pytest.mark.parametrize("name", URIS)
def test_a_server_that_is_away_is_named_without_the_secret(attempted, name):
    states, log = attempted[name]
    assert states == [["failed", 2]], "a server that is away may come back"
    assert "tracking: http://***@127.0.0.1:1 does not answer" in log


def test_the_server_of_a_connection_is_named(attempted):
    states, log = attempted["a connection with a secret"]
    assert states == [["failed", 2]], "a server that is away may come back"
    assert "tracking: http://127.0.0.1:1 does not answer" in log


def test_secrets_turn_up_in_no_log_and_no_database(attempted, home):
    for name, (_, log) in attempted.items():
        assert SECRET not in log, name
    kept = [path for path in (home / "bench").rglob("*") if path.is_file()]
    assert any(path.name == "airflow.db" for path in kept)
    assert [str(path) for path in kept if SECRET.encode() in path.read_bytes()] == []


def test_a_listed_image_goes_into_the_deployments_own_pod(monkeypatch):
    monkeypatch.setenv(RUNNER_VARIABLE, "kubernetes")
    monkeypatch.setenv(OPTIONS_VARIABLE, '{"namespace": "jobs", "service_account": "step"}')
    monkeypatch.setenv(IMAGES_VARIABLE, '{"next": "ours:next"}')
    options = {"architectures": ["MobileNet"], "recipe": "wi8_ai8"}
    operator = CompatSweepOperator(task_id="then", options=options, next_image="next")
    runner = operator._choose_runner({"params": {}})
    assert (runner.image, runner.namespace, runner.service_account) == ("ours:next", "jobs", "step")


def test_the_link_to_mlflow_holds_no_password(monkeypatch):
    monkeypatch.delenv("TFMOT_OPS_MLFLOW_UI", raising=False)
    uri = f"http://svc:{SECRET}@mlflow.example:5000/?token={SECRET}"
    options = {"model": "resnet8", "dataset": "digits"}
    assert (
        TrainOperator(task_id="train", options=options, tracking_uri=uri)._server().ui == "http://mlflow.example:5000"
    )
    monkeypatch.setenv("TFMOT_OPS_MLFLOW_UI", f"https://{SECRET}@mlflow.example/ui/")
    assert TrainOperator(task_id="train", options=options)._server().ui == "https://mlflow.example/ui"
