"""Checks of a data set before anything is trained: shapes, types, values, labels and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfmot_ops.data.columns import Lazy, Rows
from tfmot_ops.errors import SpecError
from tfmot_ops.tasks.task import Task

#: Smallest number of samples of a data set, so that each of the four splits gets a sample.
_MIN_SAMPLES = 10
#: Values of an array that are looked at in one go, so that a large array needs no second one of its size.
_VALUES_AT_ONCE = 2**24


def check_inputs(name: str, part: str, x: Any) -> None:
    """Refuse inputs that are empty, not finite, or of different lengths.

    Args:
        name: of the data set.
        part: `training` or `test`.
        x: one column [N, ...], or columns by name.
    """
    columns = x if isinstance(x, Mapping) else {"": x}
    for key, column in columns.items():
        problem = _input_problem(column)
        if problem:
            of = f" in input {key}" if key else ""
            _refuse(name, part, problem[0], problem[1] + of)
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        _refuse(name, part, "as many samples of each input", ", ".join(f"{k}: {n}" for k, n in lengths.items()))


def _input_problem(column: Any) -> tuple[str, str] | None:
    if not len(column.shape) or 0 in column.shape:
        return "samples [N, ...], none of the sizes 0", f"shape {list(column.shape)}"
    if column.dtype.kind not in "biufSUO":
        return "numbers", f"dtype {column.dtype}"
    # Samples that are decoded are checked when a batch reads them: here, all would be decoded once more.
    is_decoded = isinstance(column, Lazy) and not isinstance(column, Rows)
    if is_decoded or column.dtype.kind != "f":
        return None
    count, first = _not_finite(column)
    if count:
        return "finite numbers", f"{count} values that are NaN or infinite, the first at index {first}"
    return None


def _not_finite(column: Any) -> tuple[int, list[int]]:
    """How many values are NaN or infinite, and the index of the first."""
    rows = max(1, _VALUES_AT_ONCE // max(1, int(np.prod(column.shape[1:]))))
    count, first = 0, []
    for start in range(0, len(column), rows):
        wrong = ~np.isfinite(column[start : start + rows])
        if wrong.any() and not count:
            first = [int(place) for place in np.unravel_index(np.argmax(wrong), wrong.shape)]
            first[0] += start
        count += int(wrong.sum())
    return count, first


def check_same_shapes(name: str, x: Any, x_test: Any) -> None:
    """Refuse test inputs that differ in names or shapes from the training inputs."""
    shapes = [
        {key: tuple(column.shape[1:]) for key, column in (part if isinstance(part, Mapping) else {"x": part}).items()}
        for part in (x, x_test)
    ]
    if shapes[0] != shapes[1]:
        values = [next(iter(part.values())) if list(part) == ["x"] else part for part in shapes]
        raise SpecError(
            f"data set {name} cannot be trained on",
            required="training and test samples of one shape",
            received=f"{values[0]} and {values[1]}",
            remedy="bring both to one shape",
        )


def check_targets(name: str, part: str, task: Task, x: Any, y: Any) -> Any:
    """The targets in the task's own form.

    Args:
        name: of the data set.
        part: `training` or `test`.
        task: what the targets mean.
        x: the inputs [N, ...], or columns by name.
        y: the targets as the source has them.

    Raises:
        SpecError: they are missing, not one per sample, or not of the task.
    """
    samples = len(next(iter(x.values())) if isinstance(x, Mapping) else x)
    if y is None:
        _refuse(name, part, f"targets for the task {task.name}: {task.description}", "no targets")
    if isinstance(y, Mapping):
        columns = {key: _array(column) for key, column in y.items()}
        wrong = {key: len(column) for key, column in columns.items() if len(column) != samples}
        if wrong:
            _refuse(name, part, f"{samples} targets of each output, one per sample", f"{wrong}")
        if not task.takes_several:
            _refuse(name, part, f"one array of targets for the task {task.name}", f"targets {', '.join(columns)}")
        return task.canonical(columns)
    y = _array(y)
    if not len(y.shape) or len(y) != samples:
        _refuse(name, part, f"targets [N, ...] with N = {samples}, one per sample", f"shape {list(y.shape)}")
    problem = task.problem(y)
    if problem:
        _refuse(name, part, *problem)
    return task.canonical(y)


def _array(column: Any) -> Any:
    if isinstance(column, Lazy):
        return column if column.ndim > 2 else column[:]  # noqa: PLR2004 - few numbers a sample
    column = np.asanyarray(column)
    # Targets of a sample are few numbers, or masks, which are left in their file.
    return Rows(column) if isinstance(column, np.memmap) and column.ndim > 2 else np.asarray(column)  # noqa: PLR2004


def check_weights(name: str, weights: Any, samples: int) -> Any:
    """The weights of the training samples as float32 [N].

    Args:
        name: of the data set.
        weights: as the source has them.
        samples: N.

    Raises:
        SpecError: they are not one finite number of at least 0 for each sample.
    """
    weights = np.asarray(weights)
    required = f"weights [{samples}], one finite number of at least 0 for each sample"
    if weights.shape != (samples,) or weights.dtype.kind not in "buif":
        _refuse(name, "training", required, f"weights of shape {list(weights.shape)} and type {weights.dtype}")
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(wrong):
        _refuse(name, "training", required, f"{len(wrong)} other weights, the first {weights[wrong[0]]} at {wrong[0]}")
    return weights.astype(np.float32)


def check_sizes(name: str, samples: int) -> None:
    """Refuse a data set with fewer samples than the splits need."""
    if samples < _MIN_SAMPLES:
        raise SpecError(
            f"data set {name} cannot be trained on",
            required=f"at least {_MIN_SAMPLES} samples beside the test set",
            received=f"{samples}",
            remedy="add what is missing to the data set",
        )


def check_together(name: str, task: Task, y: Any, y_test: Any, class_names: tuple[str, ...]) -> None:
    """Refuse canonical targets that cannot be learnt and measured together, such as labels of a single class."""
    problem = task.problem_together(y, y_test, class_names)
    if problem:
        raise SpecError(
            f"data set {name} cannot be trained on",
            required=problem[0],
            received=problem[1],
            remedy="number the classes from 0, or add what is missing to the data set",
        )


def _refuse(name: str, part: str, required: str, received: str) -> None:
    raise SpecError(
        f"the {part} set of {name} cannot be used",
        required=required,
        received=received,
        remedy="correct the arrays before they are saved or returned",
    )
