"""Run one step inside its MLflow run: StepSpec in, StepResult out."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tfmot_ops.contract import RegisterOptions, StepResult, StepSpec
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.errors import SpecError, TfmotOpsError
from tfmot_ops.system import files
from tfmot_ops.system.processes import signals_first, stop_arrived
from tfmot_ops.system.uri_secrets import hide

if TYPE_CHECKING:
    from tfmot_ops.tracking import StepRun

#: Largest spec, in bytes: one of a close_run step with the figures of a thousand tasks has 1 MB.
_MOST_SPEC_BYTES = 16 * 2**20
#: Prefix of each progress line, so that a reader of the log can filter for it.
PREFIX = "tfmot-ops: "


class ProgressReporter:
    """Reports a step's progress as log lines and, if the step has an MLflow run, on this run.

    Args:
        say: called with each progress line.
        run: the step's MLflow run; None without tracking.
    """

    def __init__(self, say: Callable[[str], None], run: StepRun | None = None) -> None:
        self._say = say
        self._run = run

    def message(self, text: str) -> None:
        """See `tfmot_ops.steps.Progress`."""
        self._say(text)

    def epoch(self, stage: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """See `tfmot_ops.steps.Progress`."""
        figures = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self._say(f"{stage} epoch {epoch}/{epochs} {figures}")
        if self._run is not None:
            self._run.epoch(stage, epoch, epochs, metrics)

    def restored(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `tfmot_ops.steps.Progress`; no line is printed, as the earlier attempt printed one."""
        if self._run is not None:
            self._run.restored(epoch, metrics)

    def model(self, model: Any, example: Any) -> None:
        """See `tfmot_ops.steps.Progress`."""
        if self._run is not None:
            self._run.model(model, example)


