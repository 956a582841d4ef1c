"""The options of each kind of step, which also say what such a step needs, makes, and how it is recorded.

A new kind is one class here, in the union `Options`, and one function in `steps.kinds`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue

from tfmot_ops.contract.document import Document
from tfmot_ops.contract.recipe import Recipe

RecipeRef = Recipe | str


class Recorded(StrEnum):
    """What the MLflow run of a step gets, and whose run it is."""

    RESULT = "the step's own run: its result, figures, parameters and layers"
    OPENING = "the parent run, which the step opens with its parameters"
    CLOSING = "the parent run, which gets the figures of the whole chain"
    SWEEP = "the parent run, which gets the table and the page of the sweep"
    SUMMARY = "the parent run, which gets the step's result"
    VERSION = "as RESULT, and a version of the registered model"

    @property
    def is_on_the_parent(self) -> bool:
        """Whether the step speaks about the parent run, so that it needs no run of its own."""
        return self in {Recorded.CLOSING, Recorded.SWEEP, Recorded.SUMMARY}


class StepOptions(Document):
    """Options of a kind of step. The class variables describe the kind, to whoever checks, runs or records a step.

    Attributes:
        requires: names of the input artifacts that a step of this kind cannot do without.
        makes: names of the output artifacts that it may make.
        computes_with_a_model: whether it needs a device, seeds and a Keras session of its own.
        reads_earlier_sweeps: whether it is given the sweeps that MLflow knows of.
        model_field: the field that names the model to start from, which may be an MLflow URI; None for a kind without.
        recorded: what its MLflow run gets.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[tuple[str, ...]] = ()
    computes_with_a_model: ClassVar[bool] = False
    reads_earlier_sweeps: ClassVar[bool] = False
    model_field: ClassVar[str | None] = None
    recorded: ClassVar[Recorded] = Recorded.RESULT

    @property
    def named_model(self) -> str | None:
        """The model to start from, by name, path or URI; None for a kind that has none."""
        return getattr(self, self.model_field) if self.model_field else None

    def with_model(self, model: str) -> Self:
        """The same options with another model to start from."""
        return self.model_copy(update={self.model_field: model}) if self.model_field else self

    @property
    def named_recipe(self) -> RecipeRef | None:
        """The recipe, or its name; None for a kind without, or where none is given."""
        return getattr(self, "recipe", None)

    @property
    def named_epochs(self) -> int | None:
        """Epochs to train; None for a kind that trains nothing, or where the recipe decides."""
        return getattr(self, "epochs", None)


class DataOptions(StepOptions):
    """Options of a kind that computes with a model on a data set."""

    makes: ClassVar[tuple[str, ...]] = ("model",)
    computes_with_a_model = True

    dataset: str = Field(min_length=1)
    batch_size: int = Field(default=64, ge=1)
    limit: int | None = Field(default=None, ge=50, description="use at most so many training samples")


class OpenRunOptions(StepOptions):
    """Open the parent run of a pipeline; `parameters` are logged on it."""

    recorded = Recorded.OPENING

    kind: Literal["open_run"] = "open_run"
    name: str = "optimize"
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class TrainOptions(DataOptions):
    """Build a model by name, size it from the data set, train it; or load a saved one, and measure it.

    Attributes:
        epochs: None trains a model that starts from random weights for 10 epochs, and a saved model, which comes
            trained, not at all.
    """

    model_field = "model"

    kind: Literal["train"] = "train"
    model: str = Field(min_length=1)
    epochs: int | None = Field(default=None, ge=0, description="None: 10, or 0 for a saved model")
    learning_rate: float = Field(default=1e-3, gt=0.0)


class PruneOptions(DataOptions):
    """Wrap what the recipe's sparsity names with the pruning schedule; input `model`."""

    requires = ("model",)

    kind: Literal["prune"] = "prune"
    recipe: RecipeRef
    epochs: int | None = Field(default=None, ge=0, description="fine-tune epochs; None takes the recipe's budget")


class FineTuneOptions(DataOptions):
    """Train with the pruning schedule; a model that the recipe does not prune passes through; input `model`."""

    requires = ("model",)

    kind: Literal["fine_tune"] = "fine_tune"
    recipe: RecipeRef
    epochs: int | None = Field(
        default=None, ge=0, description="None: the recipe's budget, or 0 for a recipe without sparsity"
    )


