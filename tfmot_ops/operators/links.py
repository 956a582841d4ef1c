"""The link from a task to its MLflow run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

from tfmot_ops.system.environment import MLFLOW_UI

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

#: Deprecated alias, kept for DAGs that import it.
UI_VARIABLE = MLFLOW_UI.name
#: URL of the MLflow UI if neither a connection, nor the variable, nor an http tracking URI gives one.
DEFAULT_UI = "http://127.0.0.1:5000"


class MlflowRunLink(BaseOperatorLink):
    """Button `MLflow run` on a task.

    When the task has ended, Airflow calls `get_link` in the task's process and pushes the URL as the XCom `xcom_key`.
    The API server reads only this XCom, so the link works for mapped tasks, and the API server need not import this
    package.
    """

    @property
    def name(self) -> str:
        """Text of the button."""
        return "MLflow run"

    @property
    def xcom_key(self) -> str:
        """Key of the XCom with the URL."""
        return "tfmot_ops_mlflow_run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """URL of the MLflow run of the step that the operator has run; empty if the step has no MLflow run."""
        del ti_key
        return str(getattr(operator, "mlflow_run_url", ""))


def run_url(ui: str, run_id: str) -> str:
    """URL of a run in the MLflow UI; MLflow finds the run's experiment from the run's id."""
    return f"{ui.rstrip('/')}/#/runs/{run_id}"
