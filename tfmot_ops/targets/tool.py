"""Runs a target's program in a process of its own, which ends with this one: its C++ code may end the process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tfmot_ops.errors import SpecError, StepFailedError
from tfmot_ops.system import processes

#: Longest run, in seconds. Vela took 1.2 s for MobileNetV2 at 96x96 (2 cores).
_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Tool:
    """A program from a Python package that is installed only where a target needs it.

    Attributes:
        name: as people call it.
        package: import name of the Python package.
        code: Python code that runs the program; its arguments are in `sys.argv`.
    """

    name: str
    package: str
    code: str

    @property
    def is_installed(self) -> bool:
        """Whether the package can be imported here."""
        return importlib.util.find_spec(self.package) is not None

    def require(self, target: str) -> None:
        """Refuse a target whose program is missing.

        Raises:
            SpecError: the package is not installed.
        """
        if not self.is_installed:
            raise SpecError(
                f"target {target} needs {self.name} where the step runs",
                required=f"the Python package {self.package}",
                received="it is not installed",
                remedy="pip install 'tfmot-ops[targets]', or take another target; the worker image has it",
            )

    def run(self, arguments: Sequence[str], timeout_s: float = _TIMEOUT_S) -> tuple[int, str]:
        """Run the program: (exit code, negative for a signal; everything it printed).

        Raises:
            StepFailedError: it did not end in time, and was killed.
        """
        start = f"from tfmot_ops.system import processes; processes.die_with_parent(with_group=True); {self.code}"
        process = processes.start_child(
            [sys.executable, "-c", start, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        with process:
            try:
                # Not `communicate`, which closes stdin first, and so ends the program.
                printed = _read_until(process, timeout_s)
            except BaseException:
                processes.end_group(process)
                raise
        if printed is None:
            raise StepFailedError(
                f"{self.name} did not end",
                required=f"an answer within {timeout_s:.0f} s",
                received="none; its process was killed",
                remedy="try a smaller model, or a machine that is not busy",
            )
        return process.returncode, printed


def _read_until(process: subprocess.Popen[bytes], timeout_s: float) -> str | None:
    """Everything a process prints; None if it runs longer than `timeout_s` seconds, after which it is killed."""
    from threading import Timer

    late: list[bool] = []

    def end() -> None:
        late.append(True)
        processes.end_group(process)

    timer = Timer(timeout_s, end)
    timer.start()
    try:
        printed = process.stdout.read() if process.stdout is not None else b""
    finally:
        timer.cancel()
    return None if late else printed.decode(errors="replace")
