"""Multi-label classification: the targets are 0 or 1 for each label, [N, labels]."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import JsonValue

from tfmot_ops.contract import Headline
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, TensorLike
from tfmot_ops.core.training.train_step import Outputs
from tfmot_ops.tasks import classifier_loss
from tfmot_ops.tasks.task import Facts, Task, adam, pooled, single


class MultilabelScores:
    """Mean average precision of the labels, and mean F1 of the labels at one half (at 0 for logits)."""

    def __init__(self) -> None:
        self._targets: list[Array] = []
        self._outputs: list[Array] = []

    def add(self, x: object, y: Array, outputs: Any) -> None:
        """Take in targets [n, labels] of 0 and 1, and scores [n, labels]."""
        del x
        self._targets.append(y)
        self._outputs.append(single(outputs, "multilabel"))

    def metrics(self) -> dict[str, float]:
        """`mean_average_precision` over the labels that occur, and `macro_f1`, both in [0, 1]."""
        from sklearn.metrics import average_precision_score, f1_score

        targets, scores = np.concatenate(self._targets), np.concatenate(self._outputs)
        occur = targets.any(axis=0)
        if not occur.any():
            return {"mean_average_precision": float("nan"), "macro_f1": float("nan")}
        threshold = 0.0 if scores.min() < 0.0 or scores.max() > 1.0 else 0.5
        return {
            "mean_average_precision": float(average_precision_score(targets[:, occur], scores[:, occur])),
            "macro_f1": float(f1_score(targets, scores > threshold, average="macro", zero_division=0.0)),
        }

    def details(self) -> dict[str, JsonValue]:
        """Nothing: several labels have no single confusion matrix."""
        return {}


class Multilabel(Task):
    """Any number of labels for each sample."""

    name = "multilabel"
    description = "0 or 1 for each label, [N, labels]"

    def headline(self, facts: Facts) -> Headline:
        """Mean average precision."""
        del facts
        return Headline(name="mean_average_precision")

    def problem(self, y: Array) -> tuple[str, str] | None:
        """Zeros and ones [N, labels]."""
        if y.ndim != 2:  # noqa: PLR2004 - [N, labels]
            return "0 or 1 for each label, [N, labels]", f"shape {list(y.shape)}"
        wrong = np.setdiff1d(y[:], (0, 1))
        if len(wrong):
            return "0 or 1 for each label, [N, labels]", f"the value {wrong[0]}"
        return None

    def canonical(self, y: Array) -> Array:
        """Targets as float32 [N, labels]."""
        return np.asarray(y[:], np.float32)

    def outputs(self, y: Array, class_names: tuple[str, ...]) -> int:
        """Number of labels."""
        del class_names
        return int(y.shape[1])

    def output_shape(self, facts: Facts) -> str:
        """One score per label."""
        return f"(None, {facts.outputs})"

    def fits(self, shapes: list[tuple[int | None, ...]], facts: Facts) -> bool:
        """One output with a score per label."""
        return shapes == [(facts.outputs,)]

    def head(self, features: TensorLike, outputs: int) -> Any:
        """One probability per label."""
        return keras.layers.Dense(outputs, activation="sigmoid", name="scores")(pooled(features))

    def compile(self, model: keras.Model, facts: Facts, samples: object, learning_rate: float) -> str:
        """Binary cross-entropy for logits or for probabilities, whichever the outputs are."""
        del facts
        logits = classifier_loss.gives_logits(model, samples, sum_to_one=False)
        adam(model, learning_rate, keras.losses.BinaryCrossentropy(from_logits=logits), [])
        return f"its outputs are treated as {'logits' if logits else 'probabilities'}, its loss is binary cross-entropy"

    def outputs_are(self, model: keras.Model, samples: object) -> Outputs:
        """Logits or probabilities of independent labels."""
        return classifier_loss.class_outputs(model, samples, independent=True)

    def scores(self, facts: Facts, model: keras.Model | None = None) -> MultilabelScores:
        """New, empty scores."""
        del facts, model
        return MultilabelScores()


TASK = Multilabel()
