"""Regression: the targets are real numbers, [N] or [N, values]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import JsonValue

from tfmot_ops.contract import Headline
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, TensorLike
from tfmot_ops.tasks.task import Facts, Task, adam, pooled, single

#: Largest number of pairs of target and output that are kept for a picture.
_PAIRS = 1000


class RegressionScores:
    """Root mean squared error, mean absolute error and R2, from sums over batches."""

    def __init__(self) -> None:
        self._samples = 0
        # One sum per value of a target.
        self._squared: Any = 0.0
        self._absolute: Any = 0.0
        self._targets: Any = 0.0
        self._squared_targets: Any = 0.0
        self._pairs: list[tuple[float, float]] = []

    def add(self, x: object, y: Array, outputs: Any) -> None:
        """Take in targets [n, values] and outputs of the same shape, or [n] for one value."""
        del x
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        values = np.asarray(single(outputs, "regression"), np.float64).reshape(len(y), -1)
        errors = targets - values
        self._samples += len(y)
        self._squared += np.square(errors).sum(axis=0)
        self._absolute += np.abs(errors).sum(axis=0)
        self._targets += targets.sum(axis=0)
        self._squared_targets += np.square(targets).sum(axis=0)
        room = _PAIRS - len(self._pairs)
        self._pairs += list(zip(targets.ravel()[:room].tolist(), values.ravel()[:room].tolist(), strict=True))

    def metrics(self) -> dict[str, float]:
        """`rmse` and `mae` in the unit of the targets, and `r2`, the mean over the values of a target."""
        around_mean = self._squared_targets - np.square(self._targets) / self._samples
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = float(np.mean(1.0 - self._squared / around_mean))
        return {
            "rmse": math.sqrt(float(np.mean(self._squared)) / self._samples),
            "mae": float(np.mean(self._absolute)) / self._samples,
            "r2": r2 if math.isfinite(r2) else math.nan,
        }

    def details(self) -> dict[str, JsonValue]:
        """Targets and outputs of the first samples."""
        targets, values = zip(*self._pairs, strict=True)
        return {"kind": "scatter", "targets": list(targets), "predictions": list(values)}


class Regression(Task):
    """One or several real numbers for each sample."""

    name = "regression"
    description = "real numbers, [N] or [N, values]"

    def headline(self, facts: Facts) -> Headline:
        """Root mean squared error, in the unit of the targets."""
        del facts
        return Headline(name="rmse", higher_is_better=False, is_share=False)

    def problem(self, y: Array) -> tuple[str, str] | None:
        """Finite numbers [N] or [N, values]."""
        if y.ndim not in {1, 2}:
            return "numbers [N] or [N, values]", f"shape {list(y.shape)}"
        if not (np.issubdtype(y.dtype, np.integer) or np.issubdtype(y.dtype, np.floating)):
            return "numbers", f"dtype {y.dtype}"
        wrong = ~np.isfinite(np.asarray(y[:], np.float64)).reshape(len(y), -1).all(axis=1)
        if wrong.any():
            return (
                "finite numbers",
                f"NaN or infinity in {int(wrong.sum())} targets, the first at {int(wrong.argmax())}",
            )
        return None

    def canonical(self, y: Array) -> Array:
        """Targets as float32 [N, values]."""
        return np.asarray(y[:], np.float32).reshape(len(y), -1)

    def outputs(self, y: Array, class_names: tuple[str, ...]) -> int:
        """Number of values of a target."""
        del class_names
        return int(y.shape[1])

    def output_shape(self, facts: Facts) -> str:
        """One number per value."""
        return f"(None, {facts.outputs})" + (" or (None,)" if facts.outputs == 1 else "")

    def fits(self, shapes: list[tuple[int | None, ...]], facts: Facts) -> bool:
        """One output with one number per value."""
        return shapes == [(facts.outputs,)] or (facts.outputs == 1 and shapes == [()])

    def head(self, features: TensorLike, outputs: int) -> Any:
        """One number per value, of any size."""
        return keras.layers.Dense(outputs, name="values")(pooled(features))

    def compile(self, model: keras.Model, facts: Facts, samples: object, learning_rate: float) -> str:
        """Mean squared error."""
        del facts, samples
        adam(model, learning_rate, "mse", ["mae"])
        return "its loss is the mean squared error"

    def scores(self, facts: Facts, model: keras.Model | None = None) -> RegressionScores:
        """New, empty scores."""
        del facts, model
        return RegressionScores()


TASK = Regression()
