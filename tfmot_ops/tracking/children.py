"""The runs of a chain's steps: the children of its parent run, with the results that they hold."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from tfmot_ops.contract import StepResult, mapped_step
from tfmot_ops.errors import SpecError
from tfmot_ops.tracking.client import download

KEY_TAG = "tfmot_ops.key"
PARENT_TAG = "mlflow.parentRunId"
STEP_TAG = "tfmot_ops.step_id"
KIND_TAG = "tfmot_ops.kind"
#: Artifact of a step's run that holds its result.
RESULT = "result.json"
#: Most child runs that are read; a chain has seven, a DAG with mapped tasks more.
_MOST = 1000


@dataclass(frozen=True)
class Child:
    """The run of one step.

    Attributes:
        run: the MLflow run.
        result: what the step recorded; None if its process died before, or if the artifact cannot be read.
    """

    run: Run
    result: StepResult | None

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return str(self.run.info.run_id)

    @property
    def step(self) -> str:
        """Name of the step, see `step_of`."""
        return step_of(self.run)

    @property
    def kind(self) -> str:
        """Kind of the step."""
        return str(self.run.data.tags.get(KIND_TAG, ""))


def step_of(run: Run) -> str:
    """Name of the step of a run, with the map index of a mapped task."""
    tags = run.data.tags
    name, index = str(tags.get(STEP_TAG, run.info.run_name)), tags.get(f"{KEY_TAG}.map_index", "-1")
    return mapped_step(name, int(index)) if index.isdecimal() else name


def parent_of(client: mlflow.MlflowClient, run_id: str) -> str:
    """Id of the parent run of a step's run; the id itself for a run without a parent.

    Raises:
        SpecError: there is no such run.
    """
    try:
        return str(client.get_run(run_id).data.tags.get(PARENT_TAG, run_id))
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise SpecError(
            f"there is no run {run_id}",
            required="the id of an MLflow run on this tracking server",
            received=run_id,
            remedy="copy the id from the run's page in MLflow",
        ) from error


def children_of(client: mlflow.MlflowClient, parent: str) -> list[Child]:
    """The runs of the steps under a parent run, in the order in which they were started.

    Raises:
        MlflowException: MLflow cannot be used.
    """
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`{PARENT_TAG}` = '{parent}'"
    runs = client.search_runs([experiment], query, max_results=_MOST, order_by=["attributes.start_time ASC"])
    return [Child(run, read_result(client, run.info.run_id)) for run in runs]


def read_result(client: mlflow.MlflowClient, run_id: str) -> StepResult | None:
    """The result on a step's run; None if there is none that can be read."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MlflowException, OSError, ValueError):
        if RESULT in {each.path for each in client.list_artifacts(run_id)}:
            path = download(f"runs:/{run_id}/{RESULT}", Path(folder), client.tracking_uri)
            return StepResult.model_validate_json(path.read_text(encoding="utf-8"))
    return None
