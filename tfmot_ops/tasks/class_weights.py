"""Class weights: from a plan's words to one factor for each class, and from labels to factors of samples or pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfmot_ops.core.keras.types import Array
from tfmot_ops.errors import SpecError
from tfmot_ops.tasks.task import Facts, Task

#: Labels that are read and counted in one go.
_AT_ONCE = 1024


def weights_by_class(given: Mapping[str, float] | str, task: Task, y: Any, facts: Facts) -> Array:
    """One factor for each class, float32 [classes].

    Args:
        given: `balanced`, or label or name of a class -> factor; a class that is left out has the factor 1.
        task: what the targets mean.
        y: training labels [N] or [N, H, W].
        facts: of the data set.

    Raises:
        SpecError: the task has no classes, or there is no such class.
    """
    if not task.predicts_classes:
        raise SpecError(
            f"the task {task.name} has no classes to weight",
            required="a task with classes: classification or segmentation",
            received=f"training.class_weights for the task {task.name}",
            remedy="leave class_weights out; a weight of each sample comes with the data set",
        )
    classes = facts.outputs or 0
    if isinstance(given, str):
        counts = np.zeros(classes, np.int64)
        for start in range(0, len(y), _AT_ONCE):
            counts += np.bincount(np.ravel(y[start : start + _AT_ONCE]), minlength=classes)
        # As scikit-learn's `class_weight="balanced"`: each class has the same share of the loss, and the mean
        # factor of a sample is 1. A class without samples has none to weight.
        balanced: Array = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return balanced.astype(np.float32)
    weights = np.ones(classes, np.float32)
    for name, weight in given.items():
        weights[_label(name, facts, classes)] = weight
    return weights


def _label(name: str, facts: Facts, classes: int) -> int:
    if name in facts.class_names:
        return facts.class_names.index(name)
    if name.isdecimal() and int(name) < classes:
        return int(name)
    raise SpecError(
        f"the training plan weights an unknown class {name!r}",
        required=", or ".join(filter(None, (f"labels 0 to {classes - 1}", ", ".join(facts.class_names)))),
        received=repr(name),
        remedy="correct training.class_weights",
    )


def weights_of(y: Any, table: Array, weights: Any) -> Any:
    """Factor of the loss of each sample [N] or pixel [N, H, W].

    Args:
        y: labels [N], or [N, H, W] possibly read from files.
        table: factor of each class, [classes].
        weights: further factors [N] of the samples, or None.
    """
    if hasattr(y, "then"):  # masks that are read from files
        if weights is not None:
            raise SpecError(
                "masks that are read from files cannot have both weights",
                required="weights of classes or of samples",
                received="both",
                remedy="leave training.class_weights out",
            )
        return y.then(lambda mask: table[mask], y.shape[1:], np.float32)
    factors = table[y]
    return factors if weights is None else factors * np.reshape(weights, (-1, *[1] * (factors.ndim - 1)))
