"""Airflow operators; they load no TensorFlow and no MLflow."""

from tfmot_ops.operators.links import MlflowRunLink
from tfmot_ops.operators.step import (
    CloseRunOperator,
    EvaluateOperator,
    FineTuneOperator,
    OpenRunOperator,
    PruneOperator,
    QuantizeOperator,
    StepOperator,
    StripOperator,
    TrainOperator,
)

__all__ = [
    "CloseRunOperator",
    "EvaluateOperator",
    "FineTuneOperator",
    "MlflowRunLink",
    "OpenRunOperator",
    "PruneOperator",
    "QuantizeOperator",
    "StepOperator",
    "StripOperator",
    "TrainOperator",
]
