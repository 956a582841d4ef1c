"""The base classes of the options of all kinds of steps, which describe a kind to the code that runs and records it."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Self

from pydantic import Field

from tfmot_ops.contract.document import Document, later
from tfmot_ops.contract.recipe import Recipe
from tfmot_ops.contract.target import TargetRef
from tfmot_ops.contract.training import TrainingPlan

RecipeRef = Recipe | str


class Recorded(StrEnum):
    """Which MLflow run a step writes to, and what it writes."""

    RESULT = "the step's own run: its result, figures, parameters and layers"
    OPENING = "the parent run, which the step opens with its parameters"
    CLOSING = "the parent run, which gets the figures of the whole chain"
    SWEEP = "the parent run, which gets the table and the page of the sweep"
    SUMMARY = "the parent run, which gets the step's result"
    VERSION = "as RESULT, and a version of the registered model"

    @property
    def is_on_the_parent(self) -> bool:
        """Whether the step writes to the parent run and therefore has no child run."""
        return self in {Recorded.CLOSING, Recorded.SWEEP, Recorded.SUMMARY}


class StepOptions(Document):
    """Options of a kind of step. The class variables describe the kind to the code that checks, runs or records it.

    Attributes:
        requires: names of the required input artifacts.
        makes: names of the output artifacts that a step of this kind may make.
        computes_with_a_model: whether the step needs a device, seeds and a fresh Keras session.
        reads_earlier_sweeps: whether earlier sweeps are downloaded from MLflow for the step.
        model_field: name of the field with the initial model (possibly an MLflow URI); None without such a field.
        recorded: which MLflow run the step writes to, and what it writes.
        is_a_chain: whether the step consists of other steps, each with its own spec and MLflow run.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[tuple[str, ...]] = ()
    computes_with_a_model: ClassVar[bool] = False
    reads_earlier_sweeps: ClassVar[bool] = False
    model_field: ClassVar[str | None] = None
    recorded: ClassVar[Recorded] = Recorded.RESULT
    is_a_chain: ClassVar[bool] = False

    @property
    def named_model(self) -> str | None:
        """Name, path or URI of the initial model; None for a kind without an initial model."""
        return getattr(self, self.model_field) if self.model_field else None

    def with_model(self, model: str) -> Self:
        """A copy of the options with another initial model."""
        return self.model_copy(update={self.model_field: model}) if self.model_field else self

    @property
    def named_recipe(self) -> RecipeRef | None:
        """The recipe or its name; None if the kind has no recipe or the options give none."""
        return getattr(self, "recipe", None)

    @property
    def named_target(self) -> TargetRef | None:
        """The device that the file is for: the target of the options, else the recipe's; None for no certain device."""
        recipe = self.named_recipe
        own: TargetRef | None = getattr(self, "target", None)
        return own or (recipe.target if isinstance(recipe, Recipe) else None)

    @property
    def named_epochs(self) -> int | None:
        """Number of epochs; None if the kind does not train, or if the recipe or the step's own default decides."""
        return getattr(self, "epochs", None)


class DataOptions(StepOptions):
    """Options of a kind that computes with a model on a data set.

    Attributes:
        task: name of the task, which says what the targets mean; None takes the data set's, or infers it from the
            targets.
        metric: name of the headline metric of the task `own`; None takes the first metric of the compiled model.
    """

    makes: ClassVar[tuple[str, ...]] = ("model",)
    computes_with_a_model = True

    dataset: str = Field(min_length=1)
    task: str | None = later(min_length=1)
    metric: str | None = later(min_length=1)
    batch_size: int = Field(default=64, ge=1)
    limit: int | None = Field(default=None, ge=50, description="maximum number of training samples")


class TrainingOptions(DataOptions):
    """Options of a kind that trains a model.

    Attributes:
        training: how to train; None takes the plan in the recipe.
        learns_from_trained: whether the plan's distillation applies: the step changes a model that was trained before.
        has_int8_outputs: whether the outputs of the trained model are rounded to int8.
    """

    learns_from_trained: ClassVar[bool] = False
    has_int8_outputs: ClassVar[bool] = False

    training: TrainingPlan | None = later()

    @property
    def plan(self) -> TrainingPlan:
        """The training plan of the options, else the recipe's, else an empty one."""
        recipe = self.named_recipe
        return self.training or (recipe.training if isinstance(recipe, Recipe) else None) or TrainingPlan()
