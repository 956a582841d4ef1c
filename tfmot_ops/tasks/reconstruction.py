"""Reconstruction: the target is the input itself; test targets of 0 and 1 say which samples are anomalies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import JsonValue

from tfmot_ops.contract import Headline
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array
from tfmot_ops.tasks.task import Facts, Task, adam, single

#: Share of false alarms up to which the partial area under the curve counts, as in MLPerf Tiny and DCASE task 2.
_FALSE_ALARMS = 0.1
#: Largest number of errors of each kind that are kept for a picture.
_ERRORS = 1000


class ReconstructionScores:
    """The error of each sample, and how well it tells anomalies from normal samples."""

    def __init__(self, facts: Facts) -> None:
        self._has_flags = facts.has_test_targets
        self._errors: list[Array] = []
        self._flags: list[Array] = []

    def add(self, x: Any, y: Any, outputs: Any) -> None:
        """Take in inputs [n, ...], flags 0 or 1 [n] (None where nothing is known), and the model's outputs."""
        inputs, values = np.asarray(x, np.float64), np.asarray(single(outputs, "reconstruction"), np.float64)
        self._errors.append(np.square(inputs - values.reshape(inputs.shape)).reshape(len(inputs), -1).mean(axis=1))
        if self._has_flags and y is not None:
            self._flags.append(np.asarray(y))

    def metrics(self) -> dict[str, float]:
        """`error`, the mean squared error of the normal samples; with flags also `auc` and `partial_auc` in [0, 1]."""
        from sklearn.metrics import roc_auc_score

        errors, flags = self._joined()
        normal = errors[flags == 0]
        figures = {"error": float(normal.mean()) if len(normal) else math.nan}
        if self._flags and len(np.unique(flags)) == 2:  # noqa: PLR2004 - normal and anomalous
            figures["auc"] = float(roc_auc_score(flags, errors))
            figures["partial_auc"] = float(roc_auc_score(flags, errors, max_fpr=_FALSE_ALARMS))
        return figures

    def details(self) -> dict[str, JsonValue]:
        """The errors of normal and of anomalous samples."""
        errors, flags = self._joined()
        kinds = {"normal": errors[flags == 0], "anomalous": errors[flags != 0]}
        return {"kind": "errors", **{kind: values[:_ERRORS].tolist() for kind, values in kinds.items()}}

    def _joined(self) -> tuple[Array, Array]:
        errors = np.concatenate(self._errors)
        return errors, np.concatenate(self._flags) if self._flags else np.zeros(len(errors), np.int64)


class Reconstruction(Task):
    """The input again; the error of a sample tells whether it is an anomaly."""

    name = "reconstruction"
    description = "the input itself; test targets 0 (normal) or 1 (anomaly), [N]"
    learns_its_input = True
    targets_have_places = True

    def headline(self, facts: Facts) -> Headline:
        """Area under the ROC curve of the errors; without test targets the error itself."""
        if facts.has_test_targets:
            return Headline(name="auc", is_share=False)
        return Headline(name="error", higher_is_better=False, is_share=False)

    def problem(self, y: Array) -> tuple[str, str] | None:
        """0 or 1 for each test sample."""
        if y.ndim != 1 and y.shape[1:] != (1,):
            return "0 (normal) or 1 (anomaly) for each sample, [N]", f"shape {list(y.shape)}"
        wrong = np.setdiff1d(y[:], (0, 1))
        return ("0 (normal) or 1 (anomaly) for each sample", f"the value {wrong[0]}") if len(wrong) else None

    def canonical(self, y: Array) -> Array:
        """Flags as int64 [N]."""
        return np.asarray(y[:], np.int64).reshape(-1)

    def output_shape(self, facts: Facts) -> str:
        """The shape of the input."""
        shape = facts.input_shape if isinstance(facts.input_shape, tuple) else ()
        return f"(None, {', '.join(map(str, shape))})"

    def fits(self, shapes: list[tuple[int | None, ...]], facts: Facts) -> bool:
        """One output of the shape of the one input."""
        if len(shapes) != 1 or not isinstance(facts.input_shape, tuple) or len(shapes[0]) != len(facts.input_shape):
            return False
        return all(own in {None, given} for own, given in zip(shapes[0], facts.input_shape, strict=True))

    def compile(self, model: keras.Model, facts: Facts, samples: object, learning_rate: float) -> str:
        """Mean squared error."""
        del facts, samples
        adam(model, learning_rate, "mse", [])
        return "its loss is the mean squared error of its input"

    def scores(self, facts: Facts, model: keras.Model | None = None) -> ReconstructionScores:
        """New, empty scores."""
        del model
        return ReconstructionScores(facts)


TASK = Reconstruction()
