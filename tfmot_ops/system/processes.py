"""Processes: signal handling, child processes that end with their parent, and identification of a process on disk."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tfmot_ops.system.environment import TETHERED

# The kernel's constant for the first PID namespace: a process in it sees every process of the machine.
_FIRST_PID_NAMESPACE = "4026531836"
_START_TIME_FIELD = 19  # of /proc/<pid>/stat, counted from the field after the command's name
_AGAIN_S = 1.0
# Seconds between two looks at a child.
_LOOK_S = 0.05
_PR_SET_PDEATHSIG = 1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Signals whose exception is raised again and again.
_stopping: list[int] = []
_FORM = re.compile(
    r"(?P<host>[^|]*)\|(?P<machine>[^|]*)\|(?P<boot>[^|]*)\|(?P<pids>[^|]*)\|(?P<pid>\d+)\|(?P<start>\d+)"
)


@dataclass(frozen=True)
class Owner:
    """Identifies a process, also after its end: a later process with the same id has another start time.

    Attributes:
        host: host name.
        machine: id of the machine's installation (`/etc/machine-id`), empty where there is none.
        boot: id of the kernel's boot, different after each start of the machine.
        pids: PID namespace, as containers number their processes anew.
        pid: process id in that namespace.
        start: start time in clock ticks since the boot.
    """

    host: str
    machine: str
    boot: str
    pids: str
    pid: int
    start: int

    def __str__(self) -> str:
        return f"{self.host}|{self.machine}|{self.boot}|{self.pids}|{self.pid}|{self.start}"

    @staticmethod
    def parse(text: str) -> Owner | None:
        """The owner that `str` wrote; None for any other text."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        host, machine, boot, pids, pid, start = found.groups()
        return Owner(host, machine, boot, pids, int(pid), int(start))

    def is_dead(self) -> bool:
        """Whether the process is known to have ended; False also where this process cannot know."""
        here = current()
        if (self.boot, self.pids) == (here.boot, here.pids):
            return _start_time(self.pid) != self.start
        # No process survives a reboot of the machine. Inside a container, the machine cannot be identified.
        outside = {self.pids, here.pids} == {_FIRST_PID_NAMESPACE}
        same_machine = (self.host, self.machine) == (here.host, here.machine) and bool(here.machine)
        return outside and same_machine and self.boot != here.boot


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT, and SystemExit with a shell's exit code, 128 + number, on SIGTERM and SIGHUP.

    Python drops an exception that is raised while an object is finalised, and TensorFlow finalises objects all the
    time: so it is raised again each second until `stop_arrived` is called. A second signal ends the process at once.
    """

    def leave(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, lambda *_: _raise(number))
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        _stopping.append(number)
        _raise(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Signals that are ignored (nohup, background job of a shell) or handled already stay unchanged.
            if signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}:
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        stop_arrived()
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_arrived() -> None:
    """Stop raising the exception of a signal again, as it has been caught; does nothing without a signal."""
    if _stopping:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _stopping.clear()


@contextlib.contextmanager
def signals_first() -> Iterator[None]:
    """Raise the exception of a signal in the place of an error that the block raises after the signal came.

    Where C++ code of TensorFlow calls Python, TensorFlow replaces KeyboardInterrupt or SystemExit by an error of its
    own: a SIGTERM during `predict` was seen as "ValueError: The two structures don't have the same nested structure".
    """
    try:
        yield
    except Exception:
        if _stopping:
            _raise(_stopping[0])
        raise


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def start_child(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that leads a session, and so a group, of its own, and that can see this process end.

    Its stdin is a pipe to which nothing is ever written: the kernel closes that pipe however this process ends, SIGKILL
    included. The child has to call `die_with_parent`.

    Args:
        command: program and arguments.
        **options: further arguments of `subprocess.Popen`.
    """
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options)


def die_with_parent(*, with_group: bool = False) -> None:
    """Kill this process when its parent ends for any reason.

    There are two methods, as each has limits:

    - Parent-death signal (Linux only): works during a long call of TensorFlow and after `exec`. It kills this process
      only, and it fires when the parent's thread that started this process ends.
    - Watching stdin (any POSIX system): kills the whole process group. It needs a stdin to which nobody writes, as from
      `start_child`, and a Python thread, which a long call of TensorFlow may block.

    Args:
        with_group: watch stdin, and kill this process's whole group.
    """
    if with_group:
        with contextlib.suppress(OSError):
            # A session leader has its own group already. Any other process must not kill the group of its caller.
            os.setpgid(0, 0)
        threading.Thread(target=_kill_group_at_end_of_stdin, name="die-with-parent", daemon=True).start()
    elif prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The kernel does not report a parent that ended before this call; the closed pipe of `start_child` does.
        if TETHERED.get() and _is_stdin_closed():
            os.kill(os.getpid(), signal.SIGKILL)


def _kill_group_at_end_of_stdin() -> None:
    # Read from the descriptor, as reading sys.stdin holds a lock that the interpreter needs at its exit.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.killpg(0, signal.SIGKILL)


def _is_stdin_closed() -> bool:
    poll = select.poll()
    poll.register(0, 0)
    return bool(poll.poll(0))


def has_ended(process: subprocess.Popen[bytes], within_s: float = math.inf) -> bool:
    """Wait for a child for at most `within_s` seconds; return whether the child has ended.

    Unlike `Popen.wait`, this holds no lock, so that a signal handler in the same thread can poll the child.
    """
    deadline = time.monotonic() + within_s
    while process.poll() is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def end_group(leader: subprocess.Popen[bytes], grace_s: float = 0.0) -> None:
    """Kill all processes of a child's group; the caller must still read the leader's exit code.

    Args:
        leader: a child of `start_child`; it may have ended while others of its group still run.
        grace_s: seconds between SIGTERM and SIGKILL, less if the leader ends earlier; 0 sends SIGKILL at once.
    """
    if grace_s > 0:
        signal_group(leader, signal.SIGTERM)
        has_ended(leader, grace_s)
    # Other processes of the group may have ignored SIGTERM.
    signal_group(leader, signal.SIGKILL)


def signal_group(leader: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a child's group; harmless when there is none left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, number)


def resident_bytes(pid: int) -> float:
    """Resident memory of a process and its descendants in bytes; 0 if the process has ended."""
    total = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):
        total += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(resident_bytes(int(child)) for child in children.read_text(encoding="ascii").split())
    return total


def current() -> Owner:
    """This process."""
    pid = os.getpid()  # not cached, as a forked process has another pid
    return Owner(*_place(), pid, _start_time(pid) or 0)


@cache
def _place() -> tuple[str, str, str, str]:
    try:
        pids = re.sub(r"\D", "", str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        pids = ""
    host = socket.gethostname().replace("|", "_")
    return host, _line("/etc/machine-id"), _line("/proc/sys/kernel/random/boot_id"), pids


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip().replace("|", "_")
    except (OSError, UnicodeDecodeError):
        return ""


def _start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since the boot; None for one that has ended, a zombie included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[_START_TIME_FIELD])
