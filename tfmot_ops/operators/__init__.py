"""Airflow operators; they load no TensorFlow and no MLflow."""

from tfmot_ops.operators.assets import model_asset
from tfmot_ops.operators.links import MlflowRunLink
from tfmot_ops.operators.mlflow_hook import MlflowHook
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
from tfmot_ops.system.environment import SECTION, read_options_from

__all__ = [
    "CandidateOperator",
    "ChooseOperator",
    "CloseRunOperator",
    "CompatSweepOperator",
    "EvaluateOperator",
    "FineTuneOperator",
    "ForecastOperator",
    "ListOperator",
    "MlflowHook",
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


def _option(name: str) -> str | None:
    """An option of this package in Airflow's configuration; None where it is not set."""
    from airflow.sdk.configuration import conf

    value = conf.get(SECTION, name, fallback=None)
    return None if value is None else str(value)


read_options_from(_option)
