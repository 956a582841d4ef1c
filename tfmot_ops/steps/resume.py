"""Where a step keeps the state of its training, so that its next attempt continues."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfmot_ops.contract import StepSpec
from tfmot_ops.store import KeptFile
from tfmot_ops.system.environment import CHECKPOINTS, cache_folder

#: Seconds after which a checkpoint in the default folder is taken for one that nobody comes back to: two weeks.
_FORGOTTEN_S = 14 * 24 * 3600
# What file systems raise: see `KeptFile`.
_UNREACHABLE = (OSError, ValueError, ImportError)


def checkpoint_uri(spec: StepSpec) -> str:
    """Where the checkpoint of a step is: the same place for every attempt at the same spec.

    Beside the outputs; for a step whose outputs go to its MLflow run, in the folder that the variable
    TFMOT_OPS_CHECKPOINTS names, or else in the user's cache on this machine.
    """
    if spec.output_uri is not None:
        # One a kind: the outputs of two steps in one folder overwrite each other as well.
        return f"{spec.output_uri.rstrip('/')}/.{spec.options.kind}.checkpoint.npz"
    # A model from MLflow stands here as a copy with another path at each attempt.
    spec = spec.model_copy(update={"options": spec.options.with_model("")})
    folder = CHECKPOINTS.get() or str(_default_folder())
    return f"{folder.rstrip('/')}/{spec.options.kind}-{spec.sha256()[:32]}.npz"


class StepCheckpoint:
    """The checkpoint of one step: a local file that follows the one an earlier attempt left, and is followed by it.

    Args:
        spec: the step.
        workdir: local folder for files in passing.
        say: takes a line.
    """

    def __init__(self, spec: StepSpec, workdir: Path, say: Callable[[str], None]) -> None:
        self._kind = spec.options.kind
        self._kept = KeptFile(checkpoint_uri(spec))
        self._path = workdir / "checkpoint.npz"
        self._say = say

    def open(self) -> Any:
        """The `core` checkpoint to train with; fetches what an earlier attempt left."""
        from tfmot_ops.core.training.checkpoint import Checkpoint

        self._path.unlink(missing_ok=True)
        try:
            self._kept.fetch(self._path)
        except _UNREACHABLE as error:
            self._tell(f"starts from the beginning: cannot read {self._kept.uri}: {error}")
        return Checkpoint(self._path, self._tell, self._keep)

    def remove(self) -> None:
        """Delete it: the outputs are in their place."""
        try:
            self._kept.remove()
        except _UNREACHABLE as error:
            self._tell(f"cannot remove {self._kept.uri}: {error}")
        _sweep(_default_folder())

    def _tell(self, text: str) -> None:
        self._say(f"{self._kind} {text}")

    def _keep(self, path: Path) -> None:
        try:
            self._kept.keep(path)
        except (ValueError, ImportError) as error:
            raise OSError(str(error)) from error


def _default_folder() -> Path:
    return cache_folder() / "checkpoints"


def _sweep(folder: Path) -> None:
    """Delete the checkpoints of steps that were given up."""
    oldest = time.time() - _FORGOTTEN_S
    for path in folder.glob("*.npz*"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
