"""Runs a child process with limits on time and memory; the child never outlives this process.

`python -m tfmot_ops.sweep.run.limits PROGRAM [ARGUMENT ...]` runs a program that the kernel kills when its parent ends.
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
#: Suffix of the folder for a child's temporary files.
SCRATCH = ".tmp"


@dataclass(frozen=True)
class Limits:
    """Limits of a cell.

    TensorFlow reserves far more address space than it uses, so RLIMIT_AS cannot limit it; instead the resident memory
    of the process and its children is polled.

    Attributes:
        time_s: wall time in seconds; the slowest cell took a quarter of the default on two cores.
        memory_bytes: resident memory in bytes.
    """

    time_s: float = 3600.0
    memory_bytes: float = 18 * 2**30


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        exit_code: negative for a signal, as `subprocess` has it.
        limit: why it was killed: `time`, `memory`, or `stopped` (the sweep was stopped); None if it ended by itself.
        peak_bytes: largest polled resident memory in bytes.
        duration_s: wall time in seconds.
    """

    exit_code: int
    limit: str | None
    peak_bytes: float
    duration_s: float


def run_limited(
    command: Sequence[str], log: Path, limits: Limits, environment: Mapping[str, str], stop: Event | None = None
) -> Ended:
    """Run a command until it ends, or kill it at a limit.

    Args:
        command: program and arguments. The program must call `processes.die_with_parent`; its stdin is a pipe that
            closes when this process ends for any reason.
        log: file for the command's stdout and stderr.
        limits: see `Limits`.
        environment: environment variables of the command. TMPDIR is set to a folder beside the log, which is removed
            afterwards with everything in it.
        stop: kills the process when set.
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
    """An empty folder `<name of the log>.tmp`; if this process is killed, the next sweep finds it by its name."""
    folder = log.with_suffix(SCRATCH).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def death(exit_code: int) -> str:
    """Error class of a process that ended without a result and was not killed by this process.

    SIGKILL then comes from the kernel, as memory ran out; a shell reports SIGKILL as exit code 137.
    """
    if exit_code in {-signal.SIGKILL, 128 + signal.SIGKILL}:
        return "out_of_memory"
    return "crash" if exit_code < 0 else "unknown"


@contextlib.contextmanager
def imported_for_good() -> Iterator[None]:
    """Exclude the objects of imports in this context from garbage collection: TensorFlow's 344,000 objects stay."""
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
    """Ask the kernel to kill this process with its parent, then exec the program, which keeps that setting."""
    processes.die_with_parent()
    os.execvp(arguments[0], arguments)  # noqa: S606 - without a shell, as it was asked for


if __name__ == "__main__":
    main(sys.argv[1:])
