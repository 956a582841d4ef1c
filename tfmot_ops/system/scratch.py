"""Temporary folders that are removed even if their process is killed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import files
from tfmot_ops.system.environment import TEMPORARY_FOLDER

#: Begin of the folders' names. No random name that `tempfile` makes holds a hyphen, so it begins no other's.
PREFIX = "tfmot-ops-scratch-"


class ScratchFolder:
    """A new folder in the folder for temporary files, locked for as long as this process lives.

    Creating a ScratchFolder also removes the folders of this user's killed processes, whose locks are released.

    Attributes:
        path: the folder; its mode is 0700.

    Raises:
        StepFailedError: there is no place for temporary files.
    """

    _lock: int | None = None

    def __init__(self) -> None:
        try:
            parent = Path(tempfile.gettempdir())
            _sweep(parent)
            self.path, self._lock = _make(parent)
        except OSError as error:
            raise StepFailedError(
                "no temporary folder can be created",
                required="a folder for temporary files, with free space",
                received=f"{type(error).__name__}: {error}",
                remedy="let the variable TMPDIR name a folder that can be written, or free some space",
            ) from error

    def cleanup(self) -> None:
        """Remove the folder with all that is in it."""
        with contextlib.suppress(OSError):
            files.remove(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextlib.contextmanager
def temporary_files_in_scratch() -> Iterator[Path]:
    """Let this process and its children make their temporary files in a `ScratchFolder`, removed at the end.

    If a process is killed, TensorFlow, MLflow and others leave temporary files; in one folder they can be removed.
    """
    folder = ScratchFolder()
    before, variable = tempfile.tempdir, os.environ.get(TEMPORARY_FOLDER.name)
    tempfile.tempdir = os.environ[TEMPORARY_FOLDER.name] = str(folder.path)
    try:
        yield folder.path
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ[TEMPORARY_FOLDER.name]
        else:
            os.environ[TEMPORARY_FOLDER.name] = variable
        folder.cleanup()


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY)
            files.lock_open(lock, wait=True)
            # Another process may have removed the folder before it was locked.
            if path.exists():
                return path, lock
            os.close(lock)


def _sweep(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if files.lock_open(lock):
                    files.remove(path)
            finally:
                os.close(lock)
