"""The connection to MLflow, safe to open by several processes at once, and the store of a run's artifacts."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# MLflow's own switches, set before its import: no progress bars, no telemetry, no line for each run on
# stdout, no warning about environment variables at each model. What the user has set wins.
for _name, _value in {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402 - only after its switches
from mlflow.entities import LifecycleStage  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from sqlalchemy.exc import ArgumentError  # noqa: E402

from tfmot_ops import store as files  # noqa: E402
from tfmot_ops.contract import Artifact, ArtifactFormat  # noqa: E402
from tfmot_ops.errors import ArtifactError, SpecError, StepFailedError  # noqa: E402
from tfmot_ops.system.uri_secrets import hide  # noqa: E402
from tfmot_ops.tracking import sqlite_store  # noqa: E402
from tfmot_ops.tracking.artifacts import put_file  # noqa: E402
from tfmot_ops.tracking.creating import create_experiment  # noqa: E402
from tfmot_ops.tracking.owner import end_runs_left_behind  # noqa: E402
from tfmot_ops.tracking.patience import ARTIFACT_S, PatientClient, patiently  # noqa: E402

#: Databases that MLflow keeps its records in, beside SQLite.
_DATABASES = ("postgresql", "mysql", "mssql")
#: URI schemes that only MLflow can read.
MLFLOW_SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/")

_ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
# MLflow's pages open an experiment of this kind on its runs; one without a kind on pages for language models.
_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}


#: Warnings of MLflow 3.17 about its own code.
_OF_MLFLOW = (
    "The ``noload`` loader strategy is deprecated",  # its mappings, under SQLAlchemy 2.1
    ".*Any type hint is inferred as AnyType",  # its own classes, when mlflow.pyfunc is imported
    ".*Add type hints to the `predict` method",
    "You are saving your model as an HDF5 file",  # Keras recommends .keras
)


def _quiet() -> None:
    # Set after the import, which configures these loggers. Alembic logs each migration of a new store.
    for name in ("mlflow", "alembic", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Prints a traceback of each error of the database, which it raises as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


_quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of MLflow 3.17 about its own code; other warnings are shown."""
    with warnings.catch_warnings():
        for message in _OF_MLFLOW:
            warnings.filterwarnings("ignore", message=message)
        show = warnings.showwarning

        def show_others(message: Warning | str, *given: Any, **named: Any) -> None:
            if not any(re.match(known, str(message)) for known in _OF_MLFLOW):
                show(message, *given, **named)

        # Also at the place where warnings are shown, as MLflow puts filters of its own before these.
        warnings.showwarning = show_others
        yield


def connect(uri: str, experiment: str) -> tuple[mlflow.MlflowClient, str]:
    """A client for the tracking server or file at `uri`, and the id of the experiment there.

    A SQLite file is created when missing; its artifacts go to `mlflow-artifacts` beside it.

    Raises:
        SpecError: the URI is none of a server, a database or a SQLite file.
        StepFailedError: the server or file cannot be used; a server may come back, so a retry may help.
    """
    with _open(uri) as client:
        experiment_id = _experiment_id(client, uri, experiment)
        # MLflow logs a model into the current experiment, not into the experiment of its run.
        patiently(lambda: mlflow.set_experiment(experiment_id=experiment_id), "set experiment", uri)
        end_runs_left_behind(client)
        return client, experiment_id


def registry_of(uri: str) -> mlflow.MlflowClient:
    """A client for the model registry at `uri`.

    Raises:
        SpecError, StepFailedError: as for `connect`.
    """
    with _open(uri) as client:
        return client


@contextlib.contextmanager
def _open(uri: str) -> Iterator[mlflow.MlflowClient]:
    """In this context, a SQLite store is there and locked, and what MLflow raises becomes an error for the user."""
    _check_uri(uri)
    try:
        with quiet(), sqlite_store.locked(uri):
            if uri.startswith(sqlite_store.SCHEME):
                # Otherwise MLflow creates a folder `mlruns` in the working directory; it has no public switch for that.
                os.environ[_ARTIFACT_ROOT] = sqlite_store.artifact_root(uri)
            mlflow.set_tracking_uri(uri)
            yield PatientClient(tracking_uri=uri)
    except (MlflowException, OSError, ImportError, ArgumentError) as error:
        # ImportError: the package that speaks to a kind of database is not installed.
        raise StepFailedError(
            f"tracking: cannot use {uri}",
            required="an MLflow server that answers, or sqlite:///<path> in a folder that can be written",
            received=hide(f"{type(error).__name__}: {error}", uri),
            remedy="start the server, or correct tracking.uri",
        ) from error


def _check_uri(uri: str) -> None:
    """Refuse what MLflow would take for a folder of the working directory, or for a service that is not there."""
    scheme, _, rest = uri.partition("://")
    try:
        host = urlsplit(uri).netloc
    except ValueError:  # such as a bracket without its pair
        host = ""
    dialect = scheme.partition("+")[0]
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if dialect == "sqlite":
        # Of other codes, such as %20, parts of MLflow decode the path and others do not: each would have its own file.
        plain = rest.replace("%25", "").replace("%3F", "")
        usable = rest.startswith("/") and rest != "/" and "?" not in plain and unquote(plain) == plain
    else:
        usable = bool(host) and dialect in {"http", "https", *_DATABASES, *plugins}
    if not usable:
        raise SpecError(
            "tracking: the URI names no MLflow that can be used",
            required=f"http(s)://<host>, {', '.join(f'{kind}://<host>/<name>' for kind in _DATABASES)}, or "
            "sqlite:///<path>, in which %25 stands for a percent sign and %3F for a question mark",
            received=repr(uri),
            remedy="correct the tracking URI, or leave it out: then the store is in the folder --output",
        )


