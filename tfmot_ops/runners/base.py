"""The protocols of runners, the reading of a step's result file, and a FakeRunner for tests of DAGs."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError

from tfmot_ops.contract import (
    Artifact,
    CandidateOptions,
    ChooseOptions,
    Status,
    StepOptions,
    StepResult,
    StepSpec,
)
from tfmot_ops.errors import SpecError, StepFailedError, TfmotOpsError, UnsupportedModelError

#: Function that is called with each line of the step's output, without the line break.
Log = Callable[[str], None]

_BY_EXIT_CODE: dict[int, type[TfmotOpsError]] = {
    error.exit_code: error for error in (SpecError, UnsupportedModelError, StepFailedError)
}
#: Signals by which a fault in native code, such as TensorFlow's, ends a process.
_NATIVE_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS}
_IN_NATIVE_CODE = (
    "native code failed; TensorFlow's oneDNN is known to: set TF_ENABLE_ONEDNN_OPTS=0 in the step's environment, which "
    "trains 2 to 3 times slower, and run `tfmot-ops doctor`, which tries the operation that is known to fail"
)
#: For a process killed by signal N, a shell and a container engine report exit code 128 + N; Python reports -N.
_SHELL_SIGNAL_BASE = 128


@runtime_checkable
class RunningStep(Protocol):
    """A step that was started.

    Attributes:
        result: the step's result, also of a failed step; None before its end, or if it wrote no result.
    """

    @property
    def result(self) -> StepResult | None: ...  # noqa: D102 - see the class

    def wait(self) -> StepResult:
        """Pass the step's output to the log until it ends.

        Returns:
            The step's result, with the status `ok`.

        Raises:
            SpecError: exit code 2; the same spec can never succeed.
            UnsupportedModelError: exit code 3; the same model can never succeed.
            StepFailedError: exit code 4, or a result that is missing or belongs to another spec.
            TfmotOpsError: exit code 1, or the step was killed by a signal, which the message names.
        """
        ...

    def kill(self) -> None:
        """Kill the step and all its processes; does nothing after its end. Safe to call in a signal handler."""
        ...


@runtime_checkable
class Runner(Protocol):
    """Starts steps in one kind of place. Implementations are frozen dataclasses: Airflow hashes their `repr`."""

    def start(self, spec: StepSpec, context: Mapping[str, Any] | None, log: Log) -> RunningStep:
        """Start a step and return at once.

        Args:
            spec: what to do.
            context: Airflow's task context; None outside Airflow.
            log: called with each line that the step prints.
        """
        ...


@runtime_checkable
class ResumableRunner(Runner, Protocol):
    """A runner that supports Airflow's deferral: a running step does not occupy a worker slot."""

    def resume(self, spec: StepSpec, context: Mapping[str, Any], log: Log, event: Mapping[str, Any]) -> RunningStep:
        """Resume a deferred step; `event` is the event of the trigger. Otherwise as `start`."""
        ...


def read_result(path: Path, spec: StepSpec, exit_code: int, last_lines: Iterable[str] = ()) -> StepResult:
    """Read the step's result file, and return the result or raise the step's error; see `judge`."""
    return judge(_bytes_of(path), spec, exit_code, last_lines)


def judge(answer: bytes | None, spec: StepSpec, exit_code: int, last_lines: Iterable[str] = ()) -> StepResult:
    """Return the result of a step that ended, or raise the exception for its exit code.

    Args:
        answer: content of the result file; None without a result file.
        spec: the step's spec, to refuse the result of another spec.
        exit_code: of the step's process; negative for a signal.
        last_lines: end of the step's output, quoted in the error if the result file gives no reason.

    Raises:
        TfmotOpsError: an instance of the class with this exit code; see `RunningStep.wait`.
    """
    if exit_code != 0:
        raise _failure(answer, spec, exit_code, last_lines)
    if answer is None:
        raise StepFailedError(
            f"step {spec.step_id} exited with 0 but wrote no result",
            required="a StepResult in its result file",
            received="no file" + _quoted(last_lines),
            remedy="read the step's log; the command of the runner must be `tfmot-ops run`",
        )
    try:
        result = StepResult.model_validate_json(answer)
    except ValidationError as error:
        raise StepFailedError(
            f"step {spec.step_id} left an unreadable result",
            required="a StepResult (see `tfmot-ops schema`)",
            received=_findings(error),
            remedy="use the same version of tfmot_ops where the step runs and where it is started",
        ) from error
    if result.spec_sha256 != spec.sha256():
        raise StepFailedError(
            f"step {spec.step_id} returned the result of a different spec",
            required=f"spec_sha256 {spec.sha256()}",
            received=result.spec_sha256,
            remedy="use the same version of tfmot_ops where the step runs and where it is started",
        )
    if result.status is not Status.OK:
        raise _failure(answer, spec, result.error.exit_code if result.error else 1, last_lines)
    return result


def peek_result(path: Path) -> StepResult | None:
    """The result in a result file, without checks; None if the file cannot be read.

    Used for a failed step, whose result is optional: its exit code and its log are enough to report the failure.
    """
    return peek(_bytes_of(path))


def peek(answer: bytes | None) -> StepResult | None:
    """The result in the content of a result file, without checks; None if it is not valid."""
    with contextlib.suppress(ValidationError):
        return StepResult.model_validate_json(answer) if answer is not None else None
    return None


