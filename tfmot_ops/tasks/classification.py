"""Classification: the targets are integer labels [N]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import JsonValue

from tfmot_ops.contract import Headline
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, TensorLike
from tfmot_ops.core.measure.predictions import classes_of
from tfmot_ops.core.training.train_step import Outputs
from tfmot_ops.tasks import classifier_loss
from tfmot_ops.tasks.counts import ConfusionCounts
from tfmot_ops.tasks.task import Facts, Task, adam, pooled

_SPARSE_LOSS = "sparse_categorical_crossentropy"
#: Of a model with at least so many classes, the share of labels among the five largest outputs is measured too.
_CLASSES_FOR_TOP_5 = 6
#: Largest label: a model has an output for each class, and no TFLite file holds the kernel of more.
_LARGEST_LABEL = 2**24
#: Missing labels that a refusal names.
_LABELS_SHOWN = 5


class ClassificationScores:
    """Accuracy, mean F1 of the classes, and, from six classes, the share of labels among the five largest outputs."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._by_threshold = {threshold: ConfusionCounts(facts.outputs or 0) for threshold in (0.0, 0.5)}
        self._are_logits = False
        self._among_five, self._samples = 0, 0

    @property
    def _confusion(self) -> ConfusionCounts:
        # Logits of two classes are told from probabilities only when a value is outside [0, 1].
        return self._by_threshold[0.0 if self._are_logits else 0.5]

    def add(self, x: object, y: Array, outputs: Any) -> None:
        """Take in labels [n] and outputs [n, classes], or [n, 1] for two classes."""
        del x
        self._are_logits |= bool((outputs < 0.0).any() or (outputs > 1.0).any())
        for threshold, confusion in self._by_threshold.items():
            confusion.add(y, classes_of(outputs, threshold))
        self._samples += len(y)
        if outputs.shape[-1] >= _CLASSES_FOR_TOP_5:
            five = np.argpartition(outputs, -5, axis=-1)[:, -5:]
            self._among_five += int((five == y[:, np.newaxis]).any(axis=-1).sum())

    def metrics(self) -> dict[str, float]:
        """`accuracy`, `macro_f1` and `top5_accuracy`, each in [0, 1]."""
        figures = {"accuracy": self._confusion.share_correct(), "macro_f1": self._confusion.macro_f1()}
        if len(self._confusion.counts) >= _CLASSES_FOR_TOP_5:
            figures["top5_accuracy"] = self._among_five / self._samples if self._samples else float("nan")
        return figures

    def details(self) -> dict[str, JsonValue]:
        """The confusion matrix."""
        return self._confusion.details(self._facts.class_names)


