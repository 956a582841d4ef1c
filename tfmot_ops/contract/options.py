"""The options of each kind of step; the class of the options also names the step's inputs, outputs and MLflow run.

A new kind is one class here, in the union `Options`, and one function in `steps.kinds`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from tfmot_ops.contract.document import later
from tfmot_ops.contract.gates import Policy, Rule, rules_of
from tfmot_ops.contract.headline import Headline
from tfmot_ops.contract.search_options import CandidateOptions, ChooseOptions
from tfmot_ops.contract.step_options import DataOptions, RecipeRef, Recorded, StepOptions, TrainingOptions
from tfmot_ops.contract.target import TargetRef

#: Longest name of a registered model, in characters.
_LONGEST_REGISTERED = 256


class OpenRunOptions(StepOptions):
    """Open the parent run of a pipeline; `parameters` are logged on it.

    Attributes:
        name: of the run; None names it by the parameters `model`, `dataset` and `recipe`, which are its tags too, as
            are `task` and `target`.
    """

    recorded = Recorded.OPENING

    kind: Literal["open_run"] = "open_run"
    name: str | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class TrainOptions(TrainingOptions):
    """Build a model by name, with input and output sizes from the data set, and train it; or load a saved model.

    Attributes:
        epochs: None means 10 for a model that starts from random weights, and 0 for a saved model.
        learning_rate: of the optimizer of a model without one; not used with an optimizer of the training plan.
    """

    model_field = "model"

    kind: Literal["train"] = "train"
    model: str = Field(min_length=1)
    epochs: int | None = Field(default=None, ge=0, description="None: 10, or 0 for a saved model")
    learning_rate: float = Field(default=1e-3, gt=0.0)


class PruneOptions(DataOptions):
    """Put pruning wrappers around the layers in the scope of the recipe's sparsity; input `model`."""

    requires = ("model",)

    kind: Literal["prune"] = "prune"
    recipe: RecipeRef
    epochs: int | None = Field(default=None, ge=0, description="fine-tune epochs; None takes the recipe's budget")


class FineTuneOptions(TrainingOptions):
    """Train with the pruning schedule; input `model`, which stays unchanged if the recipe has no sparsity.

    For a plan with distillation, the input `trained` is the float model to learn from.
    """

    requires = ("model",)
    learns_from_trained = True

    kind: Literal["fine_tune"] = "fine_tune"
    recipe: RecipeRef
    epochs: int | None = Field(
        default=None, ge=0, description="None: the recipe's budget, or 0 for a recipe without sparsity"
    )


class StripOptions(DataOptions):
    """Remove the pruning wrappers and check the sparsity of each kernel; input `model`."""

    requires = ("model",)

    kind: Literal["strip"] = "strip"
    recipe: RecipeRef


class QuantizeOptions(TrainingOptions):
    """Insert quantisers, calibrate, train the QAT epochs, export to TFLite; input `model`.

    For a plan with distillation, the input `trained` is the float model to learn from.

    Attributes:
        target: the device that the file is for; None takes the recipe's. A model with an operation that the device
            lacks is refused before it is trained.
    """

    requires = ("model",)
    makes = ("model", "tflite")
    learns_from_trained = True
    has_int8_outputs = True

    kind: Literal["quantize"] = "quantize"
    recipe: RecipeRef
    epochs: int | None = Field(default=None, ge=0, description="None takes the recipe's budget")
    target: TargetRef | None = later()


class EvaluateOptions(DataOptions):
    """Measure a TFLite file and, when given, the models from which it was made.

    Inputs: `tflite`; `model`, the float model that was quantised (pruned, if the recipe prunes); `quantized`, the QAT
    model; `trained`, the float model before pruning. The drop of the headline metric, the compression and the float
    size are against `trained`, or against `model` where `trained` is not given.

    Attributes:
        target: the device that the file is for; None takes the recipe's. Its tools measure the file's cost, and a file
            beyond its limits fails the step.
    """

    requires = ("tflite",)
    makes = ("layer_sqnr", "details")

    kind: Literal["evaluate"] = "evaluate"
    recipe: RecipeRef | None = None
    target: TargetRef | None = later()