def _bytes_of(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def _failure(answer: bytes | None, spec: StepSpec, exit_code: int, last_lines: Iterable[str]) -> TfmotOpsError:
    """The exception to raise for a failed step."""
    number = -exit_code if exit_code < 0 else exit_code - _SHELL_SIGNAL_BASE
    if number > 0:
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        return TfmotOpsError(
            f"step {spec.step_id} was killed by {name}",
            required="a step that exits by itself",
            received=f"exit code {exit_code}" + _quoted(last_lines),
            remedy=_IN_NATIVE_CODE
            if number in _NATIVE_FAULTS
            else "an unexpected SIGKILL usually means out of memory; SIGTERM means that the task was stopped",
        )
    kind = _BY_EXIT_CODE.get(exit_code, TfmotOpsError)
    result = peek(answer)
    if result is not None and result.error is not None:
        # The step's own message contains required, received and remedy already.
        return kind(f"step {spec.step_id} failed: {result.error.type}: {result.error.message}")
    return kind(
        f"step {spec.step_id} failed with exit code {exit_code}",
        required="exit code 0, or a result that says what failed",
        received="no result" + _quoted(last_lines),
        remedy="read the step's log",
    )


def _quoted(lines: Iterable[str]) -> str:
    text = "\n    ".join(line for line in lines if line.strip())
    return f"; its last lines:\n    {text}" if text else ""


def _findings(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())


#: What a FakeRunner returns or raises for one attempt at a step; None means a plausible result.
Answer = StepResult | Exception | None


@dataclass(frozen=True)
class _Answered:
    """A step of a FakeRunner: `wait` returns or raises `answer` at once."""

    answer: StepResult | Exception
    killed: list[StepSpec]
    spec: StepSpec

    @property
    def result(self) -> StepResult | None:
        return self.answer if isinstance(self.answer, StepResult) else None

    def wait(self) -> StepResult:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def kill(self) -> None:
        self.killed.append(self.spec)


@dataclass(frozen=True)
class FakeRunner:
    """A runner for tests of your DAGs: it starts no process, records each spec, and gives prepared results.

    Example: `FakeRunner(answers={"train": StepFailedError("no disk")})`.

    Attributes:
        answers: step id (task id) -> the result to return, the exception to raise, or a list with one entry per
            attempt, whose last entry repeats. For None, and for a step without an entry, a small plausible result is
            made. The `step_id`, `kind` and `spec_sha256` of a result are replaced by those of the spec.
        specs: the specs received, in order.
        killed: the specs of the steps that were killed.
    """

    answers: Mapping[str, StepResult | Exception | list[StepResult | Exception]] = field(
        default_factory=dict, repr=False
    )
    specs: list[StepSpec] = field(default_factory=list, repr=False)
    killed: list[StepSpec] = field(default_factory=list, repr=False)

    def start(self, spec: StepSpec, context: Mapping[str, Any] | None, log: Log) -> RunningStep:
        """Record the spec; `wait` of the returned step gives the prepared result."""
        del context
        attempt = sum(1 for seen in self.specs if seen.step_id == spec.step_id)
        self.specs.append(spec)
        log(f"fake step {spec.step_id}")
        answer = self.answers.get(spec.step_id)
        if isinstance(answer, Sequence):
            answer = answer[min(attempt, len(answer) - 1)]
        if answer is None:
            answer = fake_result(spec)
        if isinstance(answer, StepResult):
            identity = {"step_id": spec.step_id, "kind": spec.options.kind, "spec_sha256": spec.sha256()}
            answer = answer.model_copy(update=identity)
        return _Answered(answer, self.killed, spec)


def fake_result(spec: StepSpec) -> StepResult:
    """A plausible result: URIs of files that do not exist (`model`, `tflite` of `quantize`), one metric, a run id.

    In a search every candidate has the same figures, and the first one that was tried is chosen.
    """
    names: dict[str, dict[str, str]] = {kind: {} for kind in ("open_run", "close_run", "evaluate", "register")}
    names["quantize"] = {"model": "keras_h5", "tflite": "tflite"}
    names["candidate"] = names["choose"] = {"tflite": "tflite"}
    formats = names.get(spec.options.kind, {"model": "keras_h5"})
    outputs = {
        name: Artifact.model_validate(
            {"uri": f"memory://{spec.step_id}/{name}", "sha256": spec.sha256(), "size_bytes": 1, "format": form}
        )
        for name, form in formats.items()
    }
    return StepResult(
        step_id=spec.step_id,
        kind=spec.options.kind,
        spec_sha256=spec.sha256(),
        status=Status.OK,
        outputs=outputs,
        metrics={"accuracy": 0.5},
        parameters=_parameters_of_search(spec.options),
        tracking_run_id=spec.sha256()[:32],
    )


def _parameters_of_search(options: StepOptions) -> dict[str, Any]:
    """The parameters in which tasks of a search tell others what they did; empty for other kinds of steps."""
    if isinstance(options, CandidateOptions):
        return {"candidate": options.recipe if isinstance(options.recipe, str) else options.recipe.name, "shared": {}}
    if isinstance(options, ChooseOptions):
        first = options.found[0] if options.found else None
        chosen, run = (first.candidate.name, first.run_id) if first else (None, None)
        return {"chosen": chosen, "chosen_run": run, "search": "a made-up choice"}
    return {}
