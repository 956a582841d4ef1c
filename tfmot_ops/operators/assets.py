"""Airflow assets of MLflow's model registry: an event of one starts the DAGs that are scheduled on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import Asset, AssetAlias

if TYPE_CHECKING:
    from airflow.sdk import Context

#: The outlet of RegisterOperator. The name of the model is known only when the task runs, and an alias is what Airflow
#: has for that: the task adds to it the assets that it changed.
REGISTERED_MODELS = AssetAlias("tfmot_ops_registered_models")


def model_asset(name: str, alias: str = "champion") -> Asset:
    """The asset of the version that has an alias: `mlflow://<name>/<alias>`, as in `schedule=[model_asset("digits")]`.

    Not `mlflow://<name>@<alias>`: before an `@`, a URI has a user.

    Args:
        name: of the registered model.
        alias: `champion` changes with a promotion, `candidate` with each registration.
    """
    return Asset(f"mlflow://{quote(name, safe='')}/{quote(alias, safe='')}")


def add_version_events(context: Context, options: Mapping[str, Any], result: Mapping[str, Any]) -> None:
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
