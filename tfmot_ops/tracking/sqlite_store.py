"""Creates and upgrades MLflow's SQLite store atomically: the file under the store's name is always complete.

MLflow creates and upgrades its tables with about sixty migrations in separate transactions. If the process is killed
between two migrations, the store can be neither used nor upgraded. So the migrations run on a second file, which then
replaces the store by one rename or one SQLite transaction.

A new store is kept in the user's cache, because the migrations take two seconds of CPU time: the next new store is a
copy of it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from mlflow.exceptions import MlflowException
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError

from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import environment, files

SCHEME = "sqlite:///"
# Files that SQLite keeps beside a database while it is written.
_COMPANIONS = ("-journal", "-wal", "-shm")
_LOCK_WAIT_S = 60.0


def path_of(uri: str) -> Path:
    """The file of a store's URI, whose path may hold escaped characters (`%25`)."""
    return Path(unquote(_written_path(uri))).resolve()


def _written_path(uri: str) -> str:
    return uri.removeprefix(SCHEME).split("?", 1)[0]


def artifact_root(uri: str) -> str:
    """URI of the folder for the artifacts of a store: `mlflow-artifacts` beside the file."""
    return (path_of(uri).parent / "mlflow-artifacts").as_uri()


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Let one process at a time connect to a SQLite store, and create the store if it is missing.

    An incomplete store of a killed process is created again, as it holds no runs yet. A store of an older MLflow is
    upgraded on a copy. Does nothing for a URI of another scheme.

    Raises:
        OSError: the folder cannot be written.
        StepFailedError: the file is not an MLflow store, or cannot be upgraded.
    """
    if not uri.startswith(SCHEME):
        yield
        return
    path = path_of(uri)
    with files.lock(path.with_name(path.name + ".lock"), wait=True), _no_folder_of_escaped_name(uri):
        _make_whole(path, artifact_root(uri))
        yield


@contextlib.contextmanager
def _no_folder_of_escaped_name(uri: str) -> Iterator[None]:
    """Remove the empty folders that MLflow 3.17 makes for a URI whose escaped characters it does not read."""
    folder = Path(_written_path(uri)).resolve().parent
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    finally:
        for each in missing if folder != path_of(uri).parent else ():
            with contextlib.suppress(OSError):
                each.rmdir()


def _make_whole(path: Path, root: str) -> None:
    part = path.with_name(f".{path.name}.part")
    _remove(part)  # what a killed process left; a living one would hold the lock
    try:
        if not path.exists():
            _create(part, root)
            files.sync(part)
            _remove(path)  # with its journal: SQLite would apply the old journal to the new database
            part.replace(path)
        elif not _is_current(path):
            if _holds_records(path):
                _copy(path, part)
            _migrate(part, root)
            _copy(part, path)
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error) as error:
        # SQLite reports the same error for a folder with the file's name as for an unreadable disk.
        received = "a folder" if path.is_dir() else f"{type(error).__name__}: {str(error).partition('[SQL')[0].strip()}"
        raise (None if path.is_dir() else files.disk_failure(error)) or StepFailedError(
            f"tracking: {path} cannot be used as MLflow's store",
            required=f"a SQLite file that MLflow {mlflow.__version__} made, or one that it can upgrade",
            received=received,
            remedy="move the file away, so that a new store is made, or put a backup in its place, or upgrade it with "
            "`mlflow db upgrade`; it was not changed",
        ) from error
    finally:
        _remove(part)


def _create(path: Path, root: str) -> None:
    """Create a store: as a copy of the empty store in the user's cache, else by MLflow's migrations.

    Args:
        path: file of the new store.
        root: URI of the folder for the store's artifacts.
    """
    kept = environment.cache_folder() / f"mlflow-{mlflow.__version__}.db"
    with contextlib.suppress(OSError, sqlite3.Error):
        if kept.exists() and _is_current(kept):
            files.copy(kept, path)
    is_copy = path.exists()
    _migrate(path, root)  # of a copy only the default experiment is missing
    if not is_copy:
        with contextlib.suppress(OSError, sqlite3.Error):  # a cache that cannot be written costs time only
            _keep(path, kept)


def _keep(path: Path, kept: Path) -> None:
    """Copy a new store into the cache, without its default experiment, whose row names the folder of the artifacts.

    MLflow makes a default experiment wherever a store has no experiment.
    """
    with files.whole(kept) as part:
        _copy(path, part)
        with _opened(part) as connection:
            connection.execute("DELETE FROM experiments")
            connection.commit()


def _migrate(path: Path, root: str) -> None:
    """Create or upgrade the store with MLflow, in a file that no other process uses."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    event.listen(Engine, "connect", _without_syncs)
    try:
        SqlAlchemyStore(files.sqlite_uri(path), root).engine.dispose()
    finally:
        event.remove(Engine, "connect", _without_syncs)


def _without_syncs(connection: sqlite3.Connection, _: Any) -> None:
    # Hundreds of transactions that each wait for the disk take ten seconds; the file is synchronised once, at the end.
    connection.execute("PRAGMA synchronous = OFF")


def _is_current(path: Path) -> bool:
    """Whether a store has the schema version of the installed MLflow; the last migration writes this version."""
    with _opened(path) as connection:
        if "alembic_version" not in _tables(connection):
            return False
        found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return found == [(head,) for head in scripts.get_heads()]


def _holds_records(path: Path) -> bool:
    """Whether a store holds user data, besides the default experiment and workspace that the migrations create."""
    with _opened(path) as connection:
        for table in _tables(connection):
            if table.startswith(("alembic_", "_alembic_")) or table == "workspaces":
                continue
            condition = "WHERE experiment_id != 0" if table == "experiments" else ""
            if connection.execute(f'SELECT 1 FROM "{table}" {condition} LIMIT 1').fetchone():  # noqa: S608 - its own names
                return True
    return False


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _copy(source: Path, target: Path) -> None:
    """Copy a database in one transaction: a kill leaves what `target` held before."""
    with _opened(source) as one, _opened(target) as other:
        one.backup(other)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=_LOCK_WAIT_S)) as connection:
        yield connection


def _remove(path: Path) -> None:
    for companion in ("", *_COMPANIONS):
        path.with_name(path.name + companion).unlink(missing_ok=True)
