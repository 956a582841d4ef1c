"""Resuming `tfmot-ops optimize`: the same command, started again after a kill, skips the steps that are finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmot_ops.contract import Artifact, Status, StepResult, StepSpec
from tfmot_ops.errors import ArtifactError, StepFailedError
from tfmot_ops.system import files, versions

Say = Callable[[str], None]
#: Function that copies an artifact into a folder and verifies its sha256.
Fetch = Callable[[Artifact, Path], Path]


@dataclass
class Attempt:
    """One start of the command, with the results of earlier starts that were interrupted.

    Attributes:
        identity: hex digest of everything that decides the command's outputs, see `identity`.
        key: `<identity>-<random>`; a command that starts over gets a new key, so its MLflow runs are separate.
        tracking_uri: MLflow tracking URI; None when nothing is recorded.
        parent: id of the MLflow parent run to continue; None opens a new one.
        results: step name -> result of an earlier start.
        folder: where results are kept when nothing is recorded in MLflow.
    """

    identity: str
    key: str
    tracking_uri: str | None
    folder: Path
    parent: str | None = None
    results: Mapping[str, StepResult] = field(default_factory=dict)

    def finished(self, spec: StepSpec, fetch: Fetch, scratch: Path) -> StepResult | None:
        """The result of a step that an earlier start finished, with verified outputs; None if the step must run."""
        result = self.results.get(spec.step_id)
        if result is None or result.status is not Status.OK or result.spec_sha256 != spec.sha256():
            return None
        try:
            for name, artifact in result.outputs.items():
                fetch(artifact, scratch / spec.step_id / name)
        except ArtifactError:
            return None
        return result

    def keep(self, result: StepResult) -> None:
        """Keep the result of a step on disk for the next start; with tracking the step's MLflow run holds it."""
        if self.tracking_uri is None and result.status is Status.OK:
            files.write(self.folder / f"{result.step_id}.json", result.model_dump_json(indent=1))

    def interrupted(self, parent: str | None) -> None:
        """Mark the parent run as killed; errors are ignored, as the process is about to end."""
        if self.tracking_uri is not None and parent is not None:
            from tfmot_ops.tracking.chain import end_as_killed

            with contextlib.suppress(Exception):
                end_as_killed(self.tracking_uri, parent)

    def ended_well(self) -> None:
        """Delete the kept results, so that the next start of the command runs all steps."""
        files.remove(self.folder)


@contextlib.contextmanager
def attempt(
    of: str, output: Path, tracking: tuple[str, str] | None, fresh: bool, say: Say, *, is_retry: bool = False
) -> Iterator[Attempt]:
    """Start a command, and resume an interrupted earlier start of it unless another process is running it.

    Args:
        of: the command's identity.
        output: the command's output folder.
        tracking: MLflow tracking URI and experiment; None records nothing.
        fresh: do not resume; run all steps.
        say: called with each message.
        is_retry: whether an earlier start is an earlier attempt at the same task of a DAG, which has ended, whatever
            its MLflow run says.

    Raises:
        StepFailedError: nothing is recorded, and another process works in the same output folder, where the files of
            its steps have the same names.
    """
    folder = output / f".{of[:16]}.finished"
    new = Attempt(of, f"{of}-{uuid.uuid4().hex[:8]}", tracking[0] if tracking else None, folder)
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(files.lock(output / f".{of[:16]}.lock"))
        whole_folder = output / ".optimize.lock"
        if tracking is None and not (alone and stack.enter_context(files.lock(whole_folder))):
            raise StepFailedError(
                "another command runs already in this output folder",
                required="one command without tracking at a time for an output folder",
                received=f"another process that holds {whole_folder if alone else output / f'.{of[:16]}.lock'}",
                remedy="wait until it ends, stop it, or give another --output",
            )
        if not alone:
            say("the same command runs already in another process: this process records a separate MLflow run")
        elif fresh:
            _forget(output, folder)
        else:
            new = _taken_up(new, tracking, say, is_retry=is_retry)
        yield new


def _taken_up(new: Attempt, tracking: tuple[str, str] | None, say: Say, *, is_retry: bool) -> Attempt:
    if tracking is None:
        new.results = _kept_results(new.folder)
        return new
    from tfmot_ops.tracking.chain import find_unfinished
    from tfmot_ops.tracking.patience import tell_waits_to

    tell_waits_to(say)
    found = find_unfinished(*tracking, new.identity, is_retry=is_retry)
    if found is None:
        return new
    return Attempt(new.identity, found.key, tracking[0], new.folder, found.parent, found.results)


def _kept_results(folder: Path) -> dict[str, StepResult]:
    results = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            results[path.stem] = StepResult.model_validate_json(path.read_text(encoding="utf-8"))
    return results


def _forget(output: Path, folder: Path) -> None:
    files.remove(folder)
    for checkpoint in output.glob("*/.*.checkpoint.npz"):
        checkpoint.unlink(missing_ok=True)


def fetch_from(tracking_uri: str | None) -> Fetch:
    """The function that fetches a command's artifacts: from MLflow, or from where they are without a tracking URI."""
    if tracking_uri is None:
        from tfmot_ops import store

        return store.fetch

    def fetch(artifact: Artifact, folder: Path) -> Path:
        from tfmot_ops.tracking import fetch_artifact

        return fetch_artifact(artifact, folder, tracking_uri)

    return fetch


def identity(parameters: Mapping[str, Any], named: Mapping[str, str], place: Mapping[str, str | None]) -> str:
    """Digest of everything that decides a command's outputs and where they are written.

    Args:
        parameters: argument name -> value.
        named: the arguments that may name a file or folder (also as `npz:<path>`); the digest covers its content.
        place: output folder, tracking URI and experiment.

    Returns:
        32 hex digits.
    """
    contents = {name: _content(Path(value.rpartition(":")[2])) for name, value in named.items()}
    document = {"parameters": parameters, "contents": contents, "place": place, "versions": versions.installed()}
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _content(path: Path) -> str:
    """sha256 of a file's content, or of the names, sizes and times of a folder's files (it may be a data set)."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        stats = [(str(entry), entry.stat()) for entry in sorted(path.rglob("*"))] if path.is_dir() else []
        listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    except OSError:
        return ""  # the step that reads the file reports the error
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest() if listing else ""
