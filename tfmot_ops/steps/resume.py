"""Training checkpoints of a step: a retry of the step continues from the last finished epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfmot_ops.contract import StepSpec
from tfmot_ops.store import KeptFile
from tfmot_ops.system.environment import CHECKPOINTS, cache_folder

#: Age in seconds (two weeks) after which a checkpoint in the default folder is considered abandoned and is deleted.
_FORGOTTEN_S = 14 * 24 * 3600
# Exceptions of file systems, see `KeptFile`.
_UNREACHABLE = (OSError, ValueError, ImportError)


def checkpoint_uri(spec: StepSpec) -> str:
    """URI of a step's checkpoint, the same for every attempt at the same spec.

    The checkpoint is kept in the folder `output_uri`. For a step whose outputs go to its MLflow run, it is kept in the
    folder that the variable TFMOT_OPS_CHECKPOINTS names, or else in the user's cache on this machine.
    """
    if spec.output_uri is not None:
        # One name per kind is enough: two steps of one kind in one folder would overwrite each other's outputs too.
        return f"{spec.output_uri.rstrip('/')}/.{spec.options.kind}.checkpoint.npz"
    # Without the model's path: a model from MLflow is downloaded to another path in each attempt.
    spec = spec.model_copy(update={"options": spec.options.with_model("")})
    folder = CHECKPOINTS.get() or str(_default_folder())
    return f"{folder.rstrip('/')}/{spec.options.kind}-{spec.sha256()[:32]}.npz"


class StepCheckpoint:
    """The checkpoint of one step: a local file, and its copy at `checkpoint_uri` that outlives the attempt.

    Args:
        spec: the step.
        workdir: local folder for temporary files.
        say: called with each message.
    """

    def __init__(self, spec: StepSpec, workdir: Path, say: Callable[[str], None]) -> None:
        self._kind = spec.options.kind
        self._kept = KeptFile(checkpoint_uri(spec))
        self._path = workdir / "checkpoint.npz"
        self._say = say

    def open(self) -> Any:
        """Fetch the checkpoint of an earlier attempt, if there is one, and return it for the training loop."""
        from tfmot_ops.core.training.checkpoint import Checkpoint

        self._path.unlink(missing_ok=True)
        try:
            self._kept.fetch(self._path)
        except _UNREACHABLE as error:
            self._report(f"starts from the beginning: cannot read {self._kept.uri}: {error}")
        return Checkpoint(self._path, self._report, self._keep)

    def remove(self) -> None:
        """Delete the checkpoint, once the step's outputs are saved."""
        try:
            self._kept.remove()
        except _UNREACHABLE as error:
            self._report(f"cannot remove {self._kept.uri}: {error}")
        _remove_abandoned(_default_folder())

    def _report(self, text: str) -> None:
        self._say(f"{self._kind} {text}")

    def _keep(self, path: Path) -> None:
        try:
            self._kept.keep(path)
        except (ValueError, ImportError) as error:
            raise OSError(str(error)) from error


def _default_folder() -> Path:
    return cache_folder() / "checkpoints"


def _remove_abandoned(folder: Path) -> None:
    """Delete checkpoints that no attempt has used for two weeks."""
    oldest = time.time() - _FORGOTTEN_S
    for path in folder.glob("*.npz*"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
