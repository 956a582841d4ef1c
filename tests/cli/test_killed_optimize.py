"""`optimize` after a kill: the same command goes on in the same run, and nothing of the dead stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tfmot_ops.cli import execute, resume
from tfmot_ops.cli.chain import Chain
from tfmot_ops.contract import (
    ArtifactFormat,
    CloseRunOptions,
    ListOptions,
    OpenRunOptions,
    Status,
    StepError,
    StepResult,
    StepSpec,
    Tracking,
)
from tfmot_ops.errors import StepFailedError
from tfmot_ops.store import fetch, put
from tfmot_ops.system import files, processes
from tfmot_ops.tracking import StepRun
from tfmot_ops.tracking.chain import find_unfinished
from tfmot_ops.tracking.client import connect
from tfmot_ops.tracking.owner import OWNER, _looked_through

pytestmark = pytest.mark.slow

KILLS = os.environ.get("TFMOT_OPS_OPTIMIZE_KILLS", "3")


def test_a_killed_command_started_again_ends_as_if_it_had_not_been_killed():
    script = Path(__file__).with_name("kill_optimize.py")
    ended = subprocess.run(
        [sys.executable, str(script), KILLS, "5", "2"], capture_output=True, text=True, timeout=7200, check=False
    )
    assert ended.returncode == 0, ended.stderr
    counts = json.loads(ended.stdout)
    assert counts["kills"] == int(KILLS)
    assert counts["same_file"] == counts["parents"] == counts["chains"], counts
    assert not any(counts[name] for name in ("lost", "doubled", "running", "leftovers", "codes")), ended.stderr


# The parent run and what may be done with it


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def _spec(uri: str, options: Any, run_id: str, parent: str | None = None) -> StepSpec:
    key = {"dag_id": "tfmot-ops optimize", "run_id": run_id, "task_id": options.kind}
    return StepSpec(step_id=options.kind, tracking=Tracking(uri=uri, parent_run_id=parent, key=key), options=options)


def _result(spec: StepSpec, exit_code: int = 0) -> StepResult:
    error = StepError(type="E", message="why", exit_code=exit_code) if exit_code else None
    status = Status.FAILED if exit_code else Status.OK
    return StepResult(
        step_id=spec.step_id, kind=spec.options.kind, status=status, spec_sha256=spec.sha256(), error=error
    )


def _open(uri: str, run_id: str, tmp_path: Path, exit_code: int = 0) -> str:
    """A parent with one step that has ended."""
    opening = _spec(uri, OpenRunOptions(), run_id)
    parent = StepRun(opening, stays=True)
    parent.finish(_result(opening), tmp_path)
    step = _spec(uri, ListOptions(), run_id, parent.run_id)
    StepRun(step).finish(_result(step, exit_code), tmp_path)
    return parent.run_id


def _close(uri: str, run_id: str, parent: str, tmp_path: Path, failed: tuple[str, ...] = ()) -> None:
    closing = _spec(uri, CloseRunOptions(failed=failed), run_id, parent)
    StepRun(closing).finish(_result(closing), tmp_path)


def _left_by_a_dead_process(uri: str, run_id: str) -> None:
    here = processes.current()
    dead = processes.Owner(here.host, here.machine, here.boot, here.pids, here.pid, here.start - 1)
    mlflow.MlflowClient(tracking_uri=uri).set_tag(run_id, OWNER, str(dead))
    _looked_through.clear()  # as in a new process


def test_a_killed_chain_is_taken_up_with_the_results_of_its_steps(uri, tmp_path):
    parent = _open(uri, "abc-1", tmp_path)
    assert find_unfinished(uri, "tfmot_ops", "abc") is None, "its process, this one, works on it"
    _left_by_a_dead_process(uri, parent)
    found = find_unfinished(uri, "tfmot_ops", "abc")
    assert found is not None
    assert (found.parent, found.key) == (parent, "abc-1")
    assert found.results["list"].status is Status.OK
    assert mlflow.MlflowClient(tracking_uri=uri).get_run(parent).info.status == "KILLED"
    assert find_unfinished(uri, "tfmot_ops", "other") is None
    assert StepRun(_spec(uri, OpenRunOptions(), found.key)).run_id == parent


def test_a_chain_that_ended_well_is_not_taken_up_nor_is_one_before_it(uri, tmp_path):
    _left_by_a_dead_process(uri, _open(uri, "abc-1", tmp_path))
    second = _open(uri, "abc-2", tmp_path)
    _close(uri, "abc-2", second, tmp_path)
    assert find_unfinished(uri, "tfmot_ops", "abc") is None


@pytest.mark.parametrize(("exit_code", "taken_up"), [(4, True), (3, False), (2, False), (1, False)])
def test_a_failed_chain_is_taken_up_when_a_retry_may_cure_it(exit_code, taken_up, uri, tmp_path):
    parent = _open(uri, "abc-1", tmp_path, exit_code)
    _close(uri, "abc-1", parent, tmp_path, failed=("list",))
    assert (find_unfinished(uri, "tfmot_ops", "abc") is not None) is taken_up


def test_runs_of_dead_processes_end_and_those_of_living_and_unknown_ones_stay(uri):
    keys = ["dead", "living", "elsewhere", "older version"]
    runs = {key: StepRun(_spec(uri, ListOptions(), key)).run_id for key in keys}
    client, _ = connect(uri, "tfmot_ops")
    client.set_tag(runs["elsewhere"], OWNER, "other|f00|boot|4026531836|1|1")
    client.delete_tag(runs["older version"], OWNER)
    _left_by_a_dead_process(uri, runs["dead"])
    connect(uri, "another experiment")
    found = {key: client.get_run(run).info.status for key, run in runs.items()}
    assert found == {"dead": "KILLED", "living": "RUNNING", "elsewhere": "RUNNING", "older version": "RUNNING"}


def test_a_parent_run_opened_by_a_step_of_its_own_process_is_left_open(uri):
    run = StepRun(_spec(uri, OpenRunOptions(), "airflow"))
    assert OWNER not in mlflow.MlflowClient(tracking_uri=uri).get_run(run.run_id).data.tags


def test_an_epoch_that_an_attempt_before_logged_is_not_logged_again(uri):
    for epochs in ([1, 2], [2, 3]):
        run = StepRun(_spec(uri, ListOptions(), "abc-1"))
        for epoch in epochs:
            run.epoch("train", epoch, 3, {"loss": 0.5})
    history = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run.run_id, "epoch.loss")
    assert [each.step for each in history] == [1, 2, 3]


def test_an_interrupted_step_ends_its_run_as_killed(uri):
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute.execute(_spec(uri, OpenRunOptions(), "abc-1"), interrupted)
    client, experiment = connect(uri, "tfmot_ops")
    assert [run.info.status for run in client.search_runs([experiment])] == ["KILLED"]


# Attempts


def _attempt(tmp_path: Path, said: list[str], **changes: Any) -> Any:
    arguments: dict[str, Any] = {"of": "a" * 32, "output": tmp_path, "tracking": None, "fresh": False, **changes}
    return resume.attempt(**arguments, say=said.append)


def test_two_identical_commands_do_not_share_a_run(uri, tmp_path):
    said: list[str] = []
    with _attempt(tmp_path, said, tracking=(uri, "tfmot_ops")) as first:
        with _attempt(tmp_path, said, tracking=(uri, "tfmot_ops")) as second:
            assert first.key != second.key
            assert "runs already" in said[0]
        with pytest.raises(StepFailedError, match="runs already"), _attempt(tmp_path, said):
            pass
        with _attempt(tmp_path, said, of="b" * 32):
            pass
    with _attempt(tmp_path, said):
        pass
    assert not list(tmp_path.glob(".*.lock"))


def test_a_finished_step_counts_while_its_spec_and_its_outputs_are_the_same(tmp_path):
    file = tmp_path / "names"
    file.write_text("[]")
    artifact = put(file, str(tmp_path / "list"), "list", ArtifactFormat.JSON)
    spec = StepSpec(step_id="list", output_uri=str(tmp_path / "list"), options=ListOptions())
    said: list[str] = []
    with _attempt(tmp_path, said) as first:
        assert first.finished(spec, fetch, tmp_path / "scratch") is None
        first.keep(_result(spec).model_copy(update={"outputs": {"list": artifact}}))

    def found(other: StepSpec = spec, **changes: Any) -> StepResult | None:
        with _attempt(tmp_path, said, **changes) as attempt:
            answer: StepResult | None = attempt.finished(other, fetch, tmp_path / "scratch")
            return answer

    assert found() is not None
    assert found(of="b" * 32) is None
    assert found(spec.model_copy(update={"seed": 1})) is None
    (tmp_path / "list" / "list.json").write_text("[1]")
    assert found() is None, "the output is not the one that was recorded"
    (tmp_path / "list" / "list.json").write_text("[]")
    assert found() is not None
    assert found(fresh=True) is None
    assert found() is None, "what was dropped came back"


def test_every_argument_and_the_content_of_files_are_part_of_the_identity(tmp_path):
    model, data = tmp_path / "model.h5", tmp_path / "data.npz"
    model.write_bytes(b"1")
    data.write_bytes(b"1")
    given: dict[str, Any] = {
        "model": str(model),
        "dataset": f"npz:{data}",
        "recipe": "wi8_ai8",
        "output": tmp_path / "out",
        "tracking_uri": "sqlite:///a.db",
    }
    first = Chain(**given)._identity()
    assert Chain(**given)._identity() == first
    others: list[dict[str, Any]] = [
        {"recipe": "wi8_ai8_ptq"},
        {"output": tmp_path / "other"},
        {"tracking_uri": None},
        {"experiment": "x"},
        {"seed": 1},
        {"epochs": {"train": 1}},
        {"data": {"limit": 100}},
        {"model": "resnet8"},
        {"dataset": "digits"},
    ]
    found = {Chain(**{**given, **other})._identity() for other in others}
    assert len(found | {first}) == len(others) + 1
    for path in (model, data):
        path.write_bytes(b"2")
        changed = Chain(**given)._identity()
        assert changed not in found | {first}
        found.add(changed)
    images = tmp_path / "images"
    files.write(images / "cat" / "1.png", b"1")
    before = Chain(**{**given, "dataset": f"images:{images}"})._identity()
    files.write(images / "cat" / "2.png", b"2")
    assert Chain(**{**given, "dataset": f"images:{images}"})._identity() != before


def test_without_tracking_an_interrupted_chain_goes_on_and_one_that_ended_starts_anew(tmp_path):
    said: list[str] = []

    def chain() -> Chain:
        return Chain(
            model="resnet8",
            dataset="digits",
            recipe="wi8_ai8_ptq",
            output=tmp_path / "out",
            tracking_uri=None,
            epochs={"train": 1, "fine_tune": 0, "prune": 0},
            data={"limit": 100},
        )

    def interrupted(text: str) -> None:
        if text.startswith("strip"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chain().run(interrupted)
    second = chain()
    assert second.run(said.append).status is Status.OK
    assert "continues an earlier start; done so far: train, prune, fine_tune" in said
    assert len(second.results) == 6
    assert not list((tmp_path / "out").rglob(".*")), "something of the interruption stayed"
    with _attempt(tmp_path / "out", said, of=chain()._identity()) as attempt:
        assert not attempt.results, "the next start would not be a new one"


def test_an_output_that_cannot_be_written_is_found_before_the_training(tmp_path):
    (tmp_path / "file").touch()
    for uri in (None, f"sqlite:///{tmp_path / 'mlflow.db'}"):
        said: list[str] = []
        chain = Chain("resnet8", "digits", "wi8_ai8", tmp_path / "file" / "out", uri)
        with pytest.raises(StepFailedError, match="cannot be written"):
            chain.run(said.append)
        assert said == []
    spec = StepSpec(step_id="list", output_uri=str(tmp_path / "file" / "out"), options=ListOptions())
    result = execute.execute(spec)
    assert result.error is not None
    assert (result.error.exit_code, "cannot be written" in result.error.message) == (4, True)


LISTENER = """
import sys, time
from tfmot_ops.system.processes import exit_on_signals, stop_arrived
class Finalised:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(0.5)
        print("finalised", flush=True)
