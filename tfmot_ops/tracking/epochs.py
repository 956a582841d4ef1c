"""The metrics of a training's epochs on the MLflow run of its step; what MLflow does not take is sent later.

A run that is taken up has epochs of an earlier attempt. Those that this attempt restored from its checkpoint are left
as they are. If this attempt trains an epoch again and gets other values, they are logged too: of several values at one
epoch, the newest one is valid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from tfmot_ops.errors import StepFailedError
from tfmot_ops.tracking.names import accepted_names
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
        self._taken_up = taken_up
        self._waiting: dict[int, tuple[dict[str, float], bool]] = {}
        self._logged: dict[str, dict[int, float]] = {}
        self._not_before = 0.0

    def add(self, epoch: int, metrics: Mapping[str, float], *, is_restored: bool = False) -> None:
        """Log the metrics of an epoch if MLflow takes them.

        Args:
            epoch: counted from 1.
            metrics: name -> value.
            is_restored: whether an earlier attempt trained the epoch, and this one continues after it.
        """
        named = {f"epoch.{name}": float(value) for name, value in metrics.items()}
        names = accepted_names(named)
        self._waiting[epoch] = {names[name]: value for name, value in named.items()}, is_restored
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
        for epoch, (metrics, is_restored) in sorted(self._waiting.items()):
            new = {name: value for name, value in metrics.items() if self._is_new(name, epoch, value, is_restored)}
            if new:
                log_epoch(self._client, self._run_id, new, epoch)
            for name, value in new.items():
                self._values(name)[epoch] = value
            del self._waiting[epoch]

    def _is_new(self, name: str, epoch: int, value: float, is_restored: bool) -> bool:
        known = self._values(name).get(epoch)
        if known is None:
            return True
        return not is_restored and known != value and not (math.isnan(known) and math.isnan(value))

    def _values(self, name: str) -> dict[int, float]:
        """Epoch -> value on the run, also of an attempt that was killed before it saved its checkpoint."""
        if name not in self._logged:
            history = self._client.get_metric_history(self._run_id, name) if self._taken_up else []
            self._logged[name] = newest(history)
        return self._logged[name]


def newest(history: Iterable[Metric]) -> dict[int, float]:
    """Epoch -> its newest value, of the history of a metric."""
    return {each.step: float(each.value) for each in sorted(history, key=lambda each: each.timestamp)}
