"""One at a time, also while waiting for a lock whose file is deleted by each holder."""

from __future__ import annotations

import signal
import subprocess
import sys
from threading import Event, Thread

from tfmot_ops.system import files

COUNTS = """
import sys
from pathlib import Path
from tfmot_ops.system import files
folder, polls = Path(sys.argv[1]), sys.argv[2] == "polls"
for _ in range(50):
    with files.lock(folder / "lock", wait=True, stopped=(lambda: False) if polls else None) as held:
        assert held
        number = int((folder / "number").read_text())
        (folder / "number").write_text(str(number + 1))
"""
HOLDS = """
import sys, time
from pathlib import Path
from tfmot_ops.system import files
with files.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_those_who_wait_get_the_lock_one_after_the_other(tmp_path) -> None:
    (tmp_path / "number").write_text("0")
    ways = ["sleeps", "sleeps", "sleeps", "polls"]
    command = [sys.executable, "-c", COUNTS, str(tmp_path)]
    running = [subprocess.Popen([*command, way]) for way in ways]
    assert [process.wait(120) for process in running] == [0] * len(ways)
    assert (tmp_path / "number").read_text() == str(50 * len(ways))
    assert not (tmp_path / "lock").exists()


def test_who_waits_gets_the_lock_of_a_killed_holder(tmp_path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        seen: list[bool] = []

        def wait() -> None:
            with files.lock(tmp_path / "lock", wait=True) as held:
                seen.append(held)

        thread = Thread(target=wait)
        thread.start()
        thread.join(0.3)
        assert seen == []
        holder.send_signal(signal.SIGKILL)
        thread.join(30)
    assert seen == [True]


def test_a_wait_can_be_stopped(tmp_path) -> None:
    stop, seen = Event(), []

    def wait() -> None:
        with files.lock(tmp_path / "lock", wait=True, stopped=stop.is_set) as held:
            seen.append(held)

    with files.lock(tmp_path / "lock"):
        thread = Thread(target=wait)
        thread.start()
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        assert (tmp_path / "lock").exists(), "who did not get the lock must not delete its file"
    assert seen == [False]
