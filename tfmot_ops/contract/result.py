"""StepResult, the result of a step, and CompatResult, the result of a cell of the compat matrix."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue, field_validator

from tfmot_ops.contract.document import SCHEMA_VERSION, Artifact, Document, FileName, later
from tfmot_ops.contract.headline import Headline


class Outcome(StrEnum):
    """What pruning or quantisation did to a layer."""

    QUANTIZED = "quantized"
    PRUNED = "pruned"
    NOT_PRUNED = "not_pruned"
    KEPT_FLOAT = "kept_float"
    ABSORBED = "absorbed"
    FAILED = "failed"


class LayerReport(Document):
    """What pruning or quantisation did to one layer, and the reason."""

    path: str
    class_name: str
    outcome: Outcome
    reason: str


class Status(StrEnum):
    """How a step or a cell ended."""

    OK = "ok"
    FAILED = "failed"


def mapped_step(name: str, index: int) -> str:
    """Name of one step of a mapped task, by its map index: `train[0]`."""
    return f"{name}[{index}]"


class StepError(Document):
    """Why a step failed: type and message of the exception, and the exit code of its class (see `errors`)."""

    type: str
    message: str
    exit_code: int


class StepResult(Document):
    """The result of a step.

    Attributes:
        outputs: artifacts by name (`model`, `tflite`).
        metrics: name -> number, flat; accuracy and sparsity in [0, 1], sizes in bytes, times in seconds or
            milliseconds as the name says.
        parameters: values to record besides metrics: the compile configuration, the data set's digest.
        headline: the metric by which the task's models are compared; None for a step that measures no model.
        layers: one report per layer, from the steps prune and quantize.
        versions: package name -> version.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    step_id: str
    kind: str
    spec_sha256: str
    status: Status
    outputs: dict[FileName, Artifact] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    headline: Headline | None = later()
    layers: tuple[LayerReport, ...] = ()
    error: StepError | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    duration_s: float = Field(default=0.0, ge=0.0)
    tracking_run_id: str | None = None

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        # JSON has no NaN and no infinity; a metric that could not be measured is left out instead.
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"metric {name} must be finite, received {value}")
        return metrics


class Stage(StrEnum):
    """A stage of a compat cell; a cell runs the stages in this order."""

    BUILD = "build"
    NORMALIZE = "normalize"
    PRUNE = "prune"
    STRIP = "strip"
    QUANTIZE = "quantize"
    TRAIN = "train"
    RELOAD = "reload"
    EXPORT = "export"
    INVOKE = "invoke"
    AGREE = "agree"


class CompatResult(Document):
    """One cell of the compat matrix: an architecture under a recipe.

    Attributes:
        family: module that defines the architecture (`mobilenet_v3`).
        failed_stage: the stage that failed; None if all passed, or if the cell's process died and logged no stage.
        error_class: name in the table of error classes (`tfmot_ops.sweep.run.error_classes`).
        error_type: class of the exception.
        metrics: see `tfmot_ops.core.check_architecture`.
        inputs_sha256: digest of everything that decides the result: architecture, recipe, versions, source of the core.
        cached: whether the result was taken from an earlier sweep with the same inputs.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    architecture: str
    recipe: str
    family: str = ""
    status: Status
    failed_stage: Stage | None = None
    error_class: str | None = None
    error_type: str | None = None
    message: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    inputs_sha256: str = ""
    cached: bool = False

    @property
    def cell(self) -> str:
        """Name of the cell: `MobileNet/wi8_ai8`."""
        return f"{self.architecture}/{self.recipe}"
