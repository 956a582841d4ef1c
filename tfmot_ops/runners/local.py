"""Runs each step in a child process on this machine."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmot_ops.contract import Device, StepResult, StepSpec
from tfmot_ops.runners.base import Log, peek_result, read_result
from tfmot_ops.runners.image import GPU_ENVIRONMENT, GRACE_S
from tfmot_ops.system import processes
from tfmot_ops.system.environment import VISIBLE_GPUS
from tfmot_ops.system.scratch import ScratchFolder

_DEVICE_ENVIRONMENT: Mapping[Device, Mapping[str, str]] = {
    Device.CPU: {VISIBLE_GPUS.name: "-1"},
    Device.GPU: GPU_ENVIRONMENT,
}
_POLL_S = 0.2
_CHUNK = 65536
_QUOTED_LINES = 15


@dataclass(frozen=True)
class LocalRunner:
    """Runs each step in a child process with its own session; the child never outlives this process.

    GPUs are hidden from a step with device `cpu`; a step with device `gpu` fails on a machine without a GPU.

    Attributes:
        python: interpreter of an environment with tfmot_ops and TensorFlow; None takes the current interpreter.
        env: environment variables, added to this process's environment. Not in `repr`, as they may be secrets.
        working_dir: working directory of the step; None takes the current one.
        module: Python module that is run with the arguments of `tfmot-ops`.
    """

    python: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    working_dir: str | None = None
    module: str = "tfmot_ops.cli"

    def start(
        self, spec: StepSpec, context: Mapping[str, Any] | None, log: Log, *, secrets: Mapping[str, str] | None = None
    ) -> LocalStep:
        """Start `python -m tfmot_ops.cli run` on the spec; see `Runner.start`."""
        del context
        folder = ScratchFolder()  # mode 0700: other users must not read the spec
        try:
            spec_file, result_file = folder.path / "spec.json", folder.path / "result.json"
            spec_file.write_text(spec.model_dump_json(indent=1), encoding="utf-8")
            command = [self.python or sys.executable, "-m", self.module, "run"]
            command += ["--spec", str(spec_file), "--result", str(result_file), "--die-with-parent"]
            process = processes.start_child(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd=self.working_dir,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    **_DEVICE_ENVIRONMENT[spec.device],
                    **(secrets or {}),
                    **self.env,
                },
            )
        except BaseException:
            folder.cleanup()
            raise
        return LocalStep(process, spec, folder, result_file, log)


class LocalStep:
    """A child process with its group; see `RunningStep`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        spec: StepSpec,
        folder: ScratchFolder,
        result_file: Path,
        log: Log,
    ) -> None:
        self._process = process
        self._spec = spec
        self._folder = folder
        self._result_file = result_file
        self._log = log
        self.result: StepResult | None = None

    @property
    def pid(self) -> int:
        """Process id of the leader, which is also the id of its group."""
        return self._process.pid

    def wait(self) -> StepResult:
        """Log the output until the leader ends, then kill the rest of its process group; see `RunningStep.wait`."""
        last_lines: deque[str] = deque(maxlen=_QUOTED_LINES)
        try:
            for line in self._lines():
                last_lines.append(line)
                self._log(line)
            # The leader may have closed its output and still run.
            processes.has_ended(self._process)
            self.result = peek_result(self._result_file)
            return read_result(self._result_file, self._spec, self._process.returncode, last_lines)
        finally:
            self._end()

    def kill(self) -> None:
        """SIGTERM to the group, a grace period, SIGKILL to the group."""
        # The folder is removed by `wait`, which may be the very frame that a signal handler interrupted to call this.
        processes.end_group(self._process, GRACE_S)

    def _end(self) -> None:
        # If the leader still runs, `wait` was interrupted by an exception, for example a time-out.
        processes.end_group(self._process, GRACE_S if self._process.poll() is None else 0.0)
        processes.has_ended(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()

    def _lines(self) -> Iterator[str]:
        rest = b""
        for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace").rstrip("\r")
        if rest:
            yield rest.decode("utf-8", "replace")

    def _chunks(self) -> Iterator[bytes]:
        """The output until the pipe closes or the leader ends: a grandchild may keep the pipe open."""
        pipe = self._process.stdout
        if pipe is None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                ended = self._process.poll() is not None  # polled before the pipe is read, so that no output is missed
                if selector.select(0 if ended else _POLL_S):
                    chunk = os.read(pipe.fileno(), _CHUNK)
                    if not chunk:
                        return
                    yield chunk
                elif ended:
                    return
