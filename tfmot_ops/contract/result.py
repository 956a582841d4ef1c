"""StepResult and CompatResult: the answers."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue, field_validator

from tfmot_ops.contract.document import SCHEMA_VERSION, Artifact, Document, FileName


class Outcome(StrEnum):
    """What was done to a layer."""

    QUANTIZED = "quantized"
    PRUNED = "pruned"
    NOT_PRUNED = "not_pruned"
    KEPT_FLOAT = "kept_float"
    ABSORBED = "absorbed"
    FAILED = "failed"


class LayerReport(Document):
    """What was done to one layer, and why."""

    path: str
    class_name: str
    outcome: Outcome
    reason: str


class Status(StrEnum):
    """How a step or a cell ended."""

    OK = "ok"
    FAILED = "failed"


class StepError(Document):
    """Why a step failed: exception type, message, and the exit code its class owns."""

    type: str
    message: str
    exit_code: int


class StepResult(Document):
    """The answer to a StepSpec.

    Attributes:
        outputs: artifacts by name (`model`, `tflite`).
        metrics: name -> number, flat; accuracy and sparsity in [0, 1], sizes in bytes, times in seconds or
            milliseconds as the name says.
        parameters: what was decided, for the record: the compile configuration, the data set's digest.
        layers: one row per layer, from the steps that touch layers.
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
    layers: tuple[LayerReport, ...] = ()
    error: StepError | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    duration_s: float = Field(default=0.0, ge=0.0)
    tracking_run_id: str | None = None

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        # NaN and infinity have no JSON form; a metric that could not be measured is left out instead.
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"metric {name} must be finite, received {value}")
        return metrics


class Stage(StrEnum):
    """A point inside a compat cell, in order."""

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
        failed_stage: the first that failed; None when all passed, and when the cell's process ended without saying.
        error_class: name in the table of error classes (`tfmot_ops.sweep.run.error_classes`).
        error_type: class of the exception.
        metrics: see `tfmot_ops.core.check_architecture`.
        inputs_sha256: digest of all that decides the result: architecture, recipe, versions, our own core.
        cached: taken from an earlier sweep with the same inputs.
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
