"""A process with a limit on its time and its memory, that does not outlive us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

_POLL_S = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Limits:
    """What a cell may use.

    TensorFlow cannot live under RLIMIT_AS, as it reserves far more addresses than it uses, so the resident memory of
    the process and its children is watched.

    Attributes:
        time_s: wall time in seconds; the slowest cell took a quarter of the default on two cores.
        memory_bytes: resident memory.
    """

    time_s: float = 3600.0
    memory_bytes: float = 18 * 2**30


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        exit_code: negative for a signal, as `subprocess` has it.
        limit: the one it ran into (`time`, `memory`, `stopped` when we were told to stop), or None.
        peak_bytes: most resident memory seen.
        duration_s: wall time.
    """

    exit_code: int
    limit: str | None
    peak_bytes: float
    duration_s: float


def run_limited(
    command: Sequence[str], log: Path, limits: Limits, environment: Mapping[str, str], stop: Event | None = None
) -> Ended:
    """Run a command to its end, or to a limit.

    Args:
        command: program and arguments. Its stdin is a pipe that closes when this process ends, however it ends: a
            program that watches it does not outlive us.
        log: file for what it writes.
        limits: see `Limits`.
        environment: its environment variables.
        stop: ends the process when set.
    """
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=dict(environment), start_new_session=True
        )
        try:
            limit, peak = _watch(process, limits, started, stop)
        finally:
            _kill_group(process)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    return Ended(process.returncode, limit, peak, time.monotonic() - started)


def _watch(
    process: subprocess.Popen[bytes], limits: Limits, started: float, stop: Event | None
) -> tuple[str | None, float]:
    peak = 0.0
    while process.poll() is None:
        resident = _resident_bytes(process.pid)
        peak = max(peak, resident)
        if resident > limits.memory_bytes:
            return "memory", peak
        if time.monotonic() - started > limits.time_s:
            return "time", peak
        if stop is not None and stop.is_set():
            return "stopped", peak
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
    return None, peak


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _resident_bytes(pid: int) -> float:
    """Resident memory of a process and all below it; 0 for one that is gone."""
    total = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):
        total += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(_resident_bytes(int(child)) for child in children.read_text(encoding="ascii").split())
    return total
