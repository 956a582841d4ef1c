"""What a process starts ends with that process, by either way, and a group is ended whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfmot_ops.system import processes

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
)
# A child with a child of its own that ignores SIGTERM.
CHILD = f"""
import os, subprocess, sys, time
from tfmot_ops.system import processes
if sys.argv[1] != "none":
    processes.die_with_parent(with_group=sys.argv[1] == "group")
below = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
below.stdout.readline()
print(os.getpid(), below.pid, flush=True)
time.sleep(float(sys.argv[2]))
"""
PARENT = f"""
import sys, time
from tfmot_ops.system import processes
child = processes.start_child([sys.executable, "-c", {CHILD!r}, sys.argv[1], "300"])
time.sleep(300)
"""


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not _lives(pid)


@pytest.mark.parametrize("way", ["alone", "group"])
def test_a_child_ends_with_its_killed_parent(way) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, way], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child, below = map(int, parent.stdout.readline().split())
        parent.send_signal(signal.SIGKILL)
    assert _is_gone(child)
    if way == "group":
        assert _is_gone(below)
    else:
        # The kernel's way kills one process; what that one started has to ask for the same.
        assert _lives(below)
        os.kill(below, signal.SIGKILL)


@pytest.mark.parametrize(("seconds", "code"), [(300, -signal.SIGTERM), (0, 0)], ids=["runs", "ended"])
def test_a_group_ends_whole_also_when_its_leader_has_ended(seconds, code) -> None:
    leader = processes.start_child([sys.executable, "-c", CHILD, "none", str(seconds)], stdout=subprocess.PIPE)
    with leader:
        assert leader.stdout is not None
        _, below = map(int, leader.stdout.readline().split())
        if seconds == 0:
            assert processes.has_ended(leader, 20)
        processes.end_group(leader, grace_s=5)
        assert processes.has_ended(leader, 5)
        assert _is_gone(below)
        assert leader.returncode == code
        processes.end_group(leader)  # of a group that is gone: harmless


def test_a_wait_for_the_end_has_a_limit() -> None:
    with processes.start_child(["sleep", "300"]) as child:
        began = time.monotonic()
        assert not processes.has_ended(child, 0.2)
        assert 0.2 <= time.monotonic() - began < 5
        processes.end_group(child)
        assert processes.has_ended(child)
