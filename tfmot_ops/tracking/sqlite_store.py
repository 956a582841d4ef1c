"""MLflow's store in a SQLite file, made so that a file under its name is always a whole store.

MLflow makes and upgrades the tables by some sixty migrations, each with transactions of its own: a store whose maker is
killed in between can be neither used nor upgraded. So the migrations run on a file beside, and one rename, or one
transaction of SQLite, puts the outcome in place.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from mlflow.exceptions import MlflowException
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError

from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import files

SCHEME = "sqlite:///"
# Files that SQLite keeps beside a database while it is written.
_COMPANIONS = ("-journal", "-wal", "-shm")
_LOCK_WAIT_S = 60.0


def path_of(uri: str) -> Path:
    """The file of a store's URI."""
    return Path(uri.removeprefix(SCHEME).split("?", 1)[0]).resolve()


def artifact_root(uri: str) -> str:
    """URI of the folder for the artifacts of a store: `mlflow-artifacts` beside the file."""
    return (path_of(uri).parent / "mlflow-artifacts").as_uri()


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Let one process at a time connect to a store in a SQLite file, and make it when it is missing.

    A store that a killed process left half made is made anew: it holds no runs yet. One of an older version of MLflow
    is upgraded on a copy. For any other URI nothing happens.

    Raises:
        OSError: the folder cannot be written.
        StepFailedError: the file is no store, or one that can be neither used nor upgraded.
    """
    if not uri.startswith(SCHEME):
        yield
        return
    path = path_of(uri)
    with files.lock(path.with_name(path.name + ".lock"), wait=True):
        _make_whole(path, artifact_root(uri))
        yield


def _make_whole(path: Path, root: str) -> None:
    part = path.with_name(f".{path.name}.part")
    _remove(part)  # what a killed process left; a living one would hold the lock
    try:
        if not path.exists():
            _migrate(part, root)
            files.sync(part)
            _remove(path)  # a journal of a database that is gone would be applied to the new one
            part.replace(path)
        elif not _is_current(path):
            if _holds_records(path):
                _copy(path, part)
            _migrate(part, root)
            _copy(part, path)
    except (MlflowException, SQLAlchemyError, CommandError, sqlite3.Error) as error:
        # SQLite reports a folder under the file's name as it reports a disk that it cannot read.
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


def _migrate(path: Path, root: str) -> None:
    """Have MLflow make, or upgrade, the store in a file that nobody else uses."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    event.listen(Engine, "connect", _without_syncs)
    try:
        SqlAlchemyStore(f"{SCHEME}{path}", root).engine.dispose()
    finally:
        event.remove(Engine, "connect", _without_syncs)


def _without_syncs(connection: sqlite3.Connection, _: Any) -> None:
    # Hundreds of transactions that each wait for the disk take ten seconds; the file is synchronised once, at the end.
    connection.execute("PRAGMA synchronous = OFF")


def _is_current(path: Path) -> bool:
    """Whether a store has the schema of this version of MLflow, which is the last thing that its migrations write."""
    with _opened(path) as connection:
        if "alembic_version" not in _tables(connection):
            return False
        found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return found == [(head,) for head in scripts.get_heads()]


def _holds_records(path: Path) -> bool:
    """Whether anything was ever recorded in a store; its first experiment and workspace are made by the migrations."""
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
