"""The optimizer of a training: the compiled or the planned one, with its learning rate schedule and clipping."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Real
from typing import Any

import tensorflow as tf

from tfmot_ops.contract.training import Clipping, LearningRate, Part, RateSchedule
from tfmot_ops.core.keras.compiling import fresh_optimizer
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Optimizer
from tfmot_ops.errors import SpecError

_SCHEDULES = keras.optimizers.schedules
#: Field of a plan's `clipping` -> argument of Keras' optimizers.
_CLIPPING = {"norm": "clipnorm", "global_norm": "global_clipnorm", "value": "clipvalue"}


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose rate grows linearly from 0 in the first steps.

    Args:
        rate: a rate, or the schedule that is multiplied.
        steps: number of weight updates in which the rate grows.
        delay: weight updates after which the schedule begins to count.
    """

    def __init__(self, rate: Any, steps: int, delay: int = 0) -> None:
        self._rate, self._steps, self._delay = rate, steps, delay

    def __call__(self, step: Any) -> Any:
        """The rate of update number `step`, from 0; the first update has 1 / steps of the rate, not 0."""
        after = self._rate(tf.maximum(step - self._delay, 0)) if callable(self._rate) else self._rate
        grown = tf.minimum(tf.cast(step + 1, tf.float32) / float(max(1, self._steps)), 1.0)
        return tf.cast(after, tf.float32) * grown

    def get_config(self) -> dict[str, Any]:
        """The arguments, by which a checkpoint tells two trainings apart."""
        rate = keras.optimizers.schedules.serialize(self._rate) if callable(self._rate) else self._rate
        return {"rate": rate, "steps": self._steps, "delay": self._delay}


def rate_schedule(plan: LearningRate, rate: float, steps_per_epoch: int, epochs: int) -> Any:
    """The learning rate of each weight update: a number, or a Keras schedule.

    Args:
        plan: the shape of the schedule.
        rate: its highest rate.
        steps_per_epoch: weight updates in an epoch.
        epochs: of the training, the end of the half cosine.
    """
    warm_up = round(min(plan.warm_up_epochs, epochs / 2) * steps_per_epoch)
    value: Any = rate
    delay = 0
    if plan.schedule is RateSchedule.COSINE:
        value = _SCHEDULES.CosineDecay(rate, max(1, epochs * steps_per_epoch - warm_up), plan.final_share)
        delay = warm_up
    elif plan.schedule is RateSchedule.PIECEWISE:
        # Keras' schedule changes the rate after a boundary, and counts steps from 0.
        boundaries = [epoch * steps_per_epoch - 1 for epoch in sorted(plan.factors)]
        rates = [rate, *(rate * plan.factors[epoch] for epoch in sorted(plan.factors))]
        value = _SCHEDULES.PiecewiseConstantDecay(boundaries, rates)
    return WarmUp(value, warm_up, delay) if warm_up else value


def planned_optimizer(part: Part, learning_rate: LearningRate | None = None) -> Optimizer:
    """The optimizer that a plan names, with the highest rate of the plan's schedule where it has one.

    Raises:
        SpecError: tf_keras has no optimizer of this name, or its constructor does not take the arguments.
    """
    names = sorted(name for name in dir(keras.optimizers) if _is_optimizer(getattr(keras.optimizers, name)))
    if part.name not in names:
        raise SpecError(
            f"the training plan names an unknown optimizer {part.name!r}",
            required="one of " + ", ".join(names),
            received=repr(part.name),
            remedy="write the name of a class of tf_keras.optimizers",
        )
    rate = learning_rate.rate if learning_rate else None
    arguments = {**part.arguments, **({} if rate is None else {"learning_rate": rate})}
    try:
        optimizer: Optimizer = getattr(keras.optimizers, part.name)(**arguments)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"the optimizer {part.name} of the training plan cannot be made",
            required="arguments that its constructor takes",
            received=f"{part.arguments}: {str(error).strip().splitlines()[0]}",
            remedy=f"correct training.optimizer.arguments; the documentation of tf_keras.optimizers.{part.name} "
            "lists them",
        ) from error
    return optimizer


def _is_optimizer(value: object) -> bool:
    bases = keras.optimizers.Optimizer
    return isinstance(value, type) and issubclass(value, bases) and value is not bases


def compiled_rate(optimizer: Optimizer) -> float | None:
    """The learning rate of an optimizer; None if it follows a schedule."""
    rate = getattr(optimizer, "inner_optimizer", optimizer).get_config()["learning_rate"]
    return float(rate) if isinstance(rate, Real) else None


@contextlib.contextmanager
def replaced_optimizer(
    model: keras.Model, optimizer: Optimizer, rate: Any = None, clipping: Clipping | None = None
) -> Iterator[None]:
    """In this context, `model` trains with a copy of `optimizer`; afterwards it has its own optimizer again.

    So a later step starts from the compiled rate, and a saved model does not refer to a schedule class of this package.

    Args:
        model: the compiled model.
        optimizer: whose class and arguments the copy gets.
        rate: learning rate or schedule of the copy; None leaves that of `optimizer`.
        clipping: limit of the gradients, in the place of any that `optimizer` has; None leaves those.
    """
    own = model.optimizer
    changes = {} if rate is None else {"learning_rate": rate}
    if clipping is not None:
        changes |= {_CLIPPING[name]: value for name, value in clipping.model_dump().items()}
    try:
        if changes or optimizer is not own:
            model.optimizer = fresh_optimizer(optimizer, changes)
        yield
    finally:
        model.optimizer = own
