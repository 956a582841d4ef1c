"""StepResult -> MLflow: the only importer of mlflow.

A pipeline is a parent run, each of its steps a child run. A step is known over its retries by its key
(dag, run, task, map index): the same key takes up the run it has instead of adding one.
"""

from tfmot_ops.tracking.client import MlflowStore, fetch_artifact
from tfmot_ops.tracking.models import fetch_model, is_model_uri, load_logged_model
from tfmot_ops.tracking.run import StepRun
from tfmot_ops.tracking.sweep_runs import earlier_sweeps, record_sweep

__all__ = [
    "MlflowStore",
    "StepRun",
    "earlier_sweeps",
    "fetch_artifact",
    "fetch_model",
    "is_model_uri",
    "load_logged_model",
    "record_sweep",
]
