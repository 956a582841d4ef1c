"""Metrics of a model or a TFLite file on samples that are given in Python, as their task defines them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array
from tfmot_ops.core.measure.predictions import BATCH_SIZE, finite_outputs, outputs_by_batch
from tfmot_ops.core.tflite.interpreter import Inputs
from tfmot_ops.errors import SamplesError, SpecError
from tfmot_ops.tasks.by_name import inferred, task_named
from tfmot_ops.tasks.in_order import in_order, keys_in_order
from tfmot_ops.tasks.task import Facts, Task, Values

#: Samples of a tf.data.Dataset that are run together: each call of Keras' `predict` takes a while.
_TOGETHER = 512
#: How far the sums of one-hot targets' outputs may be from 1 on average, so that the outputs are probabilities; int8
#: rounds each to a multiple of 1/256.
_SUM_TOLERANCE = 0.1


def evaluate(
    model_or_bytes: keras.Model | bytes,
    x: Inputs | Mapping[str, Array] | tf.data.Dataset,
    y: Values | list[Array] | None = None,
    batch_size: int = BATCH_SIZE,
    *,
    task: str | None = None,
    metric: str | None = None,
) -> dict[str, float]:
    """Measure a model or a TFLite file; the task says which metrics there are.

    Without `task`, targets and outputs say it: integers [N] are classes, as are one-hot rows [N, classes] beside
    probabilities; integers [N, H, W] are a segmentation, floats [N] or [N, values] a regression, 0 and 1 [N, labels]
    independent labels. No targets, or the inputs once more, are a reconstruction. Several targets are measured by the
    model's compiled loss (task `own`).

    Args:
        model_or_bytes: Keras model or TFLite file.
        x: inputs [N, ...], one array per input in a list, or by the input's name; or a tf.data.Dataset whose batches
            are inputs, or tuples of inputs, targets and perhaps weights. Weights of samples are not used.
        y: targets [N, ...]; a list, or a dict by output, for several outputs. None with a Dataset.
        batch_size: samples that are run at once; does not change the result.
        task: name of the task (`tfmot-ops list tasks`), where targets and outputs do not say it.
        metric: for the task `own`: `<name>` or `<output>:<name>` of a metric of Keras, or of a registered one.

    Returns:
        Metric name -> value, NaN where the targets do not define it: `accuracy`, `macro_f1` (and `top5_accuracy` from
        six classes on) of a classifier; `rmse`, `mae`, `r2`; `mean_iou`, `pixel_accuracy`; `mean_average_precision`,
        `macro_f1`; `error` of a reconstruction, with flags 0 and 1 as targets also `auc`, `partial_auc`; `loss`.

    Raises:
        SpecError: no task follows, the task's targets or outputs are others, or there is no such task.
        SamplesError: the inputs do not fit the model, or the number of targets is not N.
        ArtifactError: the bytes are no TFLite file.
        StepFailedError: an output is NaN or infinite.
    """
    batches = _batches(model_or_bytes, x, y, batch_size)
    first = next(batches, None)
    if first is None:
        raise SamplesError(
            "there are no samples",
            required="at least one sample with its target",
            received="an empty tf.data.Dataset" if isinstance(x, tf.data.Dataset) else "empty arrays",
            remedy="check where the samples come from; a Dataset may drop a batch that is not full",
        )
    inputs, targets, outputs = first
    # Of arrays all targets are looked at, of a Dataset the first ones; later ones that say something else are refused.
    known = targets if isinstance(x, tf.data.Dataset) else _by_output(model_or_bytes, y)
    asked = task_named(task or "own", metric) if task is not None or metric is not None else None
    chosen = asked or task_named(_inferred(model_or_bytes, inputs, known, outputs))
    known = _prepared(chosen, inputs, known, outputs)
    facts = _facts(chosen, inputs, known, outputs)
    _require_fit(chosen, facts, known, outputs, is_inferred=asked is None)
    _require_loss(chosen, metric, model_or_bytes)
    scores = chosen.scores(facts, None if isinstance(model_or_bytes, bytes) else model_or_bytes)
    while True:
        part = _prepared(chosen, inputs, targets, outputs)
        _require_targets(chosen, part)
        _require_rows(inputs, outputs)
        scores.add(inputs, part if part is None else chosen.canonical(part), outputs)
        following = next(batches, None)
        if following is None:
            return scores.metrics()
        inputs, targets, outputs = following


def _require_rows(inputs: Any, outputs: Any) -> None:
    """Refuse outputs that are not one row per sample, as those of a file that moves the batch into another axis."""
    samples = len(tf.nest.flatten(inputs)[0])
    shapes = [list(np.shape(output)) for output in tf.nest.flatten(outputs)]
    if any(shape[:1] != [samples] for shape in shapes):
        raise SamplesError(
            "the outputs do not fit the samples",
            required=f"one row per sample: outputs of shape [{samples}, ...]",
            received=f"outputs of shape {', '.join(map(str, shapes))}",
            remedy="measure a model that keeps the batch on the first axis of each output",
        )


def _batches(model_or_bytes: keras.Model | bytes, x: Any, y: Any, batch_size: int) -> Iterator[tuple[Any, Any, Any]]:
    """(inputs, targets, outputs) batch by batch; several outputs, with their targets, by name."""
    if isinstance(x, tf.data.Dataset):
        if y is not None:
            raise SpecError(
                "a tf.data.Dataset brings its targets along",
                required="a Dataset of (inputs, targets), or arrays of inputs and targets",
                received="a Dataset, and targets beside it",
                remedy="leave y out, or put it into the Dataset",
            )
        yield from _of_dataset(model_or_bytes, x, batch_size)
        return
    columns, targets = _columns(model_or_bytes, x), _by_output(model_or_bytes, y)
    several = columns if isinstance(columns, list | tuple) else [columns]
    several = [np.asarray(column) for column in several]
    _require_as_many(len(several[0]), targets)
    for index, outputs in outputs_by_batch(model_or_bytes, several, batch_size):
        part = _part(targets, index)
        yield _one([column[index] for column in several]), part, _outputs_by_name(model_or_bytes, outputs, targets)


def _part(targets: Any, index: slice) -> Any:
    if isinstance(targets, Mapping):
        return {key: column[index] for key, column in targets.items()}
    return None if targets is None else targets[index]


def _of_dataset(
    model_or_bytes: keras.Model | bytes, data: tf.data.Dataset, batch_size: int
) -> Iterator[tuple[Any, Any, Any]]:
    waiting: list[Any] = []
    samples = first = 0
    for batch in data:
        parts = batch if isinstance(batch, tuple) else (batch,)
        inputs = tf.nest.map_structure(np.asarray, _columns(model_or_bytes, parts[0]))
        targets = tf.nest.map_structure(np.asarray, parts[1]) if len(parts) > 1 else None
        waiting.append((inputs, _by_output(model_or_bytes, targets)))
        samples += len(tf.nest.flatten(inputs)[0])
        if samples >= _TOGETHER:
            yield _run(model_or_bytes, waiting, batch_size, first)
            waiting, samples, first = [], 0, first + samples
    if waiting:
        yield _run(model_or_bytes, waiting, batch_size, first)


def _run(model_or_bytes: keras.Model | bytes, waiting: list[Any], batch_size: int, first: int) -> tuple[Any, Any, Any]:
    """Several batches as one, with the outputs."""
    joined = tf.nest.map_structure(lambda *parts: None if parts[0] is None else np.concatenate(parts), *waiting)
    inputs, targets = joined
    _require_as_many(len(tf.nest.flatten(inputs)[0]), targets)
    outputs = finite_outputs(model_or_bytes, inputs, batch_size, first)
    return inputs, targets, _outputs_by_name(model_or_bytes, outputs, targets)


def _one(columns: list[Any]) -> Any:
    return columns[0] if len(columns) == 1 else columns


def _columns(model_or_bytes: keras.Model | bytes, x: Any) -> Any:
    """Inputs in the order of the model's inputs, if they are given by name."""
    if not isinstance(x, Mapping):
        return list(x) if isinstance(x, tuple) else x
    if isinstance(model_or_bytes, bytes):
        raise SpecError(
            "inputs by name need a model that names its inputs",
            required="a list of arrays in the order of the TFLite file's inputs",
            received="a dict with " + ", ".join(map(str, x)),
            remedy="put the arrays into a list, in the order of the inputs of the model that the file was made from",
        )
    columns = in_order(x, list(model_or_bytes.input_names), "input")
    return _one(columns)


