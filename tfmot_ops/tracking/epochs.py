"""The metrics of a training's epochs on the MLflow run of its step; what MLflow does not take is sent later."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import mlflow
from mlflow.exceptions import MlflowException

from tfmot_ops.errors import StepFailedError
from tfmot_ops.tracking.patience import briefly
from tfmot_ops.tracking.writing import log_epoch

#: Seconds after a failure in which no epoch is sent, so that a training does not wait for MLflow after every epoch.
_PAUSE_S = 30.0


class EpochLog:
    """Logs the metrics of each epoch once, and never ends a training: epochs that MLflow does not take wait for `send`.

    The waiting epochs need no file of their own: the training's checkpoint holds the metrics of all epochs, and a
    continued training adds them again.

    Args:
        client: connected to the tracking server.
        run_id: the step's run.
        say: called with a message when MLflow does not take an epoch.
        taken_up: whether an earlier attempt may have logged epochs on this run.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, say: Callable[[str], None], *, taken_up: bool) -> None:
        self._client, self._run_id, self._say = client, run_id, say
        self._waiting: dict[int, dict[str, float]] = {}
        self._known: set[int] | None = None if taken_up else set()
        self._not_before = 0.0

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an epoch, counted from 1, if MLflow takes them."""
        self._waiting[epoch] = {f"epoch.{name}": value for name, value in metrics.items()}
        if time.monotonic() < self._not_before:
            return
        try:
            with briefly():
                self.send()
        except (StepFailedError, MlflowException, OSError) as error:
            self._not_before = time.monotonic() + _PAUSE_S
            why = getattr(error, "summary", str(error))
            self._say(f"epoch {epoch} is not recorded yet, and the training goes on: {why}")

    def send(self) -> None:
        """Log all epochs that are waiting.

        Raises:
            StepFailedError, MlflowException, OSError: MLflow does not take them; they go on waiting.
        """
        for epoch, metrics in sorted(self._waiting.items()):
            if metrics and epoch not in self._logged(next(iter(metrics))):
                log_epoch(self._client, self._run_id, metrics, epoch)
                self._logged(next(iter(metrics))).add(epoch)
            del self._waiting[epoch]

    def _logged(self, metric: str) -> set[int]:
        """Epochs that are on the run already, also from an attempt that was killed before it saved its checkpoint."""
        if self._known is None:
            self._known = {each.step for each in self._client.get_metric_history(self._run_id, metric)}
        return self._known
