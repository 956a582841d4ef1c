"""StepResult -> MLflow: the only importer of mlflow.

A pipeline is an MLflow parent run, and each step is a child run. A key (dag, run, task, map index) identifies a step
across its retries: a retry with the same key continues the existing run instead of creating another.
"""

from tfmot_ops.tracking.artifacts import put_artifacts
from tfmot_ops.tracking.children import children_of, parent_of
from tfmot_ops.tracking.client import MlflowStore, fetch_artifact, refusal_of_mlflow, registry_of
from tfmot_ops.tracking.models import fetch_model, is_model_uri, load_logged_model
from tfmot_ops.tracking.registry import CHAMPION, promote, rollback
from tfmot_ops.tracking.run import StepRun
from tfmot_ops.tracking.sweep_runs import earlier_sweeps, record_sweep

__all__ = [
    "CHAMPION",
    "MlflowStore",
    "StepRun",
    "children_of",
    "earlier_sweeps",
    "fetch_artifact",
    "fetch_model",
    "is_model_uri",
    "load_logged_model",
    "parent_of",
    "promote",
    "put_artifacts",
    "record_sweep",
    "refusal_of_mlflow",
    "registry_of",
    "rollback",
]
