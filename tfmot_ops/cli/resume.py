"""What `tfmot-ops optimize` does about an earlier attempt: the same command after a kill goes on where that one was."""

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
#: Copies an artifact into a folder and verifies it.
Fetch = Callable[[Artifact, Path], Path]


@dataclass
class Attempt:
    """One start of the command, and what the starts before have finished.

    Attributes:
        identity: digest (hex) of all that decides what the command makes, see `identity`.
        key: tells the runs of this command from those of an earlier one that ended well.
        tracking_uri: MLflow; None when nothing is recorded.
        parent: parent run that is taken up; None for a new one.
        results: step name -> result of an earlier start.
        folder: where results are kept when nothing is recorded.
    """

    identity: str
    key: str
    tracking_uri: str | None
    folder: Path
    parent: str | None = None
    results: Mapping[str, StepResult] = field(default_factory=dict)

    def finished(self, spec: StepSpec, fetch: Fetch, scratch: Path) -> StepResult | None:
        """The result of a step that an earlier start finished, its outputs verified; None when it has to run."""
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
        """Keep the result of a step for the next start; a recorded one is on its run."""
        if self.tracking_uri is None and result.status is Status.OK:
            files.write(self.folder / f"{result.step_id}.json", result.model_dump_json(indent=1))

    def interrupted(self, parent: str | None) -> None:
        """Say on the parent run that the command was stopped; best effort, as the process is about to end."""
        if self.tracking_uri is not None and parent is not None:
            from tfmot_ops.tracking.chain import end_as_killed

            with contextlib.suppress(Exception):
                end_as_killed(self.tracking_uri, parent)

    def ended_well(self) -> None:
        """Forget the results: the next start of the command is a new one."""
        files.remove(self.folder)


@contextlib.contextmanager
def attempt(of: str, output: Path, tracking: tuple[str, str] | None, fresh: bool, say: Say) -> Iterator[Attempt]:
    """One start of a command; takes up what the same command left unfinished, unless another process works on it.

    Args:
        of: the command's identity.
        output: the command's output folder.
        tracking: MLflow tracking URI and experiment; None records nothing.
        fresh: take up nothing.
        say: takes a line.

    Raises:
        StepFailedError: the same command runs already, and nothing is recorded: both would write the same files.
    """
    folder = output / f".{of[:16]}.finished"
    new = Attempt(of, f"{of}-{uuid.uuid4().hex[:8]}", tracking[0] if tracking else None, folder)
    with files.lock(output / f".{of[:16]}.lock") as alone:
        if not alone and tracking is None:
            raise StepFailedError(
                "the same command runs already",
                required="one process at a time for the same arguments and output folder",
                received=f"another process that holds {output / f'.{of[:16]}.lock'}",
                remedy="wait until it ends, stop it, or give another --output",
            )
        if not alone:
            say("the same command runs already in another process: this one records a run of its own")
        elif fresh:
            _forget(output, folder)
        else:
            new = _taken_up(new, tracking)
        yield new


def _taken_up(new: Attempt, tracking: tuple[str, str] | None) -> Attempt:
    if tracking is None:
        new.results = _kept_results(new.folder)
        return new
    from tfmot_ops.tracking.chain import find_unfinished

    found = find_unfinished(*tracking, new.identity)
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


def identity(parameters: Mapping[str, Any], named: Mapping[str, str], place: Mapping[str, str | None]) -> str:
    """Digest of all that decides what a command makes and where.

    Args:
        parameters: the arguments.
        named: those arguments that may name a file or folder, by name (`npz:<path>` included): its content counts.
        place: where outputs and records go.

    Returns:
        32 hex digits.
    """
    contents = {name: _content(Path(value.rpartition(":")[2])) for name, value in named.items()}
    document = {"parameters": parameters, "contents": contents, "place": place, "versions": versions.installed()}
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _content(path: Path) -> str:
    """sha256 of a file; of a folder that of its files' names, sizes and times, as it may hold a whole data set."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        stats = [(str(each), each.stat()) for each in sorted(path.rglob("*"))] if path.is_dir() else []
        listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    except OSError:
        return ""  # the step that reads it says what is wrong
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest() if listing else ""