class Classification(Task):
    """One of several classes for each sample."""

    name = "classification"
    description = "integer labels [N], one class per sample"
    predicts_classes = True
    fewest_outputs = 2

    def headline(self, facts: Facts) -> Headline:
        """Accuracy."""
        del facts
        return Headline(name="accuracy")

    def problem(self, y: Array) -> tuple[str, str] | None:
        """Integers [N] or [N, 1], from 0."""
        if y.ndim != 1 and y.shape[1:] != (1,):
            hint = ": one-hot rows? give the class numbers" if y.ndim == 2 else ""  # noqa: PLR2004 - [N, classes]
            return "labels [N], one integer per sample", f"shape {list(y.shape)}{hint}"
        if not np.issubdtype(y.dtype, np.integer):
            return "integer labels (no one-hot vectors, no text)", f"dtype {y.dtype}"
        return labels_problem(y[:])

    def problem_together(self, y: Array, y_test: Array | None, class_names: tuple[str, ...]) -> tuple[str, str] | None:
        """At least two classes, no test label above the training labels, and without names no gap in the labels."""
        seen = np.unique(y)
        if len(seen) < self.fewest_outputs:
            return f"at least {self.fewest_outputs} classes", f"only label {seen[0]}"
        if y_test is not None and y_test.max() > seen[-1]:
            return f"test labels up to {seen[-1]}, the training set's largest", f"a label of {y_test.max()}"
        if class_names and seen[-1] >= len(class_names):
            return f"labels 0 to {len(class_names) - 1} for {len(class_names)} named classes", f"a label of {seen[-1]}"
        missing = int(seen[-1]) + 1 - len(seen)
        if class_names or not missing:
            return None
        # Among so many numbers from 0 the first missing labels are found, however large the largest label is.
        first = np.setdiff1d(np.arange(len(seen) + _LABELS_SHOWN), seen)[: min(missing, _LABELS_SHOWN)]
        required = f"labels 0 to {len(seen) - 1} for {len(seen)} classes, without gaps"
        return required, f"labels from {seen[0]} to {seen[-1]}, without {_listed(first, missing)}"

    def canonical(self, y: Array) -> Array:
        """Labels as int64 [N]."""
        labels: Array = np.asarray(y[:]).reshape(-1).astype(np.int64)
        return labels

    def outputs(self, y: Array, class_names: tuple[str, ...]) -> int:
        """Number of classes: the largest label and one, or as many as have names."""
        return max(int(y.max()) + 1, len(class_names))

    def output_shape(self, facts: Facts) -> str:
        """One score per class."""
        return f"(None, {facts.outputs})" + (" or (None, 1)" if facts.outputs == 2 else "")  # noqa: PLR2004 - a sigmoid

    def fits(self, shapes: list[tuple[int | None, ...]], facts: Facts) -> bool:
        """One output with a score per class; a sigmoid may tell two classes apart."""
        if len(shapes) != 1 or len(shapes[0]) != 1 or not facts.outputs:
            return False
        scores = shapes[0][0]
        return scores is not None and (scores == facts.outputs or (scores == 1 and facts.outputs == 2))  # noqa: PLR2004

    def head(self, features: TensorLike, outputs: int) -> Any:
        """One probability per class."""
        return classifier(features, outputs)

    def compile(self, model: keras.Model, facts: Facts, samples: object, learning_rate: float) -> str:
        """Cross-entropy for logits or for probabilities, whichever the outputs are."""
        del facts
        logits = classifier_loss.gives_logits(model, samples)
        compile_default(model, learning_rate, from_logits=logits)
        form = "logits" if logits else "probabilities"
        loss = "binary cross-entropy" if _is_sigmoid(model) else "sparse categorical cross-entropy"
        return f"its outputs are treated as {form}, and its loss is {loss}"

    def targets_for(self, model: keras.Model, x: object, y: Array, facts: Facts) -> Callable[[Array], Array]:
        """Labels as they are, or one-hot vectors, whichever the loss takes."""
        if _is_sigmoid(model):
            return lambda labels: labels[:, np.newaxis]
        return classifier_loss.targets_for(model, x, y, max(int(model.outputs[0].shape[-1]), facts.outputs or 0))

    def outputs_are(self, model: keras.Model, samples: object) -> Outputs:
        """Logits or probabilities of one class among several, or of the second of two."""
        return classifier_loss.class_outputs(model, samples)

    def scores(self, facts: Facts, model: keras.Model | None = None) -> ClassificationScores:
        """New, empty scores."""
        del model
        return ClassificationScores(facts)


def compile_default(model: keras.Model, learning_rate: float, *, from_logits: bool = False) -> None:
    """Compile `model` in place for class labels [N]: Adam, cross-entropy, accuracy.

    Args:
        model: classifier with one output [N, classes], or [N, 1] for two classes.
        learning_rate: of Adam.
        from_logits: whether the outputs are logits, not probabilities (see `classifier_loss.gives_logits`).
    """
    if _is_sigmoid(model):
        threshold = 0.0 if from_logits else 0.5
        metrics = [keras.metrics.BinaryAccuracy(name="accuracy", threshold=threshold)]
        adam(model, learning_rate, keras.losses.BinaryCrossentropy(from_logits=from_logits), metrics)
        return
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if from_logits else _SPARSE_LOSS
    adam(model, learning_rate, loss, ["accuracy"])


def classifier(x: TensorLike, num_classes: int) -> Any:
    """The head of a classifier: one probability per class, [N, num_classes], from features [N, ..., C]."""
    return keras.layers.Dense(num_classes, activation="softmax", name="scores")(pooled(x))


def labels_problem(y: Array) -> tuple[str, str] | None:
    """What is wrong with integers that are to be labels, as (required, received); None if nothing is."""
    if len(y) and y.min() < 0:
        return "labels from 0", f"a label of {y.min()}"
    if len(y) and y.max() > _LARGEST_LABEL:
        return f"labels from 0 to {_LARGEST_LABEL}, one number per class", f"a label of {y.max()}"
    return None


def _listed(first: Array, count: int) -> str:
    """The first of some labels, and how many more there are."""
    shown = ", ".join(map(str, first))
    more = count - len(first)
    return f"{shown} and {more} more" if more > 0 else shown


def _is_sigmoid(model: keras.Model) -> bool:
    """Whether the model has one output [N, 1], the score of the second of two classes."""
    return len(model.outputs) == 1 and tuple(model.outputs[0].shape[1:]) == (1,)


TASK = Classification()
