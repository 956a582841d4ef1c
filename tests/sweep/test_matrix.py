"""What is kept of a cell and what is not; a small program stands for the cells' interpreter: no TensorFlow."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfmot_ops.contract import CompatResult, Recipe, Stage, Status
from tfmot_ops.sweep.run.error_classes import is_lasting
from tfmot_ops.sweep.run.limits import Limits, run_limited
from tfmot_ops.sweep.run.matrix import Cell, Matrix
from tfmot_ops.system import files
from tfmot_ops.system.processes import resident_bytes

RECIPE = Recipe(name="wi8_ai8")

# It is called as the interpreter is: -m tfmot_ops.sweep.run.cell ARCHITECTURE RECIPE ANSWER SEED.
PROGRAM = f"""#!{sys.executable}
import os, pathlib, signal, sys, tempfile, time
name, answer = sys.argv[3], pathlib.Path(sys.argv[5])
count = answer.with_suffix(".count")
count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
print("stage: build", flush=True)
if name == "slow":
    with open(os.path.join(tempfile.gettempdir(), "model.h5"), "w") as file:
        file.write("x")
    print("stage: export", "stage: foo", "y" * 5000, sep="\\n", flush=True)
    time.sleep(float(os.environ.get("TEST_SLEEP", "60")))
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "dies":
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "torn":
    answer.write_text('{{"architecture": "torn"')
else:
    failed = name == "raises"
    answer.write_text(
        '{{"architecture": "%s", "recipe": "wi8_ai8", "status": "%s"%s}}'
        % (name, "failed" if failed else "ok",
           ', "failed_stage": "export", "error_type": "Odd", "message": "seen nowhere"' if failed else ""))
"""


@pytest.fixture
def python(tmp_path):
    path = tmp_path / "python"
    path.write_text(PROGRAM, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def run(tmp_path, python):
    """Runs one cell; (its result, how often it has been run so far)."""

    def one(name: str, **fields) -> tuple[CompatResult, int]:
        plan = Matrix(tmp_path / "cells", python=python, **fields)
        (result,) = plan.run([Cell(name, RECIPE, "family", "0" * 64)])
        (count,) = (tmp_path / "cells").glob(f"{name}-*.count")
        return result, int(count.read_text())

    return one


def test_a_timeout_is_not_taken_for_the_cells_own_result(run, monkeypatch) -> None:
    slow, _ = run("slow", limits=Limits(time_s=1.0))
    # The stage is told more than 2,000 characters before the end, and one that nobody knows behind it.
    assert (slow.error_class, slow.failed_stage) == ("timeout", Stage.EXPORT), slow.message
    monkeypatch.setenv("TEST_SLEEP", "0")
    again, count = run("slow", limits=Limits(time_s=100.0))
    assert (again.status, again.cached, count) == (Status.OK, False, 2), again.message
    third, count = run("slow")
    assert (third.cached, count) == (True, 2)


@pytest.mark.parametrize(("name", "kind"), [("dies", "crash"), ("killed", "out_of_memory")])
def test_a_death_is_run_again_and_sigkill_from_outside_is_the_kernels(run, name, kind) -> None:
    for count in (1, 2):
        result, seen = run(name)
        assert (result.error_class, result.failed_stage, seen) == (kind, Stage.BUILD, count), result.message
    if kind == "out_of_memory":
        assert "not by the sweep" in result.message


def test_an_answer_that_cannot_be_read_is_a_failed_cell(run) -> None:
    torn, _ = run("torn")
    assert (torn.status, torn.error_class, torn.failed_stage) == (Status.FAILED, "unknown", Stage.BUILD)
    assert "without a valid result" in torn.message


@pytest.mark.parametrize("text", ['{"architecture": "so', '{"schema_version": 0, "name": "old"}', "", "\udcff"])
def test_a_kept_cell_that_cannot_be_read_is_run_again(run, tmp_path, text) -> None:
    run("sound")
    (path,) = (tmp_path / "cells").glob("sound-*.json")
    path.write_bytes(text.encode(errors="surrogateescape"))
    result, count = run("sound")
    assert (result.status, result.cached, count) == (Status.OK, False, 2)


def test_what_a_killed_process_leaves_in_its_temporary_folder_goes(run, tmp_path) -> None:
    run("slow", limits=Limits(time_s=1.0))
    assert not list((tmp_path / "cells").glob("*.tmp"))
    # A killed sweep could not; the next one does, but for a cell that another sweep is at.
    for name in ("left", "busy"):
        (tmp_path / "cells" / f"{name}.tmp").mkdir()
    with files.lock(tmp_path / "cells" / "busy.lock"):
        run("sound")
    assert [path.name for path in (tmp_path / "cells").glob("*.tmp")] == ["busy.tmp"]


def test_kept_cells_have_the_class_of_the_table_as_it_is_now(run, monkeypatch) -> None:
    first, _ = run("raises")
    assert first.error_class == "unknown"
    monkeypatch.setattr("tfmot_ops.sweep.run.error_classes.classify", lambda _result: "conversion")
    second, count = run("raises")
    assert (second.error_class, second.cached, count) == ("conversion", True, 1)


WAITS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from tfmot_ops.contract import Recipe
from tfmot_ops.sweep.run.matrix import Cell, Matrix
class Watcher:
    def started(self, cell): print(cell, flush=True)
    def ended(self, result): pass
Matrix(Path(sys.argv[1])).run([Cell("sound", Recipe(name="wi8_ai8"))], watcher=Watcher())
"""


def test_ctrl_c_ends_a_sweep_that_waits_for_another_ones_cell(tmp_path) -> None:
    lock = tmp_path / "sound-wi8_ai8-any-seed0.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path)], stdout=pipe, stderr=pipe) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"sound/wi8_ai8\n"
            child.send_signal(signal.SIGINT)
            _, error = child.communicate(timeout=30)
    assert b"KeyboardInterrupt" in error


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(_alive, pids))


STARTS = """
import subprocess, sys
process = subprocess.Popen([sys.executable, "-m", "tfmot_ops.sweep.run.limits", "sh", "-c", "echo up; exec sleep 300"],
                           stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
process.wait()
"""


def test_a_program_started_by_limits_does_not_outlive_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _alive(pid)
        parent.kill()
    assert gone([pid])


def test_a_parent_that_is_gone_already_is_noticed(tmp_path) -> None:
    """Its end of the pipe is closed before the kernel is asked to tell of its death."""
    ends = [sys.executable, "-m", "tfmot_ops.sweep.run.limits", "true"]
    environment = {**os.environ, "_TFMOT_OPS_TETHERED": "yes"}
    done = subprocess.run(ends, input=b"", env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert run_limited(ends, tmp_path / "log", Limits(), os.environ).exit_code == 0
    # Whoever calls it by hand may have any stdin.
    assert subprocess.run(ends, input=b"", check=False).returncode == 0


def test_memory_is_that_of_the_children_too() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'b = b\"x\" * 2**27; print(1); input()'])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert resident_bytes(process.pid) > 2**27
        process.communicate(b"\n")


def test_one_predicate_says_what_stands() -> None:
    def result(kind: str | None) -> CompatResult:
        status = Status.OK if kind is None else Status.FAILED
        return CompatResult(architecture="a", recipe="r", status=status, error_class=kind)

    kinds = [None, "conversion", "unknown", "timeout", "out_of_memory", "crash"]
    assert [is_lasting(result(kind)) for kind in kinds] == [True] * 3 + [False] * 3
