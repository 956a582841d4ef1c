"""Finds the MLflow runs of an interrupted `tfmot-ops optimize`, so that the same command can continue them."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from tfmot_ops.contract import Status, StepResult
from tfmot_ops.errors import StepFailedError
from tfmot_ops.tracking.client import connect, download
from tfmot_ops.tracking.run import KEY_TAG, PARENT_TAG, RESULT


@dataclass(frozen=True)
class Unfinished:
    """The runs of an interrupted command.

    Attributes:
        parent: id of its parent run.
        key: entry `run_id` of the tracking key of its runs.
        results: step name -> the result recorded on the step's run.
    """

    parent: str
    key: str
    results: dict[str, StepResult]


def find_unfinished(uri: str, experiment: str, identity: str) -> Unfinished | None:
    """The latest parent run of a command, if the same command can continue it.

    Args:
        uri: MLflow tracking URI.
        experiment: experiment name.
        identity: prefix of the entry `run_id` in the tracking keys of the command's runs.

    Returns:
        The run's data; None if the latest run succeeded, failed with an error that a retry cannot cure, or may still
        be running.

    Raises:
        StepFailedError: MLflow cannot be used.
    """
    client, experiment_id = connect(uri, experiment)  # ends the runs of killed processes
    opened = f"tags.`{KEY_TAG}.run_id` LIKE '{identity}-%' and tags.`tfmot_ops.kind` = 'open_run'"
    latest_first = ["attributes.start_time DESC"]
    for parent in client.search_runs([experiment_id], opened, max_results=1, order_by=latest_first):
        if parent.info.status in {"RUNNING", "FINISHED"}:
            return None
        results = _results(client, experiment_id, parent.info.run_id)
        errors = [result.error for result in results.values() if result.error is not None]
        if any(error.exit_code != StepFailedError.exit_code for error in errors):
            return None
        return Unfinished(parent.info.run_id, parent.data.tags[f"{KEY_TAG}.run_id"], results)
    return None


def end_as_killed(uri: str, run_id: str) -> None:
    """End the parent run of an interrupted command with the status KILLED.

    Raises:
        MlflowException: MLflow cannot be used.
    """
    mlflow.MlflowClient(tracking_uri=uri).set_terminated(run_id, "KILLED")


def _results(client: mlflow.MlflowClient, experiment_id: str, parent: str) -> dict[str, StepResult]:
    found: dict[str, StepResult] = {}
    for run in client.search_runs([experiment_id], f"tags.`{PARENT_TAG}` = '{parent}'"):
        result = _result(client, run.info.run_id)
        if result is None:
            continue
        found[result.step_id] = result
        if result.status is Status.OK and run.info.status != "FINISHED":
            # The process was killed after it recorded the result and before it ended the run.
            client.set_terminated(run.info.run_id, "FINISHED")
    return found


def _result(client: mlflow.MlflowClient, run_id: str) -> StepResult | None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MlflowException, OSError, ValueError):
        if RESULT in {each.path for each in client.list_artifacts(run_id)}:
            path = download(f"runs:/{run_id}/{RESULT}", Path(folder), client.tracking_uri)
            return StepResult.model_validate_json(path.read_text(encoding="utf-8"))
    return None
