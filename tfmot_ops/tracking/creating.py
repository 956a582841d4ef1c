"""Creates runs, experiments, registered models and versions in MLflow, one of each also where an answer is lost.

An answer that is lost leaves open whether the server has carried the request out. So each function here gives what it
creates a mark that only this call knows, or relies on a unique name, and looks for that before it asks again.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from tfmot_ops.tracking.patience import once

#: Tag of a run, and of a version, with an id that only the call that created it knows.
_REQUEST_TAG = "tfmot_ops.request"
#: What MLflow answers for a model that is not there.
_UNKNOWN = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


def create_run(
    client: mlflow.MlflowClient, experiment_id: str, *, tags: Mapping[str, str], run_name: str, **named: Any
) -> str:
    """Create a run.

    Args:
        client: connected to the tracking server.
        experiment_id: of the experiment that gets the run.
        tags: of the run.
        run_name: shown by MLflow's pages.
        **named: other arguments of `MlflowClient.create_run`.

    Returns:
        The run's id.

    Raises:
        StepFailedError, MlflowException: MLflow does not answer, or refuses.
    """
    plain, mark = _plain(client), uuid.uuid4().hex
    tags = {**tags, _REQUEST_TAG: mark}

    def look() -> str | None:
        found = plain.search_runs([experiment_id], f"tags.`{_REQUEST_TAG}` = '{mark}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def create() -> str:
        return str(plain.create_run(experiment_id, tags=tags, run_name=run_name, **named).info.run_id)

    return once(create, look, "create run", client.tracking_uri)


def create_experiment(client: mlflow.MlflowClient, name: str, **named: Any) -> str:
    """Create an experiment.

    Returns:
        Its id; that of another process's experiment if both create it at once and an answer is lost.

    Raises:
        StepFailedError, MlflowException: MLflow does not answer, or refuses, as it does if the experiment is there.
    """
    plain = _plain(client)

    def look() -> str | None:
        found = plain.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    return once(lambda: str(plain.create_experiment(name, **named)), look, "create experiment", client.tracking_uri)


def create_registered_model(client: mlflow.MlflowClient, name: str, tags: Mapping[str, str] | None = None) -> None:
    """Create a registered model.

    Args:
        client: connected to the tracking server.
        name: of the model.
        tags: of the model. After an answer that was lost, a model that has them is taken for this call's.

    Raises:
        StepFailedError, MlflowException: MLflow does not answer, or refuses, as it does if there is such a model.
    """
    plain, wanted = _plain(client), dict(tags or {})

    def look() -> bool | None:
        found = _tags_of_model(plain, name)
        return True if found is not None and wanted.items() <= found.items() else None

    def create() -> bool:
        plain.create_registered_model(name, tags=wanted)
        return True

    once(create, look, "create registered model", client.tracking_uri)


def delete_registered_model(client: mlflow.MlflowClient, name: str, tags: Mapping[str, str]) -> None:
    """Delete a registered model; one of the same name that another process has made since then stays.

    Args:
        client: connected to the tracking server.
        name: of the model.
        tags: by which it differs from others of this name.

    Raises:
        StepFailedError, MlflowException: MLflow does not answer, or refuses, as it does if there is no such model.
    """
    plain = _plain(client)

    def look() -> bool | None:
        found = _tags_of_model(plain, name)
        return True if found is None or not tags.items() <= found.items() else None

    def delete() -> bool:
        plain.delete_registered_model(name)
        return True

    once(delete, look, "delete registered model", client.tracking_uri)


def create_version(
    client: mlflow.MlflowClient, name: str, *, run_id: str, model_id: str, tags: Mapping[str, str]
) -> str:
    """Create a version of a registered model from a logged model, together with its tags.

    Args:
        client: connected to the tracking server.
        name: of the registered model, which is there.
        run_id: run of the step that registers.
        model_id: of the logged model.
        tags: of the version; the version is never without them.

    Returns:
        The version's number.

    Raises:
        StepFailedError, MlflowException: MLflow does not answer, or refuses.
    """
    plain, mark = _plain(client), uuid.uuid4().hex
    tags = {**tags, _REQUEST_TAG: mark}

    def look() -> str | None:
        found = plain.search_model_versions(f"run_id = '{run_id}'")
        return next((str(each.version) for each in found if each.tags.get(_REQUEST_TAG) == mark), None)

    def create() -> str:
        source = f"models:/{model_id}"
        return str(plain.create_model_version(name, source, run_id=run_id, tags=tags, model_id=model_id).version)

    return once(create, look, "create model version", client.tracking_uri)


def _plain(client: mlflow.MlflowClient) -> mlflow.MlflowClient:
    """A client that does not repeat requests by itself."""
    return mlflow.MlflowClient(tracking_uri=client.tracking_uri)


def _tags_of_model(client: mlflow.MlflowClient, name: str) -> dict[str, str] | None:
    """The tags of a registered model; None if there is no such model."""
    try:
        return dict(client.get_registered_model(name).tags)
    except MlflowException as error:
        if error.error_code not in _UNKNOWN:
            raise
        return None