def _by_output(model_or_bytes: keras.Model | bytes, y: Any) -> Any:
    """Targets as arrays, and by the output's name where there are several."""
    if isinstance(y, list | tuple) and not isinstance(model_or_bytes, bytes) and len(model_or_bytes.output_names) > 1:
        y = dict(zip(model_or_bytes.output_names, y, strict=len(y) == len(model_or_bytes.output_names)))
    if isinstance(y, Mapping):
        return {key: np.asarray(column) for key, column in y.items()}
    return None if y is None else np.asarray(y)


def _outputs_by_name(model_or_bytes: keras.Model | bytes, outputs: Any, targets: Any) -> Any:
    if not isinstance(outputs, list) or not isinstance(targets, Mapping):
        return outputs
    if isinstance(model_or_bytes, bytes):
        raise SpecError(
            "a TFLite file does not say which of its outputs belongs to which target",
            required="a file with one output, or a Keras model",
            received=f"a file with {len(outputs)} outputs",
            remedy="take the outputs from core.predict, and compare each with its target",
        )
    keys = keys_in_order(list(targets), list(model_or_bytes.output_names), "output")
    return dict(zip(keys, outputs, strict=True))


def _require_as_many(samples: int, targets: Any) -> None:
    for column in tf.nest.flatten(targets) if targets is not None else []:
        if not column.ndim or len(column) != samples:
            raise SamplesError(
                "the labels do not fit the samples",
                required=f"{samples} labels or targets, one for each sample",
                received=f"an array of shape {list(column.shape)}",
                remedy="give the target of each sample, in the order of the samples",
            )


