"""Which process something belongs to, told so that another process can find out whether that one still runs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# The kernel's constant for the first PID namespace: a process in it sees every process of the machine.
_FIRST_PID_NAMESPACE = "4026531836"
_START_TIME_FIELD = 19  # of /proc/<pid>/stat, counted from the field after the command's name
_AGAIN_S = 1.0
# Signals whose exception is raised again and again.
_stopping: list[int] = []
_FORM = re.compile(
    r"(?P<host>[^|]*)\|(?P<machine>[^|]*)\|(?P<boot>[^|]*)\|(?P<pids>[^|]*)\|(?P<pid>\d+)\|(?P<start>\d+)"
)


@dataclass(frozen=True)
class Owner:
    """A process, known beyond its end: a later process with the same number has another start time.

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
        # Nothing lives through a restart of the machine. Inside a container the machine cannot be recognised.
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
            # What the process was started to ignore (nohup, a shell's background), or handles already, stays so.
            if signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}:
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        stop_arrived()
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_arrived() -> None:
    """Say that the exception of a signal has arrived where it is handled; harmless without one."""
    if _stopping:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _stopping.clear()


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def current() -> Owner:
    """This process."""
    pid = os.getpid()  # asked each time: a fork has another
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
