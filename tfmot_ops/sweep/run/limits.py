"""A process with a limit on its time and its memory, that does not outlive us.

`python -m tfmot_ops.sweep.run.limits PROGRAM [ARGUMENT ...]` runs a program that ends when the one that started it
does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from tfmot_ops.system import processes
from tfmot_ops.system.environment import TEMPORARY_FOLDER, TETHERED

#: How often a process is looked at.
POLL_S = 0.1
#: Ending of the folder that a process has for its temporary files.
SCRATCH = ".tmp"


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
        command: program and arguments. Its stdin is a pipe that closes when this process ends, however it ends, and it
            calls `processes.die_with_parent` so as not to outlive us.
        log: file for what it writes.
        limits: see `Limits`.
        environment: its environment variables; besides, TMPDIR is a folder beside the log that is removed with all that
            a killed process leaves there.
        stop: ends the process when set.
    """
    with log.open("wb") as file, _scratch(log) as scratch:
        started = time.monotonic()
        tethered = {**environment, TEMPORARY_FOLDER.name: str(scratch), TETHERED.name: "yes"}
        process = processes.start_child(command, stdout=file, stderr=file, env=tethered)
        try:
            limit, peak = _watch(process, limits, started, stop)
        finally:
            processes.end_group(process)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        return Ended(process.returncode, limit, peak, time.monotonic() - started)


@contextlib.contextmanager
def _scratch(log: Path) -> Iterator[Path]:
    """`<log's name>.tmp`, empty; a name that is known, so that what our own death leaves there can be found."""
    folder = log.with_suffix(SCRATCH).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def death(exit_code: int) -> str:
    """Error class of a process that ended without a result, and without us.

    Nobody but the kernel sends SIGKILL by itself: when memory runs out. A shell between us says it as 137.
    """
    if exit_code in {-signal.SIGKILL, 128 + signal.SIGKILL}:
        return "out_of_memory"
    return "crash" if exit_code < 0 else "unknown"


@contextlib.contextmanager
def imported_for_good() -> Iterator[None]:
    """Keep what is imported within from the garbage collector: TensorFlow is 344,000 objects that stay anyway."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _watch(
    process: subprocess.Popen[bytes], limits: Limits, started: float, stop: Event | None
) -> tuple[str | None, float]:
    peak = 0.0
    while process.poll() is None:
        resident = processes.resident_bytes(process.pid)
        peak = max(peak, resident)
        if resident > limits.memory_bytes:
            return "memory", peak
        if time.monotonic() - started > limits.time_s:
            return "time", peak
        if stop is not None and stop.is_set():
            return "stopped", peak
        processes.has_ended(process, POLL_S)
    return None, peak


def main(arguments: list[str]) -> None:
    """Become another program, which keeps what the kernel was told here."""
    processes.die_with_parent()
    os.execvp(arguments[0], arguments)  # noqa: S606 - without a shell, as it was asked for


if __name__ == "__main__":
    main(sys.argv[1:])
