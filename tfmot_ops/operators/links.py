"""The link from a task to its MLflow run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

from tfmot_ops.system.environment import MLFLOW_UI

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

#: An old name of the variable, for DAGs that import it.
UI_VARIABLE = MLFLOW_UI.name
#: Where the MLflow UI is, when no connection, no variable and no tracking URI says so.
DEFAULT_UI = "http://127.0.0.1:5000"


class MlflowRunLink(BaseOperatorLink):
    """Button `MLflow run` on a task.

    Airflow calls `get_link` in the task's own process when the task has ended, and pushes the answer as the XCom
    `xcom_key`; the API server reads only that. So it works for mapped tasks and needs no import of this package there.
    """

    @property
    def name(self) -> str:
        """Text of the button."""
        return "MLflow run"

    @property
    def xcom_key(self) -> str:
        """Key the address is pushed under."""
        return "tfmot_ops_mlflow_run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Address of the run of the step the operator has just run; empty when it got no run."""
        del ti_key
        return str(getattr(operator, "mlflow_run_url", ""))


def run_url(ui: str, run_id: str) -> str:
    """Address of a run in the MLflow UI, which finds the run's experiment itself."""
    return f"{ui.rstrip('/')}/#/runs/{run_id}"
