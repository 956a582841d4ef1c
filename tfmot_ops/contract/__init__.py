"""The documents that processes exchange: a step reads one StepSpec and writes one StepResult.

Frozen pydantic models, `extra="forbid"`, a `schema_version` in each document. Only the standard
library and pydantic are imported, so a DAG can be parsed without TensorFlow.
"""

from tfmot_ops.contract.compat import Judgement, SweepResult
from tfmot_ops.contract.document import (
    SCHEMA_VERSION,
    Artifact,
    ArtifactFormat,
    Document,
)
from tfmot_ops.contract.gates import Policy, Rule, broken_rules
from tfmot_ops.contract.headline import ACCURACY, Headline
from tfmot_ops.contract.options import (
    CloseRunOptions,
    CompatOptions,
    EvaluateOptions,
    FineTuneOptions,
    ForecastOptions,
    ListOptions,
    OpenRunOptions,
    Options,
    PruneOptions,
    QuantizeOptions,
    RegisterOptions,
    StripOptions,
    SummarizeOptions,
    TrainOptions,
)
from tfmot_ops.contract.recipe import (
    PRESET_RECIPES,
    Activations,
    Backend,
    Budget,
    Method,
    Quantization,
    Recipe,
    Schedule,
    Sparsity,
    Weights,
)
from tfmot_ops.contract.result import (
    CompatResult,
    LayerReport,
    Outcome,
    Stage,
    Status,
    StepError,
    StepResult,
    mapped_step,
)
from tfmot_ops.contract.scope import Scope
from tfmot_ops.contract.search import Candidate, Found, Goals
from tfmot_ops.contract.search_options import CandidateOptions, ChooseOptions
from tfmot_ops.contract.spec import (
    BUILTIN_DATASETS,
    BUILTIN_MODELS,
    DATASET_OPTIONS,
    REQUIRE_GPU,
    TRACKING_VARIABLES,
    Device,
    StepSpec,
    Tracking,
)
from tfmot_ops.contract.step_options import DataOptions, RecipeRef, Recorded, StepOptions, TrainingOptions
from tfmot_ops.contract.target import SHIPPED_TARGETS, IoType, Limits, Target, TargetRef, Vela, WeightScales
from tfmot_ops.contract.training import TrainingPlan

__all__ = [
    "ACCURACY",
    "BUILTIN_DATASETS",
    "BUILTIN_MODELS",
    "DATASET_OPTIONS",
    "PRESET_RECIPES",
    "REQUIRE_GPU",
    "SCHEMA_VERSION",
    "SHIPPED_TARGETS",
    "TRACKING_VARIABLES",
    "Activations",
    "Artifact",
    "ArtifactFormat",
    "Backend",
    "Budget",
    "Candidate",
    "CandidateOptions",
    "ChooseOptions",
    "CloseRunOptions",
    "CompatOptions",
    "CompatResult",
    "DataOptions",
    "Device",
    "Document",
    "EvaluateOptions",
    "FineTuneOptions",
    "ForecastOptions",
    "Found",
    "Goals",
    "Headline",
    "IoType",
    "Judgement",
    "LayerReport",
    "Limits",
    "ListOptions",
    "Method",
    "OpenRunOptions",
    "Options",
    "Outcome",
    "Policy",
    "PruneOptions",
    "Quantization",
    "QuantizeOptions",
    "Recipe",
    "RecipeRef",
    "Recorded",
    "RegisterOptions",
    "Rule",
    "Schedule",
    "Scope",
    "Sparsity",
    "Stage",
    "Status",
    "StepError",
    "StepOptions",
    "StepResult",
    "StepSpec",
    "StripOptions",
    "SummarizeOptions",
    "SweepResult",
    "Target",
    "TargetRef",
    "Tracking",
    "TrainOptions",
    "TrainingOptions",
    "TrainingPlan",
    "Vela",
    "WeightScales",
    "Weights",
    "broken_rules",
    "mapped_step",
]
