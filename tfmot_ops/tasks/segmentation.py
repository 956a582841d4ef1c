"""Segmentation: the targets are an integer label for each pixel, [N, H, W]."""

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
from tfmot_ops.tasks.classification import labels_problem
from tfmot_ops.tasks.counts import ConfusionCounts
from tfmot_ops.tasks.task import Facts, Task, adam, single

#: Masks in which the largest label is looked for in one go.
_MASKS = 256


class SegmentationScores:
    """Mean intersection over union of the classes, and the share of pixels whose class is right."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._confusion = ConfusionCounts(facts.outputs or 0)

    def add(self, x: object, y: Array, outputs: Any) -> None:
        """Take in labels [n, H, W] and scores [n, H, W, classes], or [n, H, W, 1] for two classes."""
        del x
        scores = single(outputs, "segmentation")
        threshold = 0.0 if scores.min() < 0.0 or scores.max() > 1.0 else 0.5
        self._confusion.add(y.reshape(-1), classes_of(scores, threshold))

    def metrics(self) -> dict[str, float]:
        """`mean_iou` and `pixel_accuracy`, both in [0, 1]."""
        return {
            "mean_iou": self._confusion.mean_iou(),
            "pixel_accuracy": self._confusion.share_correct(),
        }

    def details(self) -> dict[str, JsonValue]:
        """The confusion matrix of the pixels."""
        return self._confusion.details(self._facts.class_names)


class Segmentation(Task):
    """One of several classes for each pixel."""

    name = "segmentation"
    description = "an integer label for each pixel, [N, H, W]"
    predicts_classes = True
    targets_have_places = True

    def headline(self, facts: Facts) -> Headline:
        """Mean intersection over union."""
        del facts
        return Headline(name="mean_iou")

    def problem(self, y: Array) -> tuple[str, str] | None:
        """Integers [N, H, W] or [N, H, W, 1], from 0."""
        if y.ndim != 3 and (y.ndim != 4 or y.shape[-1] != 1):  # noqa: PLR2004 - [N, H, W], [N, H, W, 1]
            return "labels [N, H, W], one integer per pixel", f"shape {list(y.shape)}"
        if not np.issubdtype(y.dtype, np.integer):
            return "integer labels", f"dtype {y.dtype}"
        # Masks that are read from files are checked when they are read.
        return labels_problem(y[:1] if hasattr(y, "then") else y)

    def canonical(self, y: Array) -> Array:
        """Labels as int64 [N, H, W]; masks that are read from files stay unread."""
        if hasattr(y, "then"):  # a column of masks that are read from files
            lazy: Array = y.then(_labels_of_a_mask, y.shape[1:3], np.int64)
            return lazy
        labels = np.asarray(y[:]).astype(np.int64)
        return labels[..., 0] if labels.ndim == 4 else labels  # noqa: PLR2004 - [N, H, W, 1]

    def outputs(self, y: Array, class_names: tuple[str, ...]) -> int:
        """Number of classes: as many as have names, else the largest label and one."""
        if class_names:
            return len(class_names)
        return 1 + max(int(y[start : start + _MASKS].max()) for start in range(0, len(y), _MASKS))

    def output_shape(self, facts: Facts) -> str:
        """One score per class for each pixel of the labels."""
        height, width = _size(facts)
        return f"(None, {height}, {width}, {facts.outputs})"

    def fits(self, shapes: list[tuple[int | None, ...]], facts: Facts) -> bool:
        """One output with the labels' height and width and a score per class; one score may tell two classes apart."""
        if len(shapes) != 1 or len(shapes[0]) != 3 or not facts.outputs:  # noqa: PLR2004 - (H, W, classes)
            return False
        *size, scores = shapes[0]
        same_size = all(own in {None, given} for own, given in zip(size, _size(facts), strict=True))
        enough = scores is not None and (scores >= facts.outputs or (scores == 1 and facts.outputs == 2))  # noqa: PLR2004
        return same_size and enough

    def head(self, features: TensorLike, outputs: int) -> Any:
        """One probability per class for each pixel of feature maps [N, H, W, C]."""
        if len(features.shape) != 4:  # noqa: PLR2004 - [N, H, W, C]
            return super().head(features, outputs)
        return keras.layers.Conv2D(outputs, 1, activation="softmax", name="scores")(features)

    def compile(self, model: keras.Model, facts: Facts, samples: object, learning_rate: float) -> str:
        """Cross-entropy of each pixel, for logits or for probabilities, whichever the outputs are."""
        del facts
        if model.outputs[0].shape[-1] == 1:
            logits = classifier_loss.gives_logits(model, samples, sum_to_one=False)
            adam(model, learning_rate, keras.losses.BinaryCrossentropy(from_logits=logits), [])
            return f"its outputs are treated as {_form(logits)}, its loss is binary cross-entropy"
        logits = classifier_loss.gives_logits(model, samples)
        adam(model, learning_rate, keras.losses.SparseCategoricalCrossentropy(from_logits=logits), ["accuracy"])
        return f"its outputs are treated as {_form(logits)}, its loss is sparse categorical cross-entropy"

    def targets_for(self, model: keras.Model, x: object, y: Array, facts: Facts) -> Callable[[Array], Array]:
        """Labels as they are, with a channel axis for one score, or one-hot vectors, whichever the loss takes."""
        if model.outputs[0].shape[-1] == 1:
            return lambda labels: labels[..., np.newaxis]
        return classifier_loss.targets_for(model, x, y, max(int(model.outputs[0].shape[-1]), facts.outputs or 0))

    def outputs_are(self, model: keras.Model, samples: object) -> Outputs:
        """Logits or probabilities of each pixel's class."""
        return classifier_loss.class_outputs(model, samples)

    def scores(self, facts: Facts, model: keras.Model | None = None) -> SegmentationScores:
        """New, empty scores."""
        del model
        return SegmentationScores(facts)


def _labels_of_a_mask(mask: Array) -> Array:
    """Labels int64 [H, W] of one mask [H, W] or [H, W, 1]."""
    return mask.reshape(mask.shape[:2]).astype(np.int64)


def _form(logits: bool) -> str:
    return "logits" if logits else "probabilities"


def _size(facts: Facts) -> tuple[int, ...]:
    """Height and width of the labels."""
    return tuple(facts.target_shape)[:2] if isinstance(facts.target_shape, tuple) else ()


TASK = Segmentation()
