import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tfmot_ops.contract import OpenRunOptions, StepSpec, TrainOptions
from tfmot_ops.errors import SpecError, StepFailedError, TfmotOpsError, UnsupportedModelError
from tfmot_ops.runners import FakeRunner, LocalRunner, Runner, RunningStep

STAND_IN = Path(__file__).parent / "stand_in"
RUNNER = LocalRunner(module="stand_in_step", env={"PYTHONPATH": str(STAND_IN)})


def make_spec(name):
    return StepSpec(step_id="step", output_uri="memory://", options=OpenRunOptions(name=name))


def start(name, runner=RUNNER):
    lines = []
    return runner.start(make_spec(name), None, lines.append), lines


def alive(pid):
    """A zombie whose reaper is slow is dead: it can do nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids, seconds=5.0):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [pid for pid in pids if alive(pid)]


def wait_for_pids(lines, seconds=20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in list(lines):
            if line.startswith("pids "):
                return [int(pid) for pid in line.split()[1:]]
        time.sleep(0.02)
    raise AssertionError(f"no pids in {lines}")


def waiting(step):
    """Waits in a thread; gives the thread and the list its outcome will be in."""
    outcome = []

    def run():
        try:
            outcome.append(step.wait())
        except TfmotOpsError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_result_and_every_line_of_both_streams():
    step, lines = start("echo")
    result = step.wait()
    assert result.spec_sha256 == make_spec("echo").sha256()
    assert lines == ["first line", "second line ü", "no line break"]
    assert result.metrics["pid"] == step.pid != os.getpid()


def test_lines_come_while_the_step_runs():
    step, lines = start("slow:2")
    thread, outcome = waiting(step)
    deadline = time.monotonic() + 20
    while len(lines) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lines == ["first line", "second line ü"]
    assert not outcome
    thread.join()
    assert outcome[0].status == "ok"


def test_environment_and_working_dir(tmp_path):
    runner = dataclasses.replace(RUNNER, env={**RUNNER.env, "TOLD": "secret"}, working_dir=str(tmp_path))
    step, _ = start("echo", runner)
    assert step.wait().parameters == {"cwd": str(tmp_path), "told": "secret"}
    assert "secret" not in repr(runner)
    assert " at 0x" not in repr(runner)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        pytest.param("exit:1", TfmotOpsError, "because of 1", id="bug"),
        pytest.param("exit:2", SpecError, "because of 2", id="spec"),
        pytest.param("exit:3", UnsupportedModelError, "because of 3", id="unsupported"),
        pytest.param("exit:4", StepFailedError, "because of 4", id="failed"),
        pytest.param("exit:137", TfmotOpsError, "SIGKILL", id="killed-in-a-shell"),
        pytest.param("signal:9", TfmotOpsError, "SIGKILL", id="killed"),
        pytest.param("signal:11", TfmotOpsError, "SIGSEGV", id="crashed"),
        pytest.param("silent", StepFailedError, "no result", id="no-result"),
        pytest.param("broken", StepFailedError, "unreadable result", id="no-StepResult"),
        pytest.param("other", StepFailedError, "a different spec", id="answer-to-another-spec"),
    ],
)
def test_a_failure_is_the_exception_of_its_exit_code(name, error, text):
    step, _ = start(name)
    with pytest.raises(TfmotOpsError, match=text) as caught:
        step.wait()
    assert type(caught.value) is error


@pytest.mark.slow
def test_the_real_command_refuses_a_wrong_name():
    options = TrainOptions(dataset="no_such_data", model="resnet8")
    step = LocalRunner().start(StepSpec(step_id="train", output_uri="memory://", options=options), None, print)
    with pytest.raises(SpecError, match="no_such_data"):
        step.wait()


def test_nothing_is_left_after_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    step, lines = start("orphan")
    began = time.monotonic()
    step.wait()
    # Nobody waits for the grandchild, which sleeps for five minutes with our pipe open.
    assert time.monotonic() - began < 20
    assert wait_until_gone(wait_for_pids(lines)) == []
    assert list(tmp_path.iterdir()) == []


def test_kill_ends_the_group_with_a_grandchild_that_ignores_sigterm():
    step, lines = start("hang")
    thread, outcome = waiting(step)
    pids = wait_for_pids(lines)
    assert all(map(alive, pids))
    began = time.monotonic()
    step.kill()
    assert time.monotonic() - began < 4.5  # Airflow waits for 5 s
    assert wait_until_gone(pids) == []
    thread.join(10)
    assert "SIGTERM" in str(outcome[0])
    step.kill()  # of a step that has ended: harmless


def test_kill_in_a_signal_handler_of_the_waiting_thread():
    # Airflow calls on_kill like this.
    step, lines = start("hang")
    previous = signal.signal(signal.SIGALRM, lambda *_: step.kill())
    try:
        signal.setitimer(signal.ITIMER_REAL, 2.0)
        with pytest.raises(TfmotOpsError, match="SIGTERM"):
            step.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert wait_until_gone(wait_for_pids(lines)) == []


def test_an_exception_in_the_log_ends_the_step():
    pids = []

    def log(line):
        if line.startswith("pids"):
            pids.extend(map(int, line.split()[1:]))
            raise TimeoutError

    step = RUNNER.start(make_spec("hang"), None, log)
    with pytest.raises(TimeoutError):
        step.wait()
    assert pids
    assert wait_until_gone(pids) == []


def test_a_killed_parent_leaves_no_child():
    parent = subprocess.Popen([sys.executable, str(STAND_IN / "parent.py")], stdout=subprocess.PIPE, text=True)
    with parent:
        lines = iter(parent.stdout.readline, "")
        pids = next([int(pid) for pid in line.split()[1:]] for line in lines if line.startswith("pids"))
        assert all(map(alive, pids))
        parent.kill()
        parent.wait()
        assert wait_until_gone(pids) == []


def test_protocols():
    fake = FakeRunner()
    assert isinstance(RUNNER, Runner)
    assert isinstance(fake, Runner)
    running = fake.start(make_spec("x"), None, print)
    assert isinstance(running, RunningStep)
    running.kill()
    assert [spec.options.name for spec in fake.killed] == ["x"]
    assert repr(fake) == "FakeRunner()"
