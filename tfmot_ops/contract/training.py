"""TrainingPlan: how a model is trained, as data. Loads no TensorFlow, so that Airflow can read and check a plan."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from tfmot_ops.contract.document import Document
from tfmot_ops.contract.scope import Scope


class _PlanDocument(Document):
    """Base of the parts of a plan: numbers are finite."""

    model_config = ConfigDict(**Document.model_config, allow_inf_nan=False)


class Part(_PlanDocument):
    """An optimizer or a layer by its name, with the arguments of its constructor.

    Attributes:
        name: name of a class of tf_keras.optimizers; of an augmentation also a name that an installed package
            registers.
        arguments: constructor arguments by name; the class's own defaults for those left out.
    """

    name: str = Field(min_length=1)
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class Augmentation(Part):
    """A layer that changes the inputs in training only.

    Attributes:
        input: name of the input that is changed; None for a model with one input.
    """

    input: str | None = Field(default=None, min_length=1)


class RateSchedule(StrEnum):
    """How the learning rate changes during the epochs of a step."""

    CONSTANT = "constant"
    COSINE = "cosine"
    PIECEWISE = "piecewise"


class LearningRate(_PlanDocument):
    """The learning rate over the epochs of each training step.

    Attributes:
        rate: the highest rate. None takes the compiled rate. Quantisation-aware training takes a tenth, and a rate of
            the recipe's budget comes first.
        schedule: `cosine` falls from `rate` to `final_share` of it along a half cosine (Loshchilov & Hutter 2017,
            arXiv:1608.03983); `piecewise` multiplies `rate` by a factor from an epoch on.
        warm_up_epochs: epochs in which the rate grows linearly from 0; at most half of the step's epochs are taken.
        final_share: for `cosine`: share of the rate at the end.
        factors: for `piecewise`: epoch, counted from 0 -> factor of the rate from this epoch on.
    """

    rate: float | None = Field(default=None, gt=0.0)
    schedule: RateSchedule = RateSchedule.CONSTANT
    warm_up_epochs: float = Field(default=0.0, ge=0.0)
    final_share: float = Field(default=0.0, ge=0.0, le=1.0)
    factors: dict[int, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _factors_are_piecewise(self) -> LearningRate:
        is_piecewise = self.schedule is RateSchedule.PIECEWISE
        if is_piecewise and not self.factors:
            raise ValueError("the schedule piecewise needs factors by epoch, such as {10: 0.1}")
        if self.factors and not is_piecewise:
            raise ValueError(f"factors are for the schedule piecewise alone, received {self.schedule}")
        if any(epoch < 1 or factor <= 0.0 for epoch, factor in self.factors.items()):
            raise ValueError("factors: epochs of at least 1, with a factor above 0")
        if self.final_share and self.schedule is not RateSchedule.COSINE:
            raise ValueError(f"final_share for the schedule cosine alone, received {self.schedule}")
        return self


class EarlyStopping(_PlanDocument):
    """Ends a training that no longer improves; the weights of its best epoch are the result.

    While pruning zeroes more and more weights, no epoch counts: the first that does is the one after the sparsity has
    reached its target, or the last if there is none.

    Attributes:
        metric: name in the training's report: `val_loss`, `val_accuracy`, `loss`, ...
        patience: epochs without improvement after which the training ends.
        min_delta: smallest change that counts as an improvement, in the metric's unit.
        higher_is_better: direction of the metric; None follows from its name.
    """

    metric: str = Field(default="val_loss", min_length=1)
    patience: int = Field(default=3, ge=1)
    min_delta: float = Field(default=0.0, ge=0.0)
    higher_is_better: bool | None = None


class Clipping(_PlanDocument):
    """Limit of the gradients: exactly one of the three.

    Attributes:
        norm: largest L2 norm of the gradient of each weight array.
        global_norm: largest L2 norm of all gradients together.
        value: largest absolute value of each gradient.
    """

    norm: float | None = Field(default=None, gt=0.0)
    global_norm: float | None = Field(default=None, gt=0.0)
    value: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _one_is_given(self) -> Clipping:
        given = [limit for limit in (self.norm, self.global_norm, self.value) if limit is not None]
        if len(given) != 1:
            raise ValueError(f"one of norm, global_norm and value; received {len(given)} of them")
        return self


class Distillation(_PlanDocument):
    """Fine-tuning and quantisation-aware training learn from the trained float model's outputs, too.

    The loss is (1 - weight) x the compiled loss + weight x the distance to the float model's outputs: for classes the
    Kullback-Leibler divergence at the temperature, times its square (Hinton et al. 2015, arXiv:1503.02531); for other
    outputs the mean squared error. Weights of classes and samples are for the compiled loss, not for the distance.

    Attributes:
        weight: share of the distance in the loss.
        temperature: divides the logits of both models, so that small probabilities count more.
    """

    weight: float = Field(default=0.5, gt=0.0, le=1.0)
    temperature: float = Field(default=4.0, gt=0.0)


class TrainingPlan(_PlanDocument):
    """How a model is trained: what is given here replaces the default, for each step that trains.

    Attributes:
        optimizer: replaces the compiled one.
        class_weights: factor of the loss of a class's samples, by label or name of the class; `balanced` gives each
            class the same share, by its count in the training set. A class that is left out has the factor 1.
        frozen: layers that are not trained; only what `include` names. A frozen BatchNormalization keeps its
            statistics. Pruning still zeroes weights of a frozen layer that the recipe's scope does not leave out.
        augmentation: layers that change each batch of inputs in this order; they are not part of the model.
    """

    optimizer: Part | None = None
    learning_rate: LearningRate | None = None
    early_stopping: EarlyStopping | None = None
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    clipping: Clipping | None = None
    frozen: Scope | None = None
    augmentation: tuple[Augmentation, ...] = ()
    distillation: Distillation | None = None

    @model_validator(mode="before")
    @classmethod
    def _labels_are_text(cls, document: object) -> object:
        """YAML reads the label in `0: 1.5` as a number, and JSON has no keys but text."""
        weights = document.get("class_weights") if isinstance(document, dict) else None
        if isinstance(weights, dict) and any(isinstance(label, bool) for label in weights):
            raise ValueError("class_weights: yes, no, on and off are truth values in YAML; write 'yes' in quotes")
        if isinstance(document, dict) and isinstance(weights, dict):
            return {**document, "class_weights": {str(label): weight for label, weight in weights.items()}}
        return document

    @model_validator(mode="after")
    def _is_complete(self) -> TrainingPlan:
        if self.frozen is not None and not self.frozen.include:
            raise ValueError("frozen: at least one layer in include")
        if isinstance(self.class_weights, dict) and any(weight < 0.0 for weight in self.class_weights.values()):
            raise ValueError("class_weights: weights of at least 0")
        return self
