"""Finds the MLflow runs of an interrupted `tfmot-ops optimize`, so that the same command can continue them."""

from __future__ import annotations

from dataclasses import dataclass

import mlflow

from tfmot_ops.contract import Status, StepResult
from tfmot_ops.errors import StepFailedError
from tfmot_ops.tracking.children import KEY_TAG, KIND_TAG, children_of
from tfmot_ops.tracking.client import connect
from tfmot_ops.tracking.patience import PatientClient, briefly


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


def find_unfinished(uri: str, experiment: str, identity: str, *, is_retry: bool = False) -> Unfinished | None:
    """The latest parent run of a command, if the same command can continue it.

    Args:
        uri: MLflow tracking URI.
        experiment: experiment name.
        identity: prefix of the entry `run_id` in the tracking keys of the command's runs.
        is_retry: whether the latest run is an earlier attempt at the same task. It has ended, even if its process was
            killed on another machine and the run is still RUNNING; and one that succeeded lost its answer on the way.

    Returns:
        The run's data; None if the latest run succeeded or may still be running, unless it is an earlier attempt, or
        failed with an error that a retry cannot cure.

    Raises:
        StepFailedError: MLflow cannot be used.
    """
    client, experiment_id = connect(uri, experiment)  # ends the runs of killed processes
    opened = f"tags.`{KEY_TAG}.run_id` LIKE '{identity}-%' and tags.`{KIND_TAG}` = 'open_run'"
    latest_first = ["attributes.start_time DESC"]
    for parent in client.search_runs([experiment_id], opened, max_results=1, order_by=latest_first):
        if parent.info.status in {"RUNNING", "FINISHED"} and not is_retry:
            return None
        results = _results(client, parent.info.run_id)
        errors = [result.error for result in results.values() if result.error is not None]
        if any(error.exit_code != StepFailedError.exit_code for error in errors):
            return None
        return Unfinished(parent.info.run_id, parent.data.tags[f"{KEY_TAG}.run_id"], results)
    return None


def end_as_killed(uri: str, run_id: str) -> None:
    """End the parent run of an interrupted command with the status KILLED.

    Raises:
        StepFailedError, MlflowException: MLflow cannot be used.
    """
    with briefly():
        PatientClient(tracking_uri=uri).set_terminated(run_id, "KILLED")


def _results(client: mlflow.MlflowClient, parent: str) -> dict[str, StepResult]:
    found: dict[str, StepResult] = {}
    for child in children_of(client, parent):
        if child.result is None:
            continue
        found[child.result.step_id] = child.result
        if child.result.status is Status.OK and child.run.info.status != "FINISHED":
            # The process was killed after it recorded the result and before it ended the run.
            client.set_terminated(child.run_id, "FINISHED")
    return found
