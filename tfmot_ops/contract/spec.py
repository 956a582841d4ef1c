"""StepSpec: one step as data. A new verb is one options model here and one function in `steps`."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from tfmot_ops.contract.document import SCHEMA_VERSION, Artifact, Document, FileName
from tfmot_ops.contract.recipe import Recipe

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
TRACKING_VARIABLES = ("TFMOT_OPS_TRACKING_URI", "MLFLOW_TRACKING_URI")
#: Set for a step that has to find a GPU; not where a runner's `fallback` has put it on a CPU.
REQUIRE_GPU = "TFMOT_OPS_REQUIRE_GPU"


class Device(StrEnum):
    """What a step computes on."""

    CPU = "cpu"
    GPU = "gpu"


RecipeRef = Recipe | str


class OpenRunOptions(Document):
    """Open the parent run of a pipeline; `parameters` are logged on it."""

    kind: Literal["open_run"] = "open_run"
    name: str = "optimize"
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class _DataOptions(Document):
    dataset: str = Field(min_length=1)
    batch_size: int = Field(default=64, ge=1)
    limit: int | None = Field(default=None, ge=50, description="use at most so many training samples")


class TrainOptions(_DataOptions):
    """Build a model by name, size it from the data set, train it; or load a saved one, and measure it.

    Attributes:
        epochs: None trains a model that starts from random weights for 10 epochs, and a saved model, which comes
            trained, not at all.
    """

    kind: Literal["train"] = "train"
    model: str = Field(min_length=1)
    epochs: int | None = Field(default=None, ge=0, description="None: 10, or 0 for a saved model")
    learning_rate: float = Field(default=1e-3, gt=0.0)


class PruneOptions(_DataOptions):
    """Wrap what the recipe's sparsity names with the pruning schedule; input `model`."""

    kind: Literal["prune"] = "prune"
    recipe: RecipeRef
    epochs: int | None = Field(default=None, ge=0, description="fine-tune epochs; None takes the recipe's budget")


class FineTuneOptions(_DataOptions):
    """Train with the pruning schedule; a model that the recipe does not prune passes through; input `model`."""

    kind: Literal["fine_tune"] = "fine_tune"
    recipe: RecipeRef
    epochs: int | None = Field(
        default=None, ge=0, description="None: the recipe's budget, or 0 for a recipe without sparsity"
    )


class StripOptions(_DataOptions):
    """Remove the pruning wrappers and assert the sparsity; input `model`."""

    kind: Literal["strip"] = "strip"
    recipe: RecipeRef


class QuantizeOptions(_DataOptions):
    """Insert quantisers, calibrate, train the QAT epochs, export to TFLite; input `model`."""

    kind: Literal["quantize"] = "quantize"
    recipe: RecipeRef
    epochs: int | None = Field(default=None, ge=0, description="None takes the recipe's budget")


class EvaluateOptions(_DataOptions):
    """Measure a TFLite file and, when given, the models it came from.

    Inputs: `tflite`; `model`, the float model that was quantised (pruned, if the recipe prunes); `quantized`, the QAT
    model; `trained`, the float model before pruning. The accuracy drop, the compression and the float size are
    against `trained`, or against `model` where `trained` is not given.
    """

    kind: Literal["evaluate"] = "evaluate"
    recipe: RecipeRef | None = None


class RegisterOptions(Document):
    """Register the TFLite file in the model registry if every gate holds; input `tflite`.

    Attributes:
        gates: metric name -> least value it must have.
    """

    kind: Literal["register"] = "register"
    name: str = Field(min_length=1)
    alias: str = "candidate"
    metrics: dict[str, float] = Field(default_factory=dict)
    gates: dict[str, float] = Field(default_factory=dict)


class ListOptions(Document):
    """List a catalogue; the answer is the output `list` (JSON)."""

    kind: Literal["list"] = "list"
    what: Literal["architectures", "models", "datasets", "recipes"] = "architectures"


class CompatOptions(Document):
    """Run cells of the compat matrix; a red cell is a result, not a failure. The answer is the output `cells` (JSON).

    Attributes:
        label: names the shard in the UI.
        force: run every cell, also those whose inputs did not change.
        time_limit_s: wall time that a cell may take.
        memory_limit_gib: resident memory that a cell may hold, in GiB; the largest, ConvNeXtXLarge, held 17.0.
        python: interpreter of another environment that runs the cells, for a forecast; none of their results is taken
            for one of this environment.
    """

    kind: Literal["compat"] = "compat"
    architectures: tuple[str, ...] = Field(min_length=1)
    recipe: RecipeRef
    label: str = ""
    force: bool = False
    time_limit_s: float = Field(default=3600.0, gt=0.0)
    memory_limit_gib: float = Field(default=18.0, gt=0.0)
    python: str | None = Field(default=None, min_length=1)


class SummarizeOptions(Document):
    """Judge a sweep and make its page; inputs are the `cells` of its shards, the answer the outputs `sweep`, `page`.

    Attributes:
        architectures: all that were asked for: one without a cell is missing, and counts as failed.
        recipes: names of all that were asked for.
        repros: look for the smallest part of each regression that still fails.
    """

    kind: Literal["summarize"] = "summarize"
    architectures: tuple[str, ...] = Field(min_length=1)
    recipes: tuple[str, ...] = Field(min_length=1)
    repros: bool = True


class ForecastOptions(Document):
    """Compare cells under these versions with the same cells under others; the answer is the output `forecast` (JSON).

    Inputs are the `cells` of shards: `now_0000`, `now_0001`, ... and `then_0000`, ...
    """

    kind: Literal["forecast"] = "forecast"


class CloseRunOptions(Document):
    """Close the parent run, with the chain's figures on it; runs after a failure too.

    Attributes:
        steps: step name -> its metrics, for those that ended well.
        failed: step names that did not.
    """

    kind: Literal["close_run"] = "close_run"
    steps: dict[str, dict[str, float]] = Field(default_factory=dict)
    failed: tuple[str, ...] = ()


Options = Annotated[
    OpenRunOptions
    | TrainOptions
    | PruneOptions
    | FineTuneOptions
    | StripOptions
    | QuantizeOptions
    | EvaluateOptions
    | RegisterOptions
    | ListOptions
    | CompatOptions
    | SummarizeOptions
    | ForecastOptions
    | CloseRunOptions,
    Field(discriminator="kind"),
]


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