def _experiment_id(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = (
            f"{sqlite_store.artifact_root(uri)}/{uuid.uuid4().hex[:8]}" if uri.startswith(sqlite_store.SCHEME) else None
        )
        try:
            return create_experiment(client, name, artifact_location=folder, tags=_EXPERIMENT_KIND)
        except MlflowException:
            # Another process probably created the experiment; otherwise the next line raises the real error.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise StepFailedError(
            f"tracking: the experiment {name} is deleted",
            required="an experiment that is active, or a name that MLflow does not know yet",
            received=f"experiment {found.experiment_id}, deleted, at {hide(uri)}",
            remedy=f"restore it (`mlflow experiments restore --experiment-id {found.experiment_id}`), or name another",
        )
    for tag, kind in _EXPERIMENT_KIND.items():
        if tag not in found.tags:
            # A user who may only add runs to an experiment must not fail for the page that it opens on.
            with contextlib.suppress(MlflowException):
                client.set_experiment_tag(found.experiment_id, tag, kind)
    return str(found.experiment_id)


def refusal_of_mlflow(error: BaseException, uri: str) -> StepFailedError | None:
    """The error for the user if MLflow refused a request, or its store cannot be used; None for any other error."""
    if not isinstance(error, MlflowException):
        return None
    return StepFailedError(
        f"tracking: MLflow at {hide(uri)} refused a request",
        required="an experiment, a run and artifacts that this step may write",
        received=hide(f"{type(error).__name__}: {error}", uri),
        remedy="look for the run and the experiment in MLflow, and for the rights of the user in tracking.uri",
    )


def download(uri: str, folder: Path, tracking_uri: str) -> Path:
    """Copy the file or folder at an MLflow URI into the local `folder`.

    Raises:
        MlflowException, OSError: the URI cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def fetch() -> str:
        return str(
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri)
        )

    return Path(patiently(fetch, "download artifacts", tracking_uri, ARTIFACT_S))


class MlflowStore:
    """Store of a step's outputs as artifacts of its run; later steps fetch them by `runs:/<run_id>/<file>`.

    Args:
        client: connected to the tracking server.
        run_id: run that gets the outputs.
        output_uri: folder that also gets the outputs; None stores them on the run only.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, output_uri: str | None = None) -> None:
        self._client = client
        self._run_id = run_id
        self._output_uri = output_uri

    def put(self, path: Path, name: str, artifact_format: ArtifactFormat) -> Artifact:
        """See `tfmot_ops.store.Store.put`."""
        named = path.with_name(name + files.SUFFIXES[artifact_format])
        if named != path:
            shutil.copyfile(path, named)
        try:
            put_file(self._client, self._run_id, named)
        except (MlflowException, OSError) as error:
            raise ArtifactError(
                f"cannot write {named.name} to run {self._run_id}",
                required="an artifact store that this machine can write",
                received=f"{type(error).__name__}: {error}",
                remedy="give this step access to the experiment's artifact location",
            ) from error
        if self._output_uri is not None:
            return files.put(named, self._output_uri, name, artifact_format)
        return files.describe(named, f"runs:/{self._run_id}/{named.name}", artifact_format)

    def find(self, name: str, artifact_format: ArtifactFormat, folder: Path) -> Path | None:
        """A local copy of the file that an earlier attempt stored on the run last; None if there is none."""
        file_name = name + files.SUFFIXES[artifact_format]
        try:
            if file_name not in {each.path for each in self._client.list_artifacts(self._run_id)}:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            return download(f"runs:/{self._run_id}/{file_name}", folder, self._client.tracking_uri)
        except (MlflowException, OSError) as error:
            raise ArtifactError(
                f"cannot read {file_name} of run {self._run_id}",
                required="an artifact store that this machine can read",
                received=f"{type(error).__name__}: {error}",
                remedy="give this step access to the experiment's artifact location",
            ) from error

    def fetch(self, artifact: Artifact, folder: Path) -> Path:
        """See `tfmot_ops.store.Store.fetch`."""
        if not artifact.uri.startswith(MLFLOW_SCHEMES):
            return files.fetch(artifact, folder)
        try:
            path = download(artifact.uri, folder, self._client.tracking_uri)
        except (MlflowException, OSError) as error:
            raise files.unreadable(artifact, error) from error
        return files.verify(path, artifact)


def fetch_artifact(artifact: Artifact, folder: Path, tracking_uri: str) -> Path:
    """Copy an artifact of any run into the local `folder`, and verify it.

    Raises:
        ArtifactError: the artifact is missing, unreadable, or differs from the recorded sha256.
    """
    return MlflowStore(PatientClient(tracking_uri=tracking_uri), "").fetch(artifact, folder)
