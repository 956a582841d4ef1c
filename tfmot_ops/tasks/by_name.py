"""Tasks by name: from the modules of this package, registered by an installed package, or inferred from targets."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from tfmot_ops import tasks
from tfmot_ops.errors import SpecError
from tfmot_ops.tasks.own import Own
from tfmot_ops.tasks.task import Task

ENTRY_POINT_GROUP = "tfmot_ops.tasks"


@cache
def _built_in() -> dict[str, Task]:
    """Name -> task, in alphabetical order."""
    modules = [import_module(f"{tasks.__name__}.{module.name}") for module in pkgutil.iter_modules(tasks.__path__)]
    found = [module.TASK for module in modules if hasattr(module, "TASK")]
    return {task.name: task for task in sorted(found, key=lambda task: task.name)}


def available_tasks() -> dict[str, str]:
    """Name -> one-line description of all tasks: built-in and registered."""
    registered = {entry.name: f"registered as {entry.value}" for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return registered | {name: task.description for name, task in _built_in().items()}


def task_named(name: str, metric: str | None = None) -> Task:
    """The task `name`; `metric` is the headline of the task `own`.

    Raises:
        SpecError: there is no such task, or a metric is given for another task.
    """
    if metric is not None and name != Own.name:
        raise SpecError(
            f"the task {name} has a headline of its own",
            required=f"a metric for the task {Own.name} alone",
            received=f"metric {metric}",
            remedy=f"leave the metric out, or use the task {Own.name}",
        )
    if name == Own.name:
        own = Own(metric)
        own.require_metric()
        return own
    if name in _built_in():
        return _built_in()[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        found = entry.load()
        task: Task = found() if isinstance(found, type) else found
        return task
    raise SpecError(
        f"there is no task named {name!r}",
        required="one of " + ", ".join(available_tasks()),
        received=repr(name),
        remedy=f"use a name from the list, or register a task under the entry-point group {ENTRY_POINT_GROUP}",
    )


def inferred(y: Any) -> tuple[str, str]:
    """Name of the task that targets are for, and the reason, by their type and shape.

    Args:
        y: targets [N, ...]; a mapping of them by output; None where there are none.

    Raises:
        SpecError: no task fits.
    """
    if y is None:
        return "reconstruction", "there are no training targets, so the input is the target"
    if isinstance(y, Mapping):
        return Own.name, f"there are several targets ({', '.join(y)})"
    kind = f"the targets are {y.dtype} [{', '.join(['N', *map(str, y.shape[1:])])}]"
    if y.ndim == 2 and y.shape[1] > 1 and np.isin(y[:], (0, 1)).all():  # noqa: PLR2004 - [N, labels]
        if (y[:].sum(axis=1) == 1).all():
            raise SpecError(
                "the targets may be one-hot rows or independent labels",
                required="integer labels [N], or a task by name",
                received=f"{kind}, each row with a single 1",
                remedy="give the class numbers (y.argmax(axis=1)), or task multilabel",
            )
        return "multilabel", f"{kind}, all 0 or 1"
    if np.issubdtype(y.dtype, np.integer):
        fitting = {1: "classification", 3: "segmentation", 4: "segmentation"}
        name = "classification" if y.shape[1:] == (1,) else fitting.get(y.ndim)
        if name:
            return name, kind
    if np.issubdtype(y.dtype, np.floating) and y.ndim in {1, 2}:
        return "regression", kind
    raise SpecError(
        "no task follows from the targets",
        required="integers [N] or [N, H, W], floats [N] or [N, values], 0 or 1 [N, labels], or no targets",
        received=kind,
        remedy="name the task: " + ", ".join(available_tasks()),
    )
