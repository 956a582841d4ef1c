"""Confusion counts: how often a class was predicted for each class, from which the scores of classes follow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from tfmot_ops.core.keras.types import Array


class ConfusionCounts:
    """Counts of (class, predicted class), added up over batches.

    Args:
        classes: number of classes; grows if a model predicts more.
    """

    def __init__(self, classes: int) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def add(self, labels: Array, predicted: Array) -> None:
        """Count labels [n] and predicted classes [n]."""
        size = int(max(len(self.counts), labels.max(initial=-1) + 1, predicted.max(initial=-1) + 1))
        if size > len(self.counts):
            self.counts = np.pad(self.counts, (0, size - len(self.counts)))
        pairs = np.bincount(labels * size + predicted, minlength=size * size)
        self.counts += pairs.reshape(size, size)

    def share_correct(self) -> float:
        """Share of samples whose predicted class is theirs, in [0, 1]."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")

    def macro_f1(self) -> float:
        """Mean over the classes of F1, the harmonic mean of precision and recall, in [0, 1]."""
        return self._mean_share(2 * np.diag(self.counts), self.counts.sum(axis=0) + self.counts.sum(axis=1))

    def mean_iou(self) -> float:
        """Mean over the classes of intersection over union, in [0, 1]."""
        hits = np.diag(self.counts)
        return self._mean_share(hits, self.counts.sum(axis=0) + self.counts.sum(axis=1) - hits)

    @staticmethod
    def _mean_share(parts: Array, wholes: Array) -> float:
        """Mean of parts / wholes; a class without a sample that is never predicted does not count."""
        counted = wholes > 0
        return float(np.mean(parts[counted] / wholes[counted])) if counted.any() else float("nan")

    def details(self, class_names: tuple[str, ...]) -> dict[str, JsonValue]:
        """The counts as plain lists, rows by class and columns by predicted class, with the classes' names."""
        size = len(self.counts)
        names = [class_names[k] if k < len(class_names) else str(k) for k in range(size)]
        return {"kind": "confusion", "classes": list(names), "counts": self.counts.tolist()}
