"""Own: targets of any kind for a model that brings its loss; measured by a metric by name, or by the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import JsonValue

from tfmot_ops.contract import Headline
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.errors import SpecError
from tfmot_ops.tasks.task import Facts, Scores, Task, Values

METRICS_GROUP = "tfmot_ops.metrics"
#: Parts of the names of Keras' metrics of which less is better.
_LOWER = ("error", "loss", "crossentropy", "divergence", "mse", "mae", "mape", "msle", "hinge", "poisson", "logcosh")
#: Names of the accuracy that Keras chooses by the shapes of targets and outputs.
_ACCURACY_NAMES = {"accuracy", "acc"}


class LossScores:
    """The loss with which a model is compiled, as the mean over the samples.

    Args:
        model: the compiled model whose loss is used, also for the outputs of a TFLite file.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._sum, self._samples = 0.0, 0

    def add(self, x: object, y: Values, outputs: Any) -> None:
        """Take in targets and outputs, one array [n, ...] each, or one for each output by name."""
        del x
        parts = list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]
        targets = [y[key] for key in outputs] if isinstance(y, Mapping) else y
        structure = tf.nest.pack_sequence_as(self._model.output, [tf.convert_to_tensor(part) for part in parts])
        loss = self._model.compute_loss(None, tf.nest.map_structure(tf.convert_to_tensor, targets), structure)
        self._sum += len(parts[0]) * float(loss)
        self._samples += len(parts[0])

    def metrics(self) -> dict[str, float]:
        """`loss`, in its own unit."""
        return {"loss": self._sum / self._samples if self._samples else math.nan}

    def details(self) -> dict[str, JsonValue]:
        """Nothing is known that a picture could show."""
        return {}


class MetricScores:
    """A metric of Keras, or a registered one, over all samples.

    Args:
        name: name in the result's metrics.
        metric: Keras metric with `update_state` and `result`.
        output: name of the output that is measured; None gives the metric all targets and outputs.
    """

    def __init__(self, name: str, metric: Any, output: str | None) -> None:
        self._name, self._metric, self._output = name, metric, output

    def add(self, x: object, y: Values, outputs: Any) -> None:
        """Take in targets and outputs, one array [n, ...] each, or one for each output by name."""
        del x
        if self._output is not None:
            y, outputs = y[self._output], outputs[self._output]
        self._metric.update_state(y, outputs)

    def metrics(self) -> dict[str, float]:
        """The metric, by its name."""
        return {self._name: float(np.asarray(self._metric.result()))}

    def details(self) -> dict[str, JsonValue]:
        """Nothing is known that a picture could show."""
        return {}


class Own(Task):
    """Whatever the compiled model is trained for.

    Args:
        metric: `<name>` or `<output>:<name>` of the headline: a metric of Keras, or one registered under the
            entry-point group `tfmot_ops.metrics`; None takes the compiled loss.
    """

    name = "own"
    description = "anything; the compiled model brings the loss, --metric names what is measured"

    takes_several = True

    def __init__(self, metric: str | None = None) -> None:
        self._output, _, self._metric = (metric or "").rpartition(":")
        self._key = (metric or "loss").replace(":", "_")

    def require_metric(self) -> None:
        """Refuse a metric that does not exist.

        Raises:
            SpecError: there is no metric of this name.
        """
        if self._metric:
            _metric(self._metric)

    def headline(self, facts: Facts) -> Headline:
        """The named metric, or the loss."""
        del facts
        if not self._metric:
            return Headline(name="loss", higher_is_better=False, is_share=False)
        return Headline(name=self._key, higher_is_better=_is_higher_better(self._metric), is_share=False)

    def problem(self, y: object) -> tuple[str, str] | None:
        """None: any targets are taken."""
        del y
        return None

    def canonical(self, y: object) -> Any:
        """Targets as they are."""
        return y

    def output_shape(self, facts: Facts) -> str:
        """Any."""
        if isinstance(facts.target_shape, Mapping):
            return f"outputs for the targets {', '.join(facts.target_shape)}"
        return "outputs of any shape"

    def fits(self, shapes: list[tuple[int | None, ...]], facts: Facts) -> bool:
        """As many outputs as there are targets."""
        return not isinstance(facts.target_shape, Mapping) or len(shapes) == len(facts.target_shape)

    def compile(self, model: keras.Model, facts: Facts, samples: object, learning_rate: float) -> str:
        """Refuse: this task has no loss of its own.

        Raises:
            SpecError: always.
        """
        del facts, samples, learning_rate
        raise SpecError(
            f"model {model.name} has no loss",
            required="a compiled model for the task own, or a task with a loss",
            received="a model without compile configuration",
            remedy="compile the model before you save it, or give --task",
        )

    def scores(self, facts: Facts, model: keras.Model | None = None) -> Scores:
        """New, empty scores; `model` brings the loss and the names of its outputs."""
        if not self._metric:
            if model is None:
                raise SpecError(
                    "the task own cannot measure a TFLite file alone",
                    required="the model that the file was made from, or the name of a metric",
                    received="neither",
                    remedy="give the evaluate step its input `model`, or set options.metric",
                )
            return LossScores(model)
        return MetricScores(self._key, _metric(self._metric), self._measured_output(facts))

    def _measured_output(self, facts: Facts) -> str | None:
        names = list(facts.target_shape) if isinstance(facts.target_shape, Mapping) else []
        if self._output and self._output not in names:
            raise SpecError(
                f"the metric {self._output}:{self._metric} names no output",
                required="one of " + ", ".join(names) if names else "a metric alone, as there is one output",
                received=self._output,
                remedy="write the metric as <output>:<metric>, or as <metric> for a model with one output",
            )
        if names and not self._output and _registered(self._metric) is None:
            raise SpecError(
                f"the metric {self._metric} measures one output, and there are several",
                required=f"one of {', '.join(f'{name}:{self._metric}' for name in names)}",
                received=self._metric,
                remedy="name the output before the metric",
            )
        return self._output or None


def _registered(name: str) -> Any:
    return next((entry.load() for entry in entry_points(group=METRICS_GROUP, name=name)), None)


def _is_higher_better(name: str) -> bool:
    registered = getattr(_registered(name), "higher_is_better", None)
    return bool(registered) if registered is not None else not any(part in name.lower() for part in _LOWER)


def _metric(name: str) -> Any:
    """A new metric object by the name of a registered metric or of one of tf_keras.metrics."""
    found, reason = _registered(name), "no metric of this name"
    try:
        # Keras gives a name that it does not know back.
        found = found if found is not None else keras.metrics.get(name)
        found = found() if isinstance(found, type) else found
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
    if not callable(found):
        raise SpecError(
            f"there is no metric named {name!r}",
            required=f"a metric of tf_keras.metrics that needs no arguments, or one registered under {METRICS_GROUP}",
            received=f"{name!r}: {reason}",
            remedy="check the spelling, or register the metric in an installed package",
        )
    if hasattr(found, "update_state"):
        return found
    return keras.metrics.MeanMetricWrapper(_accuracy_by_shape(found) if name in _ACCURACY_NAMES else found, name=name)


def _accuracy_by_shape(function: Any) -> Any:
    """Accuracy that compares labels [n] with scores [n, classes] as well, which Keras does in `compile` only."""

    def accuracy(y: Any, outputs: Any) -> Any:
        if len(y.shape) < len(outputs.shape) and outputs.shape[-1] != 1:
            return keras.metrics.sparse_categorical_accuracy(y, outputs)
        return function(y, outputs)

    return accuracy


TASK = Own()
