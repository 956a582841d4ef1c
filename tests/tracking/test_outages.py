"""An MLflow server that fails, hangs, is slow or is away: waits end, a training goes on, and a retry records all."""

from __future__ import annotations

import importlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
from werkzeug.serving import BaseWSGIServer, make_server

from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import ListOptions, OpenRunOptions, Status, StepResult, StepSpec, Tracking, TrainOptions
from tfmot_ops.errors import StepFailedError
from tfmot_ops.steps.resume import checkpoint_uri
from tfmot_ops.tracking import StepRun, patience
from tfmot_ops.tracking.client import connect

pytestmark = pytest.mark.slow

#: Seconds to wait for MLflow in these tests.
WAIT_S = 2.0
#: Longest time in seconds that a call may take when nobody answers: the wait, and the last try of it.
BOUND_S = 8.0


class FaultyServer:
    """A real MLflow server behind a front that answers wrongly, late, or not at all.

    Attributes:
        fault: `""`, a number (the HTTP status of every answer), `hang`, or `slow`.
        path: part of the paths for which the fault shows.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own packages about each other
            importlib.import_module("mlflow.server.fastapi_app")
            from mlflow.server import app

        self.fault, self.path, self._app = "", "", app
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
    for epoch in (1, 2, 3):  # a continued training reports the epochs of its checkpoint again
        again.epoch("train", epoch, 3, {"loss": 0.3})
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