class StripOptions(DataOptions):
    """Remove the pruning wrappers and assert the sparsity; input `model`."""

    requires = ("model",)

    kind: Literal["strip"] = "strip"
    recipe: RecipeRef


class QuantizeOptions(DataOptions):
    """Insert quantisers, calibrate, train the QAT epochs, export to TFLite; input `model`."""

    requires = ("model",)
    makes = ("model", "tflite")

    kind: Literal["quantize"] = "quantize"
    recipe: RecipeRef
    epochs: int | None = Field(default=None, ge=0, description="None takes the recipe's budget")


class EvaluateOptions(DataOptions):
    """Measure a TFLite file and, when given, the models it came from.

    Inputs: `tflite`; `model`, the float model that was quantised (pruned, if the recipe prunes); `quantized`, the QAT
    model; `trained`, the float model before pruning. The accuracy drop, the compression and the float size are
    against `trained`, or against `model` where `trained` is not given.
    """

    requires = ("tflite",)
    makes = ("layer_sqnr",)

    kind: Literal["evaluate"] = "evaluate"
    recipe: RecipeRef | None = None


class RegisterOptions(StepOptions):
    """Register the TFLite file in the model registry if every gate holds; input `tflite`.

    Attributes:
        gates: metric name -> least value it must have.
    """

    requires = ("tflite",)
    recorded = Recorded.VERSION

    kind: Literal["register"] = "register"
    name: str = Field(min_length=1)
    alias: str = "candidate"
    metrics: dict[str, float] = Field(default_factory=dict)
    gates: dict[str, float] = Field(default_factory=dict)


class ListOptions(StepOptions):
    """List a catalogue; the answer is the output `list` (JSON)."""

    makes = ("list",)

    kind: Literal["list"] = "list"
    what: Literal["architectures", "models", "datasets", "recipes"] = "architectures"


class CompatOptions(StepOptions):
    """Run cells of the compat matrix; a red cell is a result, not a failure. The answer is the output `cells` (JSON).

    Attributes:
        label: names the shard in the UI.
        force: run every cell, also those whose inputs did not change.
        time_limit_s: wall time that a cell may take.
        memory_limit_gib: resident memory that a cell may hold, in GiB; the largest, ConvNeXtXLarge, held 17.0.
        python: interpreter of another environment that runs the cells, for a forecast; none of their results is taken
            for one of this environment.
    """

    makes = ("cells",)
    reads_earlier_sweeps = True

    kind: Literal["compat"] = "compat"
    architectures: tuple[str, ...] = Field(min_length=1)
    recipe: RecipeRef
    label: str = ""
    force: bool = False
    time_limit_s: float = Field(default=3600.0, gt=0.0)
    memory_limit_gib: float = Field(default=18.0, gt=0.0)
    python: str | None = Field(default=None, min_length=1)


class SummarizeOptions(StepOptions):
    """Judge a sweep and make its page; inputs are the `cells` of its shards, the answer the outputs `sweep`, `page`.

    Attributes:
        architectures: all that were asked for: one without a cell is missing, and counts as failed.
        recipes: names of all that were asked for.
        repros: look for the smallest part of each regression that still fails.
    """

    makes = ("sweep", "page")
    reads_earlier_sweeps = True
    recorded = Recorded.SWEEP

    kind: Literal["summarize"] = "summarize"
    architectures: tuple[str, ...] = Field(min_length=1)
    recipes: tuple[str, ...] = Field(min_length=1)
    repros: bool = True


class ForecastOptions(StepOptions):
    """Compare cells under these versions with the same cells under others; the answer is the output `forecast` (JSON).

    Inputs are the `cells` of shards: `now_0000`, `now_0001`, ... and `then_0000`, ...
    """

    makes = ("forecast",)
    recorded = Recorded.SUMMARY

    kind: Literal["forecast"] = "forecast"


class CloseRunOptions(StepOptions):
    """Close the parent run, with the chain's figures on it; runs after a failure too.

    Attributes:
        steps: step name -> its metrics, for those that ended well.
        failed: step names that did not.
    """

    recorded = Recorded.CLOSING

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
