"""StepSpec: the complete description of one step, as JSON."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from tfmot_ops.contract.document import SCHEMA_VERSION, Artifact, Document, FileName
from tfmot_ops.contract.options import Options
from tfmot_ops.system import environment

#: Names of the built-in small models, which `tfmot_ops.models` builds.
BUILTIN_MODELS = ("resnet8", "mobilenet_like", "ds_cnn", "unet", "conv1d", "lstm", "mlp", "autoencoder")
#: Names of the built-in data sets, which `tfmot_ops.data` loads; it also loads `npz:<path>` and `images:<folder>`.
#: Begin of the options of a data set: a question mark of a pattern (`part-?.tfrecord`) is not followed by a word and an
#: equals sign.
DATASET_OPTIONS = re.compile(r"\?(?=[a-z_]+=)")
BUILTIN_DATASETS = ("digits", "fashion_mnist")


class Tracking(Document):
    """Where a step is recorded.

    Attributes:
        uri: MLflow tracking URI.
        experiment: experiment name; created when missing.
        parent_run_id: id of the parent run of the step's run; None for a step that writes to the parent run.
        key: identifies the step across retries (dag_id, run_id, task_id, map_index): a retry with the same key
            continues its MLflow run instead of opening a new one.
    """

    uri: str = Field(min_length=1)
    experiment: str = "tfmot_ops"
    parent_run_id: str | None = None
    key: dict[str, str] = Field(default_factory=dict)


#: Environment variables with the default tracking URI, in order of priority.
TRACKING_VARIABLES = tuple(variable.name for variable in environment.TRACKING_VARIABLES)
#: Environment variable that makes a step fail without a GPU; not set after a runner's `fallback` to the CPU.
REQUIRE_GPU = environment.REQUIRE_GPU.name


class Device(StrEnum):
    """The device on which a step computes."""

    CPU = "cpu"
    GPU = "gpu"


class StepSpec(Document):
    """The complete description of one step.

    Attributes:
        step_id: name of the step in logs and MLflow runs (`fine_tune`).
        inputs: input name -> artifact; the options' `requires` lists the required names.
        output_uri: folder for the outputs (any fsspec URI); None stores them as artifacts of the step's MLflow run.
        seed: seed of Python, NumPy, TensorFlow, the data splits and the order of batches.
        device: device on which the step computes, unless the runner sets another.
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
            raise ValueError("give output_uri or tracking: without both there is no place to store the outputs")
        return self

    def uris(self) -> dict[str, str]:
        """Field name -> URI, for every location that the step reads or writes."""
        found = {f"inputs.{name}": artifact.uri for name, artifact in self.inputs.items()}
        return found | {"output_uri": self.output_uri or "", "tracking_uri": self.tracking.uri if self.tracking else ""}

    def sha256(self) -> str:
        """sha256 (hex) of the canonical JSON; the result repeats it, so that a result can be matched to its spec."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
