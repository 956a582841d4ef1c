"""StepSpec: one step as data."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from tfmot_ops.contract.document import SCHEMA_VERSION, Artifact, Document, FileName
from tfmot_ops.contract.options import Options
from tfmot_ops.system import environment

#: Small models that ship by name; `models` builds each.
BUILTIN_MODELS = ("resnet8", "mobilenet_like")
#: Data sets that ship by name; `data` loads each. `npz:<path>` and `images:<folder>` exist beside them.
BUILTIN_DATASETS = ("digits", "fashion_mnist")


class Tracking(Document):
    """Where a step is recorded.

    Attributes:
        uri: MLflow tracking URI.
        experiment: experiment name; created when missing.
        parent_run_id: run that the step's run becomes a child of; None for the parent itself.
        key: what identifies the step over retries (dag_id, run_id, task_id, map_index): the same key
            takes up its run instead of adding one.
    """

    uri: str = Field(min_length=1)
    experiment: str = "tfmot_ops"
    parent_run_id: str | None = None
    key: dict[str, str] = Field(default_factory=dict)


#: Where MLflow is, in this order, when nobody says so.
TRACKING_VARIABLES = tuple(variable.name for variable in environment.TRACKING_VARIABLES)
#: Set for a step that has to find a GPU; not where a runner's `fallback` has put it on a CPU.
REQUIRE_GPU = environment.REQUIRE_GPU.name


class Device(StrEnum):
    """What a step computes on."""

    CPU = "cpu"
    GPU = "gpu"


class StepSpec(Document):
    """One step as data.

    Attributes:
        step_id: name of the step in logs and runs (`fine_tune`).
        inputs: artifacts by the name the options ask for.
        output_uri: folder (any fsspec URI) the outputs go to; None puts them on the step's MLflow run.
        seed: seeds Python, NumPy, TensorFlow, the data splits and the batches' order.
        device: what the step computes on, where the runner does not say otherwise.
        tracking: None records nothing.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    step_id: str = Field(min_length=1)
    inputs: dict[FileName, Artifact] = Field(default_factory=dict)
    output_uri: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: Device = Device.CPU
    tracking: Tracking | None = None
    options: Options

    @model_validator(mode="after")
    def _outputs_have_a_place(self) -> StepSpec:
        if self.output_uri is None and self.tracking is None:
            raise ValueError("give output_uri or tracking: without either the outputs have no place to go")
        return self

    def uris(self) -> dict[str, str]:
        """Name of a field -> the URI in it, of every place that the step reads or writes."""
        found = {f"inputs.{name}": artifact.uri for name, artifact in self.inputs.items()}
        return found | {"output_uri": self.output_uri or "", "tracking_uri": self.tracking.uri if self.tracking else ""}

    def sha256(self) -> str:
        """Hex digest of the canonical JSON, recorded in the result."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
