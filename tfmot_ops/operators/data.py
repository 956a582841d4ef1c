"""A DAG that starts `optimize_model` when a data set has changed.

Not imported by `tfmot_ops.operators` itself, as it needs Airflow's standard provider, which operators of steps do not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Asset

#: Characters of a URI that the id of its DAG shows.
_LONGEST_PART = 60


def dag_on_data(data: Asset | str, parameters: Mapping[str, Any], *, dag_id: str | None = None) -> DAG:
    """A DAG with one task, which starts `optimize_model` after each event of an asset.

    Call it in a file of the DAG folder: `dag = dag_on_data("s3://bucket/x.npz", {"dataset": "npz:s3://bucket/x.npz"})`.

    Args:
        data: the asset of the data set, or its URI.
        parameters: of `optimize_model`, by name; `optimize_model` refuses those that its form would refuse.
        dag_id: of the DAG; None makes one from the URI.
    """
    asset = Asset(data) if isinstance(data, str) else data
    with DAG(
        dag_id or _dag_id(asset.uri),
        description=f"starts optimize_model when {asset.uri} has changed",
        schedule=[asset],
        catchup=False,
        tags=["tfmot_ops"],
    ) as dag:
        TriggerDagRunOperator(task_id="optimize_model", trigger_dag_id="optimize_model", conf=dict(parameters))
    return dag


def _dag_id(uri: str) -> str:
    """An id that differs for different URIs."""
    plain = re.sub(r"[^\w.-]+", "_", uri)[-_LONGEST_PART:]
    return f"optimize_on_{plain}_{hashlib.sha256(uri.encode()).hexdigest()[:6]}"
