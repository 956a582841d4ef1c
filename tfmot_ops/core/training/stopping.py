"""Early stopping whose state is kept in variables, so that a checkpoint contains it and a killed training resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from tfmot_ops.contract.training import EarlyStopping
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Logs
from tfmot_ops.errors import SpecError

#: Suffixes of the names of metrics for which higher is better, and for which lower is better. The name of an output may
#: stand before them.
_HIGHER = ("accuracy", "acc", "auc", "iou", "io_u", "precision", "recall", "f1", "r2", "cosine_similarity")
_LOWER = ("loss", "error", "mse", "mae", "mape", "msle", "crossentropy", "divergence", "hinge", "poisson", "logcosh")


class BestEpoch(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the best metric, and stops a training that no longer improves.

    Args:
        model: built model that is trained.
        plan: metric, direction and patience.
        first_epoch: first epoch, counted from 1, that counts.
        report: called with a line of text when the training stops, and when weights are put back.

    Raises:
        SpecError: the direction of the metric is not given and does not follow from its name.
    """

    def __init__(
        self,
        model: keras.Model,
        plan: EarlyStopping,
        first_epoch: int = 1,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._plan, self._first_epoch, self._report = plan, first_epoch, report
        self._sign = 1.0 if _is_higher_better(plan) else -1.0
        self._trained = model
        self._best = tf.Variable(-math.inf, dtype=tf.float64)  # the metric times the sign
        self._best_epoch = tf.Variable(0, dtype=tf.int64)
        self._waited = tf.Variable(0, dtype=tf.int64)
        self._weights = [tf.Variable(variable, trainable=False) for variable in model.variables]

    @property
    def variables(self) -> list[Any]:
        """All state: the best metric, its epoch, the epochs since, and the weights of the best epoch."""
        return [self._best, self._best_epoch, self._waited, *self._weights]

    @property
    def is_over(self) -> bool:
        """Whether the training has gone on without improvement for as long as the plan allows."""
        return int(self._waited) >= self._plan.patience

    def require_metric(self, names: Iterable[str]) -> None:
        """Refuse a metric that the training does not report.

        Raises:
            SpecError: the plan's metric is not one of `names`.
        """
        names = [plain_name(name) for name in names]
        if self._plan.metric not in names:
            raise SpecError(
                f"early stopping cannot watch {self._plan.metric!r}",
                required="one of " + ", ".join(names),
                received=repr(self._plan.metric),
                remedy="correct training.early_stopping.metric; the metrics are those that the model is compiled with",
            )

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Take the epoch's weights if its metric is the best so far, else count the epoch."""
        if epoch + 1 < self._first_epoch:
            return
        reported = {plain_name(name): value for name, value in (logs or {}).items()}
        value = self._sign * float(reported[self._plan.metric])
        least = self._plan.min_delta if math.isfinite(float(self._best)) else 0.0
        if value > float(self._best) + least:
            self._best.assign(value)
            self._best_epoch.assign(epoch + 1)
            self._waited.assign(0)
            for kept, variable in zip(self._weights, self._trained.variables, strict=True):
                kept.assign(variable)
            return
        self._waited.assign_add(1)
        if self.is_over:
            self.model.stop_training = True

    def restore_best_weights(self, epochs_done: int) -> None:
        """Set the model's weights to those of the best epoch, and report it; call it when the training has ended."""
        best = int(self._best_epoch)
        if not best:
            self._report(f"has no best epoch, as {self._plan.metric} was never a number; the last weights stay")
            return
        for kept, variable in zip(self._weights, self._trained.variables, strict=True):
            variable.assign(kept)
        metric, value = self._plan.metric, self._sign * float(self._best)
        if self.is_over:
            self._report(f"stops after epoch {epochs_done}: {metric} has not improved for {self._plan.patience} epochs")
        self._report(f"takes the weights of epoch {best}, with the best {metric}: {value:.4g}")


def plain_name(name: str) -> str:
    """A metric's name without the prefixes that wrappers of pruning and quantisation add to the name of an output."""
    return name.replace("prune_low_magnitude_", "").replace("quant_", "")


def _is_higher_better(plan: EarlyStopping) -> bool:
    """Whether a higher value of the metric is better, as the plan says or by the suffix of the metric's name."""
    if plan.higher_is_better is not None:
        return plan.higher_is_better
    name = "_" + plan.metric.lower()
    if name.endswith(tuple(f"_{end}" for end in _LOWER)):
        return False
    if name.endswith(tuple(f"_{end}" for end in _HIGHER)):
        return True
    raise SpecError(
        f"early stopping does not know which direction of {plan.metric!r} is better",
        required="higher_is_better: true or false, for a metric whose name does not say it",
        received="nothing",
        remedy="add higher_is_better to training.early_stopping",
    )