def _inferred(model_or_bytes: keras.Model | bytes, x: Any, y: Any, outputs: Any) -> str:
    """Name of the task that follows from the targets, and where they leave it open, from inputs and outputs."""
    if isinstance(y, np.ndarray):
        if _is_input_again(x, y):
            return "reconstruction"
        if isinstance(outputs, np.ndarray) and _are_classes(model_or_bytes, y, outputs):
            return "classification"
    return inferred(y)[0]


def _is_input_again(x: Any, y: Array) -> bool:
    return isinstance(x, np.ndarray) and x.shape[1:] == y.shape[1:] and np.array_equal(x, y[: len(x)])


def _are_classes(model_or_bytes: keras.Model | bytes, y: Array, outputs: Array) -> bool:
    """Whether targets are classes for outputs [n, classes] although their type does not say it."""
    if outputs.ndim != 2 or outputs.shape[1] == 1:  # noqa: PLR2004 - [n, classes]
        return False
    if y.shape[1:] in {(), (1,)}:  # a row of scores for one number: whole floats are classes, as for Keras
        return bool(np.issubdtype(y.dtype, np.floating) and (y == np.round(y)).all())
    if not _is_one_hot(y):
        return False
    loss = getattr(model_or_bytes, "loss", None)
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    if str(name).startswith(("categorical", "sparse_categorical")):
        return True
    return bool(outputs.min() >= 0.0 and np.abs(outputs.sum(axis=1) - 1.0).mean() < _SUM_TOLERANCE)


def _is_one_hot(y: Array) -> bool:
    is_row = y.ndim == 2 and y.shape[1] > 1  # noqa: PLR2004 - [N, classes]
    return bool(is_row and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all())


def _prepared(task: Task, x: Any, y: Any, outputs: Any) -> Any:
    """Targets in the form that the task takes: one-hot rows and whole floats become class numbers."""
    if y is None or isinstance(y, Mapping):
        return y
    if task.learns_its_input and np.issubdtype(y.dtype, np.floating) and y.shape[1:] == np.shape(x)[1:]:
        return None
    if not task.predicts_classes:
        return y
    scores = np.shape(outputs)[-1]
    if _is_one_hot(y) and y.shape[1] == scores and np.ndim(outputs) == y.ndim:
        return y.argmax(axis=1)
    is_whole = np.issubdtype(y.dtype, np.floating) and (y == np.round(y)).all()
    return y.astype(np.int64) if is_whole or y.dtype == np.bool_ else y


def _facts(task: Task, x: Any, y: Any, outputs: Any) -> Facts:
    several = isinstance(y, Mapping)
    shape = {key: column.shape[1:] for key, column in y.items()} if several else () if y is None else y.shape[1:]
    inputs = x.shape[1:] if isinstance(x, np.ndarray) else {str(i): part.shape[1:] for i, part in enumerate(x)}
    number = None
    if y is not None and not several and task.problem(y) is None and len(y):
        number = task.outputs(task.canonical(y), ())
        if task.predicts_classes and isinstance(outputs, np.ndarray):
            # Not each class has to be among the samples.
            number = max(number or 0, outputs.shape[-1], task.fewest_outputs)
    return Facts(inputs, shape, number, has_test_targets=y is not None)


def _require_targets(task: Task, y: Any) -> None:
    problem = None if y is None or isinstance(y, Mapping) else task.problem(y)
    if problem:
        raise SpecError(
            f"the targets do not fit the task {task.name}",
            required=problem[0],
            received=problem[1],
            remedy="correct the targets, or name the task that they are for: task=...",
        )


def _require_fit(task: Task, facts: Facts, y: Any, outputs: Any, *, is_inferred: bool) -> None:
    """Refuse targets and outputs that are not the task's."""
    _require_targets(task, y)
    parts = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    shapes = [part.shape[1:] for part in (parts if isinstance(parts, list) else [parts])]
    if task.fits(shapes, facts):
        return
    given = "none" if y is None else f"{y.dtype} [N, ...] of shape {list(y.shape)}" if hasattr(y, "dtype") else list(y)
    raise SpecError(
        f"the model's outputs are not those of the task {task.name}"
        + (", which follows from the targets" if is_inferred else ""),
        required=f"one output {task.output_shape(facts)}",
        received=f"{len(shapes)} outputs of shapes {[(None, *shape) for shape in shapes]}; targets {given}",
        remedy="name the task that the targets are for: task='regression', 'reconstruction', ... "
        "(`tfmot-ops list tasks` names them), or give the targets that the model was trained on",
    )


def _require_loss(task: Task, metric: str | None, model_or_bytes: keras.Model | bytes) -> None:
    if task.name == "own" and metric is None and getattr(model_or_bytes, "loss", None) is None:
        name = getattr(model_or_bytes, "name", None)
        raise SpecError(
            "there is no loss to measure by",
            required="a compiled model, or a metric by name",
            received="a TFLite file, which has no loss" if name is None else f"{name}, which is not compiled",
            remedy="compile the model, or name a metric: metric='<output>:<name>'",
        )
