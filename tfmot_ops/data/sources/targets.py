"""Targets that are written as text: class names, whole numbers, or numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_ops.errors import SpecError

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
#: Values that stand for none.
_MISSING = frozenset({"", "nan"})
_REMEDY = "correct the file, or name its classes with classes=<name>,<name>"


@dataclass(frozen=True)
class Targets:
    """What the values of a target are, as its training samples tell.

    Attributes:
        class_names: the classes, by label; empty for numbers.
        dtype: int64 for labels and whole numbers, float32 for other numbers.
    """

    class_names: tuple[str, ...]
    dtype: Any

    @property
    def task(self) -> str | None:
        """Name of the task that they are for; None for whole numbers, which may be labels or quantities."""
        if self.class_names:
            return "classification"
        return None if self.dtype == np.int64 else "regression"

    def read(self, values: Sequence[str], where: str) -> npt.NDArray[Any]:
        """The targets [N] of N values; `where` names their file and column in a message."""
        try:
            if self.class_names:
                labels = {name: label for label, name in enumerate(self.class_names)}
                return np.array([labels[value] for value in values], np.int64)
            return np.array([self._number(value) for value in values], self.dtype)
        except (KeyError, ValueError):
            row = next(row for row, value in enumerate(values, 1) if not self._fits(value))
        required = "one of " + ", ".join(self.class_names) if self.class_names else "a finite number"
        required = "a whole number" if not self.class_names and self.dtype == np.int64 else required
        raise SpecError(
            f"{where}: the target of row {row} is not like those of the training set",
            required=required,
            received=f"{values[row - 1]!r}" if values[row - 1] else "no value",
            remedy=_REMEDY,
        )

    def _number(self, value: str) -> float:
        if not self._fits(value):
            raise ValueError(value)
        return int(value) if self.dtype == np.int64 else float(value)

    def _fits(self, value: str) -> bool:
        if self.class_names:
            return value in self.class_names
        return bool(_INTEGER.fullmatch(value)) if self.dtype == np.int64 else _is_number(value)


def targets_of(values: Sequence[str], classes: tuple[str, ...], where: str) -> Targets:
    """What the targets of training samples are: whole numbers if all are, else numbers, else sorted class names.

    Args:
        values: the targets, as text.
        classes: the classes in the order of their labels, if the user names them.
        where: names their file and column in a message.

    Raises:
        SpecError: a value is missing, or numbers with decimals stand among words.
    """
    missing = [row for row, value in enumerate(values, 1) if value.lower() in _MISSING]
    if missing:
        raise SpecError(
            f"{where}: {len(missing)} targets are missing",
            required="a target in each row",
            received=f"no value in row {missing[0]}" + (", the first of them" if len(missing) > 1 else ""),
            remedy="fill in the targets, or remove the rows",
        )
    if classes:
        return Targets(classes, np.int64)
    different = set(values)
    if all(_INTEGER.fullmatch(value) for value in different):
        return Targets((), np.int64)
    numbers = {value for value in different if _is_number(value)}
    if numbers == different:
        return Targets((), np.float32)
    if not all(_INTEGER.fullmatch(value) for value in numbers):
        row = next(row for row, value in enumerate(values, 1) if value not in numbers)
        raise SpecError(
            f"{where}: the target of row {row} is no number, and others are",
            required="numbers alone, or names of classes alone",
            received=repr(values[row - 1]),
            remedy=_REMEDY,
        )
    return Targets(tuple(sorted(different)), np.int64)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
