"""An MLflow server that fails, hangs, is slow or is away: waits end, a training goes on, and a retry records all."""

from __future__ import annotations

import importlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
from werkzeug.serving import BaseWSGIServer, make_server

from tfmot_ops import core
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import ListOptions, OpenRunOptions, Status, StepResult, StepSpec, Tracking, TrainOptions
from tfmot_ops.errors import StepFailedError
from tfmot_ops.steps.resume import checkpoint_uri
from tfmot_ops.tracking import StepRun, creating, patience
from tfmot_ops.tracking.client import connect
from tfmot_ops.tracking.models import log_keras_model

pytestmark = pytest.mark.slow

#: Seconds to wait for MLflow in these tests.
WAIT_S = 2.0
#: Longest time in seconds that a call may take when nobody answers: the wait, and the last try of it.
BOUND_S = 8.0


class FaultyServer:
    """A real MLflow server behind a front that answers wrongly, late, or not at all.

    Attributes:
        fault: `""`, a number (the HTTP status of every answer), `hang`, `slow`, or `lost`: the request is carried out,
            and its answer is lost.
        path: part of the paths for which the fault shows.
        lost: number of answers that were lost.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own packages about each other
            importlib.import_module("mlflow.server.fastapi_app")
            from mlflow.server import app

        self.fault, self.path, self.lost, self._app = "", "", 0, app
        self._port, self._end = 0, threading.Event()
        self._server: BaseWSGIServer | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def end(self) -> None:
        self._end.set()
        self.stop()

    def set(self, fault: str, path: str = "") -> None:
        if fault == "away":
            self.stop()
        elif self._server is None:
            self.start()
        self.fault, self.path = ("" if fault == "away" else fault), path

    def _answer(self, environ: Any, start_response: Callable[..., Any]) -> Any:
        if self.fault and self.path in environ["PATH_INFO"]:
            if self.fault == "slow":
                time.sleep(0.3)
            elif self.fault == "hang":
                self._end.wait(60)
            elif self.fault == "lost":
                # Once: the next request is answered.
                self.fault, self.lost = "", self.lost + 1
                b"".join(self._app(environ, lambda *_: None))
                start_response("504 lost", [("Content-Type", "text/plain")])
                return [b"lost"]
            else:
                start_response(f"{self.fault} wrong", [("Content-Type", "text/plain")])
                return [b"wrong"]
        return self._app(environ, start_response)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    connect(uri, "warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        yield uri


@pytest.fixture
def server(store, monkeypatch, tmp_path) -> Iterator[FaultyServer]:
    monkeypatch.setenv("TFMOT_OPS_TRACKING_WAIT", str(WAIT_S))
    monkeypatch.setenv("TFMOT_OPS_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr(patience, "_outage", patience._Outage())
    monkeypatch.setattr(patience, "_TELL_AFTER_S", 0.2)
    assert store
    faulty = FaultyServer()
    # The server's first use of its registry makes the file the registry of its process, which is this one. Both places
    # are set before that, so that the end of the test restores what was there: later tests have their own registry.
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "")
    monkeypatch.setattr("mlflow.tracking._model_registry.utils._registry_uri", None)
    requests.get(f"{faulty.uri}/api/2.0/mlflow/registered-models/search", timeout=30).raise_for_status()
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", faulty.uri)
    monkeypatch.setattr("mlflow.tracking._model_registry.utils._registry_uri", faulty.uri)
    yield faulty
    faulty.end()


def _spec(uri: str, key: str, options: Any = None) -> StepSpec:
    options = options or ListOptions()
    return StepSpec(step_id=options.kind, tracking=Tracking(uri=uri, key={"run_id": key}), options=options)


def _result(spec: StepSpec) -> StepResult:
    return StepResult(step_id=spec.step_id, kind=spec.options.kind, status=Status.OK, spec_sha256=spec.sha256())


def _epochs(uri: str, run_id: str) -> list[int]:
    return [each.step for each in mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run_id, "epoch.loss")]


@pytest.mark.parametrize("fault", ["500", "429", "hang", "away"])
def test_a_fault_in_the_middle_ends_the_step_in_time_and_a_retry_records_all(fault, server, tmp_path):
    said: list[str] = []
    spec = _spec(server.uri, fault)
    run = StepRun(spec, say=said.append)
    run.epoch("train", 1, 3, {"loss": 0.5})
    server.set(fault)
    run.epoch("train", 2, 3, {"loss": 0.4})
    assert any("epoch 2 is not recorded yet, and the training goes on" in each for each in said), said
    before = time.monotonic()
    with pytest.raises(StepFailedError, match="does not answer") as refusal:
        run.finish(_result(spec), tmp_path)
    with pytest.raises(StepFailedError):  # an outage that lasted too long is not waited for again
        run.finish(_result(spec), tmp_path)
    assert time.monotonic() - before < 2 * BOUND_S
    assert refusal.value.exit_code == 4
    assert "TFMOT_OPS_TRACKING_WAIT" in refusal.value.required
    assert any("tries again for" in each or "waiting for MLflow" in each for each in said), said
    server.set("")
    again = StepRun(spec, say=said.append)
    assert again.run_id == run.run_id
    for epoch in (1, 2):  # a continued training reports the epochs of its checkpoint again
        again.restored(epoch, {"loss": 0.3})
    again.epoch("train", 3, 3, {"loss": 0.3})
    again.finish(_result(spec), tmp_path)
    assert _epochs(server.uri, run.run_id) == [1, 2, 3]
    assert mlflow.MlflowClient(tracking_uri=server.uri).get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("fault", ["500", "away"])
def test_a_server_that_comes_back_in_time_is_waited_for(fault, server, monkeypatch, tmp_path):
    monkeypatch.setenv("TFMOT_OPS_TRACKING_WAIT", "30")
    spec = _spec(server.uri, f"back {fault}")
    run = StepRun(spec)
    server.set(fault)
    run.epoch("train", 1, 1, {"loss": 0.5})
    threading.Timer(1.5, server.set, [""]).start()
    run.finish(_result(spec), tmp_path)
    assert _epochs(server.uri, run.run_id) == [1]


def test_a_slow_server_is_told_of(server, tmp_path):
    said: list[str] = []
    spec = _spec(server.uri, "slow")
    run = StepRun(spec, say=said.append)
    server.set("slow")
    run.finish(_result(spec), tmp_path)
    assert any(each.startswith("waiting for MLflow: log batch at http://127.0.0.1") for each in said), said


@pytest.mark.parametrize("fault", ["500", "hang", "away"])
def test_a_server_that_fails_from_the_beginning_is_given_up_in_time(fault, server):
    server.set(fault)
    before = time.monotonic()
    with pytest.raises(StepFailedError, match="does not answer") as refusal:
        StepRun(_spec(server.uri.replace("//", "//user:secret@"), fault))
    assert time.monotonic() - before < BOUND_S
    assert "secret" not in str(refusal.value)


def test_a_refusal_is_not_waited_for(server, capsys):
    spec = _spec(server.uri, "refused", OpenRunOptions(parameters={"a": 1}))
    before = time.monotonic()
    server.set("403", "runs/log-batch")
    result = execute(spec)
    assert time.monotonic() - before < WAIT_S
    assert result.error is not None
    assert result.error.exit_code == 4
    assert "Traceback" not in capsys.readouterr().err


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(server):
    client, experiment = connect(server.uri, "gone")
    client.delete_experiment(experiment)
    with pytest.raises(StepFailedError, match="the experiment gone is deleted") as refusal:
        connect(server.uri, "gone")
    assert f"restore --experiment-id {experiment}" in refusal.value.remedy


@pytest.mark.parametrize("answer", ["403", "404"])
def test_a_refusal_shows_that_the_server_is_back(answer, server):
    client, experiment = connect(server.uri, "refusing")
    server.set("500")
    with pytest.raises(StepFailedError, match="does not answer"):
        client.get_experiment(experiment)
    assert (patience._outage.since, patience._outage.is_given_up) != (None, False)
    server.set(answer)
    with pytest.raises(mlflow.exceptions.MlflowException):
        client.get_experiment(experiment)
    assert (patience._outage.since, patience._outage.is_given_up) == (None, False)


def _everything(client: mlflow.MlflowClient, experiment: str) -> dict[str, list[str]]:
    """What there is on the server, by kind."""
    return {
        "runs": [run.info.run_id for run in client.search_runs([experiment])],
        "models": [model.model_id for model in client.search_logged_models([experiment])],
        "registered": [model.name for model in client.search_registered_models()],
        "versions": [f"{each.name} {each.version}" for each in client.search_model_versions()],
    }


def _model(client: mlflow.MlflowClient, experiment: str) -> str:
    return str(client.create_logged_model(experiment).model_id)


def _version(client: mlflow.MlflowClient, experiment: str) -> str:
    run_id = creating.create_run(client, experiment, tags={}, run_name="registers")
    creating.create_registered_model(client, "twice")
    model_id = _model(client, experiment)
    return creating.create_version(client, "twice", run_id=run_id, model_id=model_id, tags={"a": "1"})


def _logged(client: mlflow.MlflowClient, experiment: str) -> str:
    model = core.keras.Sequential([core.keras.layers.Dense(1, input_shape=(2,))])
    run_id = creating.create_run(client, experiment, tags={}, run_name="logs")
    return log_keras_model(client, run_id, model, np.zeros((1, 2), np.float32), name="m", tags={})


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("runs/create", lambda client, experiment: creating.create_run(client, experiment, tags={}, run_name="one")),
        ("registered-models/create", lambda client, _: creating.create_registered_model(client, "one", {"a": "1"})),
        ("model-versions/create", _version),
        ("logged-models", _logged),
    ],
    ids=["run", "registered-model", "version", "logged-model"],
)
def test_what_was_made_before_its_answer_was_lost_is_not_made_twice(path, make, server, monkeypatch):
    monkeypatch.setenv("TFMOT_OPS_TRACKING_WAIT", "30")
    monkeypatch.setattr(patience, "_PAUSE_S", 0.1)
    client, experiment = connect(server.uri, f"lost {path}")
    before = _everything(client, experiment)
    server.set("lost", path)
    made = make(client, experiment)
    assert server.lost == 1
    after = _everything(client, experiment)
    assert {kind: len(after[kind]) - len(before[kind]) for kind in after if after[kind] != before[kind]} == MADE[path]
    if path == "runs/create":
        assert made in after["runs"]


#: What each call makes, when no answer is lost.
MADE = {
    "runs/create": {"runs": 1},
    "registered-models/create": {"registered": 1},
    "model-versions/create": {"runs": 1, "models": 1, "registered": 1, "versions": 1},
    "logged-models": {"runs": 1, "models": 1},
}


def test_what_was_deleted_before_the_answer_was_lost_is_no_error(server, monkeypatch):
    monkeypatch.setenv("TFMOT_OPS_TRACKING_WAIT", "30")
    monkeypatch.setattr(patience, "_PAUSE_S", 0.1)
    client, experiment = connect(server.uri, "deleting")
    run_id = creating.create_run(client, experiment, tags={"gone": "1"}, run_name="deletes")
    server.set("lost", "runs/delete-tag")
    client.delete_tag(run_id, "gone")
    assert server.lost == 1
    with pytest.raises(mlflow.exceptions.MlflowException):  # without a first try, it says that there is no such tag
        client.delete_tag(run_id, "gone")

    creating.create_registered_model(client, "lock", {"owner": "me"})
    server.set("lost", "registered-models/delete")
    creating.delete_registered_model(client, "lock", {"owner": "me"})
    assert server.lost == 2
    assert "lock" not in _everything(client, experiment)["registered"]


def test_the_model_of_another_is_not_deleted_after_an_answer_was_lost(server, monkeypatch):
    monkeypatch.setenv("TFMOT_OPS_TRACKING_WAIT", "30")
    monkeypatch.setattr(patience, "_PAUSE_S", 1.0)
    client, experiment = connect(server.uri, "locks")
    creating.create_registered_model(client, "shared", {"owner": "me"})
    server.set("lost", "registered-models/delete")
    other = mlflow.MlflowClient(tracking_uri=server.uri)

    def take_over() -> None:
        while server.lost == 0 or "shared" in _everything(other, experiment)["registered"]:
            time.sleep(0.05)
        other.create_registered_model("shared", tags={"owner": "another"})

    thread = threading.Thread(target=take_over)
    thread.start()
    creating.delete_registered_model(client, "shared", {"owner": "me"})
    thread.join(30)
    assert client.get_registered_model("shared").tags == {"owner": "another"}
    client.delete_registered_model("shared")


def test_a_call_that_may_not_be_repeated_is_tried_once(server, monkeypatch):
    monkeypatch.setenv("TFMOT_OPS_TRACKING_WAIT", "30")
    client, experiment = connect(server.uri, "once")
    server.set("lost", "runs/create")
    with pytest.raises(StepFailedError, match="create run"):
        client.create_run(experiment)
    (run_id,) = _everything(client, experiment)["runs"]
    server.set("lost", "runs/log-metric")
    with pytest.raises(StepFailedError, match="log metric"):
        client.log_metric(run_id, "loss", 1.0)
    assert len(client.get_metric_history(run_id, "loss")) == 1


@pytest.mark.parametrize("path", ["mlflow-artifacts", "runs/update"])
def test_no_training_is_lost_for_a_record_that_cannot_be_written(path, server, tmp_path, capsys):
    options = TrainOptions(model="resnet8", dataset="digits", limit=50, epochs=2)
    spec = _spec(server.uri, f"train {path}", options)
    server.set("500", path)
    failed = execute(spec)
    assert failed.error is not None
    assert failed.error.exit_code == 4
    assert "Traceback" not in capsys.readouterr().err
    assert (tmp_path / "checkpoints").joinpath(checkpoint_uri(spec).rpartition("/")[2]).exists()
    server.set("")
    said: list[str] = []
    result = execute(spec, said.append)
    assert result.status is Status.OK
    assert any("continues after epoch 2 of 2" in each for each in said), said
    assert result.tracking_run_id
    assert _epochs(server.uri, result.tracking_run_id) == [1, 2]
    assert not list((tmp_path / "checkpoints").iterdir())