class RegisterOptions(StepOptions):
    """Register the TFLite file in the model registry if every gate holds; input `tflite`.

    Attributes:
        name: of the registered model; MLflow takes any text without `/` and `:` that is no relative path.
        alias: of the version: letters, digits, `_` and `-`; MLflow keeps `latest` and `v1`, `v2`, ... for itself.
        metrics: of the file, from the step `evaluate`.
        gates: metric name -> lowest value with which the file is registered.
        policy: further rules that have to hold.
        headline: gives the direction of the task's metric; from the step `evaluate`.
        champion_alias: alias of the version with which rules compare.
        champion: metrics of that version; filled in from the registry before the step runs. None where there is no
            champion.
        promote: whether the registered version gets the alias of the champion at once.
    """

    requires = ("tflite",)
    recorded = Recorded.VERSION

    kind: Literal["register"] = "register"
    name: str = Field(min_length=1, max_length=_LONGEST_REGISTERED, pattern=r"^[^/:\x00-\x1f]*$")
    alias: str = Field(default="candidate", max_length=_LONGEST_REGISTERED - 1, pattern=r"^[\w-]+$")
    metrics: dict[str, float] = Field(default_factory=dict)
    gates: dict[str, float] = Field(default_factory=dict)
    policy: Policy | None = later()
    headline: Headline | None = later()
    champion_alias: str = later("champion", max_length=_LONGEST_REGISTERED - 1, pattern=r"^[\w-]+$")
    champion: dict[str, float] | None = later()
    promote: bool = later(False)

    @model_validator(mode="after")
    def _has_two_aliases(self) -> Self:
        if self.alias == self.champion_alias:
            raise ValueError(f"another alias than {self.champion_alias}, which `promote` gives")
        return self

    @property
    def rules(self) -> list[Rule]:
        """All rules: the gates, and those of the policy."""
        return rules_of(self.gates, self.policy.rules if self.policy else ())

    @property
    def compares_with_champion(self) -> bool:
        """Whether a rule compares with the champion."""
        return any(rule.needs_champion for rule in self.rules)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name.strip() in {"", ".", ".."}:
            raise ValueError("a name with a letter or a digit")
        return name

    @field_validator("alias", "champion_alias")
    @classmethod
    def _is_free(cls, alias: str) -> str:
        if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
            raise ValueError("an alias that MLflow does not keep for itself, as it does `latest`, `v1`, `v2`, ...")
        return alias


class ListOptions(StepOptions):
    """List the names in a catalogue, such as models or recipes; output `list` (JSON)."""

    makes = ("list",)

    kind: Literal["list"] = "list"
    what: Literal["architectures", "models", "datasets", "recipes", "targets", "tasks"] = "architectures"


class CompatOptions(StepOptions):
    """Run a shard of the compat matrix; a failed cell does not fail the step. Output `cells` (JSON).

    Attributes:
        label: name of the shard in Airflow's UI.
        force: run every cell, even if its inputs are unchanged.
        time_limit_s: wall time limit of a cell in seconds.
        memory_limit_gib: limit of a cell's resident memory in GiB; the largest cell, ConvNeXtXLarge, used 17.0.
        python: interpreter of another environment that runs the cells, for a forecast; their results are not cached as
            results of this environment.
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
    """Judge a sweep and make its page; inputs are the `cells` of its shards, outputs `sweep` (JSON) and `page` (HTML).

    Attributes:
        architectures: all requested architectures; an architecture without a result is missing and counts as failed.
        recipes: names of all requested recipes.
        repros: make a repro of each regression: a script with the smallest part of the model that still fails.
    """

    makes = ("sweep", "page")
    reads_earlier_sweeps = True
    recorded = Recorded.SWEEP

    kind: Literal["summarize"] = "summarize"
    architectures: tuple[str, ...] = Field(min_length=1)
    recipes: tuple[str, ...] = Field(min_length=1)
    repros: bool = True


class ForecastOptions(StepOptions):
    """Compare cells under this environment's versions with the same cells under others; output `forecast` (JSON).

    Inputs are the `cells` of shards: `now_0000`, `now_0001`, ... and `then_0000`, ...
    """

    makes = ("forecast",)
    recorded = Recorded.SUMMARY

    kind: Literal["forecast"] = "forecast"


class CloseRunOptions(StepOptions):
    """Log the chain's metrics on the parent run and end it; runs after a failure too.

    Attributes:
        steps: name of each step that succeeded -> its metrics.
        failed: names of the steps that did not succeed.
        headline: the metric by which the task's models are compared; None where no step measured a model.
    """

    recorded = Recorded.CLOSING

    kind: Literal["close_run"] = "close_run"
    steps: dict[str, dict[str, float]] = Field(default_factory=dict)
    failed: tuple[str, ...] = ()
    headline: Headline | None = later()


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
    | CandidateOptions
    | ChooseOptions
    | CloseRunOptions,
    Field(discriminator="kind"),
]
