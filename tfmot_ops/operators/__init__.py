"""Airflow operators; they load no TensorFlow and no MLflow."""

from tfmot_ops.operators.assets import model_asset
from tfmot_ops.operators.links import MlflowRunLink
from tfmot_ops.operators.register import RegisterOperator
from tfmot_ops.operators.search import CandidateOperator, ChooseOperator, PlanCandidatesOperator
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
from tfmot_ops.operators.sweep import CompatSweepOperator, ForecastOperator, ListOperator, SummarizeSweepOperator

__all__ = [
    "CandidateOperator",
    "ChooseOperator",
    "CloseRunOperator",
    "CompatSweepOperator",
    "EvaluateOperator",
    "FineTuneOperator",
    "ForecastOperator",
    "ListOperator",
    "MlflowRunLink",
    "OpenRunOperator",
    "PlanCandidatesOperator",
    "PruneOperator",
    "QuantizeOperator",
    "RegisterOperator",
    "StepOperator",
    "StripOperator",
    "SummarizeSweepOperator",
    "TrainOperator",
    "model_asset",
]
