"""What happens to a sweep when cells hang, eat memory, die, or raise, and when the sweep itself is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tfmot_ops import recipes
from tfmot_ops.contract import Stage, Status
from tfmot_ops.sweep.run.limits import Limits
from tfmot_ops.sweep.whole import Sweep, latest_by_inputs

RECIPE = "sparse50_wi8_ai8"


def sweep(folder, *names, **fields):
    return Sweep(folder, names, (recipes.decode(RECIPE),), jobs=2, expected={}, **fields)


def test_a_hang_an_allocation_and_a_signal_are_results(tmp_path) -> None:
    done = sweep(tmp_path, "sleeps", limits=Limits(time_s=40)).run()
    (slow,) = done.cells
    assert (slow.status, slow.error_class, slow.failed_stage) == (Status.FAILED, "timeout", Stage.BUILD), slow.message
    assert slow.metrics["wall_s"] < 90
    done = sweep(tmp_path, "allocates", "dies", limits=Limits(memory_bytes=2**31)).run()
    greedy, dead = done.cells
    assert (greedy.error_class, greedy.failed_stage) == ("out_of_memory", Stage.BUILD), greedy.message
    assert greedy.metrics["peak_memory_bytes"] > 2**31
    assert (dead.error_class, dead.failed_stage) == ("crash", Stage.BUILD), dead.message
    assert "code -11" in dead.message
    # What the machine may be to blame for is not taken over by the next sweep.
    assert latest_by_inputs([done]) == {}


@pytest.mark.parametrize("stage", [Stage.BUILD, Stage.RELOAD, Stage.AGREE])  # first, last, and the one with a class
def test_an_error_in_a_stage(tmp_path, monkeypatch, stage) -> None:
    monkeypatch.setenv("TEST_STAGE", stage.value)
    (cell,) = sweep(tmp_path, "raises").run().cells
    assert (cell.failed_stage, cell.error_type, cell.message) == (stage, "RuntimeError", f"planted in {stage.value}")
    assert cell.error_class == ("reload" if stage is Stage.RELOAD else "unknown")
    assert cell.family == "registered"


CHILD = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
from pathlib import Path
from tfmot_ops.core import recipes
from tfmot_ops.sweep.whole import Sweep
class Watcher:
    def started(self, cell): print("started", cell, flush=True)
    def ended(self, result): print("ended", result.cell, result.cached, flush=True)
plan = Sweep(Path(sys.argv[1]), ("sound", "sleeps"), (recipes.decode(sys.argv[2]),), jobs=1, expected={})
plan.run(watcher=Watcher())
"""

pytestmark = [pytest.mark.usefixtures("plugin"), pytest.mark.slow]


def test_a_killed_sweep_leaves_no_process_and_resumes(tmp_path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), RECIPE], stdout=subprocess.PIPE) as child:
        # Of equal cost, so in the order of their names.
        assert child.stdout is not None
        assert b"started sleeps" in child.stdout.readline()
        child.kill()
    deadline = time.monotonic() + 20
    while _cells_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _cells_of(tmp_path)
    for force, cached in ((False, False), (False, True), (True, False)):
        (cell,) = sweep(tmp_path, "sound", force=force).run().cells
        assert (cell.status, cell.cached) == (Status.OK, cached), cell.message


def _cells_of(folder) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "tfmot_ops.sweep.run.cell" in line and str(folder) in line]


def test_two_sweeps_at_once_run_each_cell_once(tmp_path) -> None:
    plans = [sweep(tmp_path, "sound"), sweep(tmp_path, "sound")]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda plan: plan.run(), plans))
    assert sorted(cell.cached for each in done for cell in each.cells) == [False, True]
    assert {cell.status for each in done for cell in each.cells} == {Status.OK}


def test_ctrl_c_ends_the_cells(tmp_path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), RECIPE], stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        os.kill(child.pid, signal.SIGINT)
        child.communicate(timeout=60)
    assert child.returncode != 0
    assert not _cells_of(tmp_path)
