"""Task, the seam between the meaning of a data set's targets and everything that trains, measures or reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import JsonValue

from tfmot_ops.contract import Headline
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, TensorLike
from tfmot_ops.core.training.train_step import Outputs
from tfmot_ops.errors import SpecError, UnsupportedModelError

#: Shape of one sample, or of the sample of each input or output by name.
Shape = tuple[int, ...] | Mapping[str, tuple[int, ...]]
#: Targets or outputs of samples: one array [N, ...], or one per output by name.
Values = Array | Mapping[str, Array]


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before a model is built.

    Attributes:
        input_shape: shape of one sample's input, without the batch axis; by name for several inputs.
        target_shape: shape of one sample's target; by name for several outputs.
        outputs: number of classes, labels or values that a sample's target has; None for a task whose outputs have the
            shape of its targets.
        class_names: name of each class, by label; empty where there are none.
        has_test_targets: whether the test samples have targets of their own.
    """

    input_shape: Shape
    target_shape: Shape
    outputs: int | None = None
    class_names: tuple[str, ...] = ()
    has_test_targets: bool = True


class Scores(Protocol):
    """Adds up what a model's outputs say, batch by batch, to the metrics of a task."""

    def add(self, x: Any, y: Any, outputs: Any) -> None:
        """Take in a batch: inputs [n, ...], targets [n, ...] and the model's outputs [n, ...], as real values."""

    def metrics(self) -> dict[str, float]:
        """Metric name -> value over all batches; NaN for a metric that the targets do not define."""

    def details(self) -> dict[str, JsonValue]:
        """What a picture of the result is drawn from; empty where there is none."""


class Task(ABC):
    """What the targets of a data set mean: which outputs a model needs, how it is trained, and how it is measured.

    A module of this package with a `TASK` is a task; an installed package registers its own under the entry-point group
    `tfmot_ops.tasks`.
    """

    #: Name by which a user, a data source or a recipe asks for the task.
    name: ClassVar[str]
    #: What the targets are, in one line.
    description: ClassVar[str]
    #: Whether the inputs are the targets in training.
    learns_its_input: ClassVar[bool] = False
    #: Whether the targets may be several columns by name, one for each output.
    takes_several: ClassVar[bool] = False
    #: Whether the largest of a model's last axis of outputs is a class.
    predicts_classes: ClassVar[bool] = False
    #: Whether the targets have a place in the input, such as a label for each pixel.
    targets_have_places: ClassVar[bool] = False
    #: Smallest number of classes, labels or values with which the task makes sense.
    fewest_outputs: ClassVar[int] = 0

    @abstractmethod
    def headline(self, facts: Facts) -> Headline:
        """The metric by which the models of this task are compared."""

    @abstractmethod
    def problem(self, y: Any) -> tuple[str, str] | None:
        """(required, received) if targets [N, ...] are not of this task, else None."""

    def problem_together(self, y: Any, y_test: Any, class_names: tuple[str, ...]) -> tuple[str, str] | None:
        """(required, received) if canonical training and test targets cannot be learnt and measured together.

        Args:
            y: targets of all samples but the test set's.
            y_test: targets of the test set; None without one.
            class_names: name of each class, by label; empty where there are none.
        """
        del y, y_test, class_names
        return None

    @abstractmethod
    def canonical(self, y: Any) -> Any:
        """The targets in the type and shape in which this task trains and measures."""

    def outputs(self, y: Array, class_names: tuple[str, ...]) -> int | None:
        """Number of classes, labels or values in the canonical targets `y`; see `Facts.outputs`."""
        del y, class_names
        return None

    @abstractmethod
    def output_shape(self, facts: Facts) -> str:
        """The output that a model of this task needs, as text for a refusal: `(None, 10)`."""

    @abstractmethod
    def fits(self, shapes: list[tuple[int | None, ...]], facts: Facts) -> bool:
        """Whether a model with outputs of these shapes, each without its batch axis, can be trained and measured."""

    def head(self, features: TensorLike, outputs: int) -> Any:
        """The last layers of a built-in model.

        Args:
            features: feature maps [N, H, W, C], a series of features [N, T, C], or rows of features [N, C].
            outputs: see `Facts.outputs`.

        Raises:
            SpecError: a model for this task has no head of this kind.
        """
        del outputs
        raise SpecError(
            f"the task {self.name} has no head for a built-in model",
            required="a model that is made for the task",
            received=f"a built-in model with features of shape {list(features.shape)}",
            remedy="give a model of your own: a saved file, or a builder registered under tfmot_ops.models",
        )

    @abstractmethod
    def compile(self, model: keras.Model, facts: Facts, samples: object, learning_rate: float) -> str:
        """Compile a model that has no compile configuration, in place.

        Args:
            model: a model whose outputs fit the task.
            facts: of the data set.
            samples: some inputs [n, ...].
            learning_rate: of Adam.

        Returns:
            What was chosen and why, as a sentence for the log.
        """

    def targets_for(self, model: keras.Model, x: object, y: Any, facts: Facts) -> Callable[[Any], Any]:
        """Function that turns canonical targets into those that the model's loss takes.

        Args:
            model: a compiled model.
            x: a few inputs [n, ...].
            y: their canonical targets [n, ...].
            facts: of the data set.
        """
        del model, x, y, facts
        return lambda targets: targets

    def outputs_are(self, model: keras.Model, samples: object) -> Outputs:
        """What a model's outputs are, for a comparison with another model's.

        Args:
            model: a compiled model.
            samples: some inputs [n, ...].
        """
        del model, samples
        return Outputs.VALUES

    @abstractmethod
    def scores(self, facts: Facts, model: keras.Model | None = None) -> Scores:
        """New, empty scores; `model` is the measured model, or the one that the measured file was made from."""


def pooled(features: TensorLike) -> Any:
    """Rows of features [N, C]: the mean of feature maps [N, H, W, C] or of a series [N, T, C], or rows as they are."""
    layers = keras.layers
    pooling = {4: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling1D}.get(len(features.shape))
    return features if pooling is None else pooling(name="pool")(features)


def single(outputs: Any, task: str) -> Array:
    """The output of a model that has one.

    Raises:
        UnsupportedModelError: it has several.
    """
    if isinstance(outputs, list | tuple | Mapping):
        raise UnsupportedModelError(
            f"the task {task} measures one output",
            required="a model with one output",
            received=f"{len(outputs)} outputs",
            remedy="use the task `own`, or register a task of your own under tfmot_ops.tasks",
        )
    array: Array = outputs
    return array


def adam(model: keras.Model, learning_rate: float, loss: Any, metrics: list[Any]) -> None:
    """Compile `model` in place with Adam."""
    model.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=loss, metrics=metrics)