def say(text: str) -> None:
    """Print a progress line and flush stdout: a person may follow the log while the step runs.

    Raises:
        SystemExit: nobody reads stdout any more (`tfmot-ops optimize | head -1`); the code is that of SIGPIPE in a
            shell, and the command ends as after a signal.
    """
    try:
        sys.stdout.write(PREFIX + hide(text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What Python still holds for stdout is written when the process ends, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def say_on_stderr(text: str) -> None:
    """Print a progress line on stderr, where stdout is for JSON."""
    sys.stderr.write(hide(f"{text}\n"))
    sys.stderr.flush()


def read_spec(source: str | Path) -> StepSpec:
    """Read a spec.

    Args:
        source: a file, or `env:NAME` for the environment variable NAME with the JSON. A container gets its spec in a
            variable, so that no file has to be mounted.

    Raises:
        SpecError: the source is missing, or is not a valid spec; the message lists field, required and received.
    """
    try:
        return StepSpec.model_validate_json(_spec_text(str(source)))
    except ValidationError as error:
        raise refusal(Path(source).name, error, "`tfmot-ops schema spec` prints the whole form") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise SpecError(
            f"the spec {source} cannot be read",
            required="a JSON file",
            received=getattr(error, "strerror", None) or str(error),
            remedy="check the path, or give env:NAME to read the spec from a variable",
        ) from error


def _spec_text(source: str) -> bytes:
    scheme, _, name = source.partition(":")
    if scheme != "env":
        return files.read_limited(source, _MOST_SPEC_BYTES)
    if name not in os.environ:
        raise SpecError(
            f"the spec {source} cannot be read",
            required=f"a variable {name}",
            received="no such variable",
            remedy=f"export {name} with the JSON of the spec, or give a file",
        )
    return os.environ[name].encode()


def execute(spec: StepSpec, say: Callable[[str], None] = say, *, stays: bool = False) -> StepResult:
    """Run a step in this process, recorded in MLflow when the spec says so.

    Args:
        spec: what to do.
        say: called with each progress line.
        stays: whether this process runs the whole chain, see `StepRun`.

    Returns:
        The result. If the step failed, the result holds the error, which is also printed on stderr.

    Raises:
        SpecError: the spec can never succeed; nothing was written and no run was opened.
    """
    from tfmot_ops import steps

    _quiet()
    steps.check(spec)
    if spec.options.is_a_chain:
        from tfmot_ops.cli.candidate import run_candidate

        return run_candidate(spec, say)
    started = time.perf_counter()
    run: StepRun | None = None
    with tempfile.TemporaryDirectory(prefix="tfmot-ops-") as folder:
        workdir = Path(folder)
        try:
            with signals_first():
                run = _open_run(spec, stays, say)
                result = _run(spec, run, workdir, say)
        except Exception as error:  # noqa: BLE001 - whatever a step dies of is its answer
            error = files.disk_failure(error, workdir) or _refusal_of_mlflow(error, spec) or error
            _print_error(error, spec)
            result = steps.failed(spec, error, time.perf_counter() - started)
            if run is not None:
                # The step's error is printed already; a failure to record it in MLflow must not replace it.
                with contextlib.suppress(Exception):
                    result = run.finish(result, workdir)
        except BaseException:  # Ctrl-C, SIGTERM
            stop_arrived()
            if run is not None:
                with contextlib.suppress(Exception):
                    run.kill()
            raise
    return result


def _open_run(spec: StepSpec, stays: bool, say: Callable[[str], None]) -> StepRun | None:
    if spec.tracking is None:
        return None
    from tfmot_ops.tracking import StepRun

    return StepRun(spec, stays=stays, say=say)


def _refusal_of_mlflow(error: Exception, spec: StepSpec) -> TfmotOpsError | None:
    """The error for the user if MLflow refused a request of the step; None for any other error."""
    if spec.tracking is None:
        return None
    from tfmot_ops.tracking import refusal_of_mlflow

    return refusal_of_mlflow(error, spec.tracking.uri)


def _run(spec: StepSpec, run: StepRun | None, workdir: Path, say: Callable[[str], None]) -> StepResult:
    from tfmot_ops import steps
    from tfmot_ops.store import FsspecStore, Store, check_output

    if spec.output_uri is not None and spec.options.makes:
        check_output(spec.output_uri)
    # StepSpec validates that output_uri or tracking is given.
    store: Store = run.store if run is not None else FsspecStore(str(spec.output_uri))
    local = _with_champion(_with_local_model(spec, workdir), run)
    _bring_earlier_sweeps(spec, workdir, say)

    def record(result: StepResult) -> StepResult:
        if local is not spec:
            # The result belongs to the spec as received, not to its copy with a local path or the champion's metrics.
            requested = dict(result.parameters)
            if spec.options.named_model:
                requested["model"] = hide(spec.options.named_model)
            result = result.model_copy(update={"spec_sha256": spec.sha256(), "parameters": requested})
        return run.finish(result, workdir) if run is not None else result

    return steps.run_step(local, store, workdir, ProgressReporter(say, run), record)


def _with_local_model(spec: StepSpec, workdir: Path) -> StepSpec:
    """Download the model of an MLflow URI and put its local path into the spec: steps read files only."""
    model = spec.options.named_model
    if model is None or ":/" not in model:
        return spec
    from tfmot_ops.tracking import fetch_model, is_model_uri

    if not is_model_uri(model):
        return spec
    if spec.tracking is None:
        raise SpecError(
            "options.model is an MLflow URI, but the spec has no tracking URI",
            required="tracking.uri",
            received=f"model {model} without tracking",
            remedy="add tracking to the spec",
        )
    path = fetch_model(model, workdir / "logged", spec.tracking.uri)
    return spec.model_copy(update={"options": spec.options.with_model(str(path))})


def _with_champion(spec: StepSpec, run: StepRun | None) -> StepSpec:
    """Put the champion's metrics into the spec of a step whose rules compare with the champion."""
    options = spec.options
    if run is None or not (isinstance(options, RegisterOptions) and options.compares_with_champion):
        return spec
    metrics = run.metrics_of_champion(options)
    return spec.model_copy(update={"options": options.model_copy(update={"champion": metrics})})


def _bring_earlier_sweeps(spec: StepSpec, workdir: Path, say: Callable[[str], None]) -> None:
    """Download the earlier sweeps from MLflow into the work folder: steps read files only."""
    if spec.tracking is None or not spec.options.reads_earlier_sweeps:
        return
    from tfmot_ops.steps.compat import EARLIER
    from tfmot_ops.tracking import earlier_sweeps

    folder = workdir / EARLIER
    folder.mkdir(parents=True, exist_ok=True)
    for sweep in earlier_sweeps(spec.tracking.uri, spec.tracking.experiment, say=say):
        (folder / f"{sweep.sweep_id}.json").write_text(sweep.model_dump_json(), encoding="utf-8")


def _quiet() -> None:
    """Show TensorFlow's errors only: its warnings concern its internals and would hide this package's messages."""
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _print_error(error: Exception, spec: StepSpec) -> None:
    if isinstance(error, TfmotOpsError) and error.exit_code != TfmotOpsError.exit_code:
        text = f"{type(error).__name__}: {error}\n"
    else:
        text = "".join(traceback.format_exception(error))
    sys.stderr.write(hide(text, *spec.uris().values()))
    sys.stderr.flush()


def write_result(result: StepResult, path: Path) -> None:
    """Write the result file atomically."""
    files.write(path, result.model_dump_json(indent=2) + "\n")
