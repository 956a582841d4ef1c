"""Metrics of a model or a TFLite file on a part of the data set, as the task defines them, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tfmot_ops.contract import Headline
from tfmot_ops.errors import SpecError
from tfmot_ops.tasks.in_order import in_order, keys_in_order

if TYPE_CHECKING:
    from tfmot_ops.core.keras.types import Model
    from tfmot_ops.data.splits import Dataset
    from tfmot_ops.tasks.task import Scores


def score(
    data: Dataset,
    part: str,
    model_or_bytes: Model | bytes,
    model: Model | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Scores:
    """Measure a model or a TFLite file on a part of the data set.

    Args:
        data: the data set.
        part: `test` or `validation`.
        model_or_bytes: tf_keras model or TFLite file.
        model: for a file, the model it was made from; which has the order of its inputs and outputs.
        on_batch: called with (samples done, samples) after each batch.

    Raises:
        SpecError: the data set has several inputs or outputs, and a file is measured without its model.
        StepFailedError: an output is NaN or infinite.
        SamplesError: the samples do not fit the model.
        UnsupportedModelError: the outputs are not those of the task.
    """
    from tfmot_ops.core.measure.predictions import outputs_by_batch

    named = model_or_bytes if not isinstance(model_or_bytes, bytes) else model
    x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
    if data.task.learns_its_input and part == "validation":
        y = None
    if named is None and (isinstance(x, Mapping) or isinstance(data.facts.target_shape, Mapping)):
        raise SpecError(
            "a TFLite file does not name its inputs and outputs, and the data set has several",
            required="the model that the file was made from, which has their order",
            received="the file alone",
            remedy="give the step its input `model`",
        )
    columns, keys = x if named is None else in_order(x, list(named.input_names), "input"), None
    if isinstance(data.facts.target_shape, Mapping) and named is not None:
        keys = keys_in_order(list(data.facts.target_shape), list(named.output_names), "output")
    scores = data.task.scores(data.facts, named)
    for index, outputs in outputs_by_batch(model_or_bytes, columns, on_batch=on_batch):
        named_outputs = dict(zip(keys, outputs, strict=True)) if keys and isinstance(outputs, list) else outputs
        scores.add(_part(x, index), _part(y, index), named_outputs)
    return scores


def _part(samples: Any, index: slice) -> Any:
    if samples is None:
        return None
    if isinstance(samples, Mapping):
        return {key: column[index] for key, column in samples.items()}
    return samples[index]


def validation_metric(metrics: Mapping[str, float], headline: Headline) -> dict[str, float]:
    """The headline of the validation samples as `validation_<name>`; the first metric where it is not defined."""
    name = headline.name if headline.name in metrics else next(iter(metrics))
    return {f"validation_{name}": metrics[name]}
