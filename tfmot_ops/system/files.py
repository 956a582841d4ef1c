"""Atomic writing of files and folders, and file locks that the kernel releases when their process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import sqlite3
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tfmot_ops.errors import StepFailedError, TfmotOpsError
from tfmot_ops.system import processes

#: Free bytes under which a file system is taken to be full: some writers report a full disk without an error number.
_FULL_BYTES = 1 << 16
# Age in seconds at which the temporary file of a process on another machine, of which nothing can be known, is removed.
_FORGOTTEN_S = 24 * 3600.0
_LOCK_POLL_S = 0.1
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EFBIG})
_SQLITE_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
_PART = re.compile(r"\.(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}\.part(\.\w+)?$")


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read its bytes, at once and only if it has an end.

    Raises:
        OSError: the file cannot be read, or is a pipe, a socket, a device or a folder.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def require_regular(path: str | Path) -> None:
    """Refuse a path before a library opens it, see `open_regular`.

    Raises:
        OSError: there is nothing at this path, or a pipe, a socket, a device or a folder.
    """
    _require_regular(Path(path).stat().st_mode, path)


def _require_regular(mode: int, path: str | Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device instead of a file", str(path))


def read_limited(path: str | Path, most: int) -> bytes:
    """The bytes of a file of at most `most` bytes.

    Raises:
        OSError: the file is larger (EFBIG), or cannot be read, see `open_regular`.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return data


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file, or a folder, that appears under its name only once it is complete and on the disk.

    Yields a free name beside `path`, with the same suffix, for the block to write to. When the block ends, that file
    replaces what is at `path`; after an exception it is removed, and what was at `path` stays. What a killed process
    left beside `path` is removed, too.

    Args:
        path: the final name; its folder is created when missing.

    Raises:
        OSError: the file cannot be written; with the number ENOSPC when the disk is full, whatever the block raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    part = path.with_name(f".{path.name}.{_mark()}.part{path.suffix}")
    try:
        yield part
        sync(part)
        _replace(part, path)
    except Exception as error:
        if getattr(error, "errno", None) is None and is_full(path.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        remove(part)


def write(path: Path, data: bytes | str) -> None:
    """Write a file at once, see `whole`; a text is written as UTF-8."""
    with whole(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def copy(source: Path, target: Path) -> None:
    """Copy a file, see `whole`."""
    with whole(target) as part:
        shutil.copyfile(source, part)


def sqlite_uri(path: Path) -> str:
    """The URI of a SQLite database; `%` and `?` in the path are escaped, as they have a meaning in a URI."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def has_current_folder() -> bool:
    """Whether the folder in which this process works still exists."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def is_full(folder: Path) -> bool:
    """Whether the file system of a folder has no space left."""
    try:
        return shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return False


def disk_failure(error: BaseException, *folders: Path) -> StepFailedError | None:
    """The error for the user if `error` was caused by a disk that cannot be written; None for any other error.

    Args:
        error: the exception that was raised; its causes are examined too.
        folders: folders to which the work writes. Some libraries report a full disk without an error number, so any
            error counts as a disk failure while the disk of one of these folders is full.
    """
    if isinstance(error, TfmotOpsError):
        return None
    cause = next(filter(_is_of_disk, _causes(error)), None)
    full = [folder for folder in folders if is_full(folder)]
    if cause is None and not full:
        return None
    return StepFailedError(
        "a file could not be written",
        required="a disk with free space that this user may write to, also for temporary files (TMPDIR)",
        received=f"{type(error).__name__}: {cause or error}" + "".join(f"; no space left in {each}" for each in full),
        remedy="free some space or name another folder, then start the same command again",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # SQLAlchemy keeps what the database raised in `orig`.
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__


def _is_of_disk(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_CODES  # the low byte is the class of the error
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def check_writable(
    folder: Path,
    refusal: type[TfmotOpsError] = StepFailedError,
    remedy: str = "name another folder, free some space, or change the folder's permissions",
) -> None:
    """Refuse a folder that cannot be written, before the work whose results belong there.

    Args:
        folder: is created when missing.
        refusal: class of the error.
        remedy: what the error tells its reader to do.

    Raises:
        TfmotOpsError: of the class `refusal`; the folder cannot be created, or no file can be written in it.
    """
    try:
        write(folder / ".tfmot-ops-can-write", bytes(_FULL_BYTES))
        (folder / ".tfmot-ops-can-write").unlink(missing_ok=True)
    except OSError as error:
        raise refusal(
            f"the folder {folder} cannot be written",
            required="a folder on a disk with free space, in which this user may create files",
            received=f"{type(error).__name__}: {error.strerror or error}",
            remedy=remedy,
        ) from error


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False, stopped: Callable[[], bool] | None = None) -> Iterator[bool]:
    """Hold a file lock that the kernel releases when the process that holds it ends, even by SIGKILL.

    Args:
        path: file of the lock; the holder deletes it at the end.
        wait: wait while another holder has the lock.
        stopped: called repeatedly during the wait; returning True ends the wait without the lock.

    Yields True if the lock is held, else False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = _locked(path, wait=wait and stopped is None)
    while held is None and wait and not (stopped is not None and stopped()):
        # Polled, as a thread that is blocked in the kernel cannot react to `stopped`.
        time.sleep(_LOCK_POLL_S)
        held = _locked(path, wait=False)
    try:
        yield held is not None
    finally:
        if held is not None:
            try:
                path.unlink(missing_ok=True)
            finally:
                os.close(held)


def lock_open(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed or its process ends; False if another holder has the lock.

    Args:
        descriptor: of the open file.
        wait: wait until the lock is free.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _locked(path: Path, *, wait: bool) -> int | None:
    """Descriptor of the locked file; None if another holder has the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not lock_open(descriptor, wait=wait):
                os.close(descriptor)
                return None
            # The previous holder may have deleted this file after it was opened here; a new file is then opened.
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _mark() -> str:
    """Part of a temporary file's name that identifies the process that writes it."""
    owner = processes.current()
    return f"{_place(owner)}-{owner.pid}-{owner.start}-{uuid.uuid4().hex[:8]}"


def _place(owner: processes.Owner) -> str:
    return hashlib.sha256(f"{owner.boot} {owner.pids}".encode()).hexdigest()[:8]


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of killed processes for `path`; temporary files of living processes stay."""
    here = processes.current()
    for left in path.parent.glob(f".{_escaped(path.name)}.*.part*"):
        found = _PART.search(left.name)
        if found is None or left.name[: found.start()] != f".{path.name}":
            continue
        owner = processes.Owner(here.host, here.machine, here.boot, here.pids, int(found["pid"]), int(found["start"]))
        with contextlib.suppress(OSError):
            old = time.time() - left.stat().st_mtime > _FORGOTTEN_S
            if owner.is_dead() if found["place"] == _place(here) else old:
                remove(left)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def sync(path: Path) -> None:
    """Flush a file or folder to disk, before it is renamed to the name that readers use."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(part: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{_mark()}.part")
    try:
        # A folder cannot be renamed onto a folder that is not empty.
        if path.is_dir() and part.is_dir():
            path.rename(old)
        part.replace(path)
    finally:
        remove(old)
