"""What is added to Keras' training step: augmentation of the inputs, and learning from another model's outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import tensorflow as tf

from tfmot_ops.contract.training import Distillation
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.errors import SpecError

#: Smallest probability of which a logarithm is taken, as in Keras' losses.
_EPSILON = 1e-7
#: The same for outputs in int8: half of a step of 1 / 256. A smaller probability is rounded to 0, and must not look as
#: if it were far from the teacher's.
INT8_EPSILON = 1.0 / 512.0


class Outputs(Enum):
    """What the values of an output are, which decides how two models' outputs are compared."""

    VALUES = "values"
    #: One of several classes: the probabilities of a sample add up to 1.
    PROBABILITIES = "probabilities"
    LOGITS = "logits"
    #: Independent labels, or one score for two classes.
    LABEL_PROBABILITIES = "label probabilities"
    LABEL_LOGITS = "label logits"


@dataclass(frozen=True)
class Teacher:
    """The model whose outputs the trained model learns to reproduce (knowledge distillation).

    Attributes:
        model: float model with the same inputs and outputs as the trained model.
        outputs: what its outputs are.
        plan: weight and temperature.
        epsilon: smallest probability that the trained model's outputs can hold.
    """

    model: keras.Model
    outputs: Outputs
    plan: Distillation
    epsilon: float = _EPSILON


@dataclass(frozen=True)
class Additions:
    """What is added to the training step.

    Attributes:
        augmentation: (place of the changed input among the model's inputs; Keras layer), in their order.
        teacher: None learns from the targets alone.
    """

    augmentation: Sequence[tuple[int, Layer]] = field(default_factory=tuple)
    teacher: Teacher | None = None


@contextlib.contextmanager
def extended_train_step(model: keras.Model, additions: Additions, failures: list[Exception]) -> Iterator[None]:
    """In this context, `model` trains with the additions; the model itself, and what is saved of it, stays as it is.

    Args:
        model: compiled model.
        additions: what is added to its training step.
        failures: an error in the step is appended to it, as TensorFlow raises an error of its own that quotes it.
    """
    if not additions.augmentation and additions.teacher is None:
        yield
        return
    step = _Step(model, additions, failures)
    # On the object, not on its class: a user's own `train_step` and `compute_loss` are called.
    model.train_step, model.compute_loss = step.train_step, step.compute_loss
    try:
        yield
    finally:
        del model.train_step, model.compute_loss
        model.train_function = None  # traced with the additions


class _Step:
    """The model's own training step and loss, with the additions."""

    def __init__(self, model: keras.Model, additions: Additions, failures: list[Exception]) -> None:
        self._model, self._additions, self._failures = model, additions, failures
        self._train_step: Callable[[Any], Any] = model.train_step
        self._compute_loss: Callable[..., Any] = model.compute_loss
        #: `compute_loss` is called for the validation too, where the teacher does not count.
        self._is_training = False
        self._loss_was_computed = False

    def train_step(self, data: Any) -> Any:
        """One weight update, from (inputs, targets[, weights])."""
        inputs, *rest = data
        for place, layer in self._additions.augmentation:
            inputs = _augmented(inputs, place, layer, self._model)
        self._is_training, self._loss_was_computed = True, False
        try:
            answer = self._train_step((inputs, *rest))
        finally:
            self._is_training = False
        if self._additions.teacher is not None and not self._loss_was_computed:
            error = SpecError(
                f"{self._model.name} cannot learn from another model",
                required="a train_step that computes its loss by self.compute_loss",
                received=f"the train_step of {type(self._model).__name__}, which does not call it",
                remedy="call self.compute_loss in it, or leave training.distillation out",
            )
            self._failures.append(error)
            raise error
        return answer

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> Any:
        """The compiled loss; in training, with the distance to the teacher's outputs."""
        loss = self._compute_loss(x, y, y_pred, sample_weight)
        teacher = self._additions.teacher
        if teacher is None or not self._is_training:
            return loss
        self._loss_was_computed = True
        teacher_outputs = tf.nest.flatten(teacher.model(x, training=False))
        distance = tf.add_n(
            [
                output_distance(one, other, teacher.outputs, teacher.plan.temperature, teacher.epsilon)
                for one, other in zip(teacher_outputs, tf.nest.flatten(y_pred), strict=True)
            ]
        )
        return (1.0 - teacher.plan.weight) * loss + teacher.plan.weight * distance


def _augmented(inputs: Any, place: int, layer: Layer, model: keras.Model) -> Any:
    """Inputs of which one is augmented."""
    if isinstance(inputs, Mapping):
        name = list(model.input_names)[place]
        return {**inputs, name: layer(inputs[name], training=True)}
    if not isinstance(inputs, list | tuple):
        return layer(inputs, training=True)
    return type(inputs)(layer(one, training=True) if at == place else one for at, one in enumerate(inputs))


def output_distance(
    teacher_outputs: Any, student_outputs: Any, outputs: Outputs, temperature: float, epsilon: float = _EPSILON
) -> Any:
    """Mean distance of two models' outputs, a scalar.

    Args:
        teacher_outputs: outputs of the model to learn from, [N, ...].
        student_outputs: outputs of the trained model, of the same shape.
        outputs: what they are.
        temperature: divides the logits.
        epsilon: smallest probability of which a logarithm is taken.
    """
    teacher_outputs, student_outputs = (tf.cast(part, tf.float32) for part in (teacher_outputs, student_outputs))
    if outputs is Outputs.VALUES:
        return tf.reduce_mean(tf.square(student_outputs - teacher_outputs))
    if outputs in {Outputs.LABEL_PROBABILITIES, Outputs.LABEL_LOGITS}:
        if outputs is Outputs.LABEL_PROBABILITIES:
            teacher_outputs, student_outputs = (
                _log(part, epsilon) - _log(1.0 - part, epsilon) for part in (teacher_outputs, student_outputs)
            )
        soft = tf.sigmoid(teacher_outputs / temperature)
        cross_entropies = [
            tf.nn.sigmoid_cross_entropy_with_logits(labels=soft, logits=part / temperature)
            for part in (student_outputs, teacher_outputs)
        ]
    else:
        if outputs is Outputs.PROBABILITIES:
            teacher_outputs, student_outputs = _log(teacher_outputs, epsilon), _log(student_outputs, epsilon)
        soft = tf.nn.softmax(teacher_outputs / temperature)
        cross_entropies = [
            tf.nn.softmax_cross_entropy_with_logits(labels=soft, logits=part / temperature)
            for part in (student_outputs, teacher_outputs)
        ]
    # The second is the entropy of the teacher's own outputs: equal outputs have the distance 0.
    return tf.reduce_mean(cross_entropies[0] - cross_entropies[1]) * temperature**2


def _log(probabilities: Any, epsilon: float) -> Any:
    return tf.math.log(tf.clip_by_value(probabilities, epsilon, 1.0))
