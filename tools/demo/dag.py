"""Runs one DAG through `dag.test()` in this process and writes its results to a file.

`python -m tools.demo.dag <name> <params as JSON> <answer file>`, with Airflow's settings in the environment.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

from tfmot_ops.errors import SpecError, TfmotOpsError
from tfmot_ops.system import files


def run_dag(name: str, params: dict[str, Any], answer_file: Path) -> int:
    """Run the DAG and write down how it ended: state, results by task, reasons of what failed, the first one's code."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    dag = load_dag(name)
    reasons: dict[str, str] = {}
    codes: list[int] = []

    def note(context: Any) -> None:
        reasons[context["ti"].task_id] = str(context.get("exception"))
        codes.append(_exit_code(context.get("exception")))

    for task in dag.tasks:
        task.on_failure_callback = [note]
    try:
        run = dag.test(run_conf=params)
    except ParamValidationError as error:
        refused = {"state": "refused", "results": {}, "reasons": {name: str(error)}, "exit_code": SpecError.exit_code}
        files.write(answer_file, json.dumps(refused))
        return 0
    with create_session() as session:
        rows = session.scalars(
            select(XComModel)
            .where(XComModel.dag_id == dag.dag_id, XComModel.run_id == run.run_id, XComModel.key == "return_value")
            .order_by(XComModel.timestamp)
        )
        results = {row.task_id: XComModel.deserialize_value(row) for row in rows}
    code = codes[0] if codes else TfmotOpsError.exit_code
    answer = {"state": str(run.state), "results": results, "reasons": reasons, "exit_code": code}
    files.write(answer_file, json.dumps(answer))
    return 0


def _exit_code(error: Any) -> int:
    """The code that a task's error owns; what Airflow must not retry is the cause of Airflow's own exception."""
    for each in (error, getattr(error, "__cause__", None)):
        if isinstance(each, TfmotOpsError):
            return each.exit_code
    return TfmotOpsError.exit_code


def load_dag(name: str) -> DAG:
    """The DAG `name`, from the file of that name in Airflow's DAG folder."""
    path = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"], f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SpecError(
            f"DAG {name}",
            required=f"a Python file {path}",
            received="none",
            remedy="give the name of a file in the folder of DAGs, without its ending",
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dag: DAG = module.dag
    return dag


if __name__ == "__main__":
    sys.exit(run_dag(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])))