try:
    with exit_on_signals():
        try:
            if sys.argv[1] == "finalising":
                Finalised()
            else:
                print("ready", flush=True)
            time.sleep(600)
        except BaseException:
            stop_arrived()
            time.sleep(2)
            raise
finally:
    print("closed", flush=True)
"""


@pytest.mark.parametrize("how", ["working", "finalising"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_closes_what_is_open_and_gives_the_code_of_a_shell(number, code, how):
    """Also one that comes while an object is finalised, where Python drops the exception."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER, how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "closed\n"
    assert process.returncode == code


REPLACER = """
import os, signal, sys, time
from tfmot_ops.cli import execute
from tfmot_ops.contract import CloseRunOptions, StepSpec
from tfmot_ops.system.processes import exit_on_signals
def say(text):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)
    except BaseException:
        raise ValueError("another error") from None
spec = StepSpec(step_id="close", output_uri=sys.argv[1], options=CloseRunOptions())
with exit_on_signals():
    execute.execute(spec, say)
"""


def test_a_signal_that_a_library_replaces_by_an_error_is_no_failure_of_the_step(tmp_path):
    """TensorFlow does so where its C++ code calls Python; a failed step would end the chain's run."""
    process = subprocess.run(
        [sys.executable, "-c", REPLACER, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 143, process.stderr
    assert "another error" not in process.stderr
