"""Airflow assets of MLflow's model registry: an event of one starts the DAGs that are scheduled on it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import Asset, AssetAlias

from tfmot_ops.errors import SpecError
from tfmot_ops.system.environment import OPTIMIZE_ON

if TYPE_CHECKING:
    from airflow.sdk import Context

#: The outlet of RegisterOperator. The name of the model is known only when the task runs, and an alias is what Airflow
#: has for that: the task adds to it the assets that it changed.
REGISTERED_MODELS = AssetAlias("tfmot_ops_registered_models")

#: Characters of a URI that the id of its DAG shows.
_LONGEST_PART = 60


def model_asset(name: str, alias: str = "champion") -> Asset:
    """The asset of the version that has an alias: `mlflow://<name>/<alias>`, as in `schedule=[model_asset("digits")]`.

    Not `mlflow://<name>@<alias>`: before an `@`, a URI has a user.

    Args:
        name: of the registered model.
        alias: `champion` changes with a promotion, `candidate` with each registration.
    """
    return Asset(f"mlflow://{quote(name, safe='')}/{quote(alias, safe='')}")


def tell_of_version(context: Context, options: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Add to a task's events the assets that a registration has changed.

    Args:
        context: of the task, whose outlets hold `REGISTERED_MODELS`.
        options: of the step.
        result: of the step; one without a version, as no registry was used, gives no event.
    """
    parameters = result.get("parameters") or {}
    version = parameters.get("registered_version")
    if version is None:
        return
    events = context["outlet_events"][REGISTERED_MODELS]
    name, run = str(options["name"]), result.get("tracking_run_id")
    events.add(model_asset(name, options.get("alias") or "candidate"), {"version": version, "run_id": run})
    # A version that was the champion already, as in a retry, is no new champion.
    if options.get("promote") and parameters.get("replaced_version") != version:
        extra = {"version": version, "run_id": run, "replaced_version": parameters.get("replaced_version")}
        events.add(model_asset(name, options.get("champion_alias") or "champion"), extra)


def data_sets() -> dict[str, tuple[str, dict[str, Any]]]:
    """The assets that start `optimize_model`: URI -> (id of the DAG that does so, parameters).

    Raises:
        SpecError: the deployment's variable is not a JSON object of objects.
    """
    text = OPTIMIZE_ON.get() or "{}"
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict) or not all(isinstance(each, dict) for each in entries.values()):
        raise SpecError(
            f"the deployment's variable {OPTIMIZE_ON.name} cannot be read",
            required='a JSON object: asset URI -> parameters, as in {"s3://data/x.npz": {"dataset": "npz:s3://data/x.npz"}}',
            received=f"a text of {len(text)} characters that is not such an object",
            remedy="correct the variable where Airflow parses the DAGs",
        )
    return {uri: (_dag_id(uri), parameters) for uri, parameters in entries.items()}


def _dag_id(uri: str) -> str:
    """An id that differs for different URIs."""
    plain = re.sub(r"[^\w.-]+", "_", uri)[-_LONGEST_PART:]
    return f"optimize_on_{plain}_{hashlib.sha256(uri.encode()).hexdigest()[:6]}"
