"""Writes metrics, parameters and tags of a run, each once however often a step is tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import mlflow
from mlflow.entities import Dataset, Metric, Param, RunTag
from mlflow.utils.time import get_current_time_millis
from pydantic import JsonValue

from tfmot_ops.system.uri_secrets import hide_in
from tfmot_ops.tracking.names import accepted_names

# Limits of one MLflow request.
_PARAMS_A_BATCH = 100
_METRICS_A_BATCH = 1000
_TAGS_A_BATCH = 100
_LONGEST_PARAM = 6000

_Entity = TypeVar("_Entity")


@dataclass(frozen=True)
class Measured:
    """What the metrics of a step were measured on.

    Attributes:
        model_id: id of the logged model; None for metrics that belong to a run only.
        is_own: whether the step itself made the model. Of a model that another step made, only those metrics are logged
            that the other step has not measured.
        dataset: the data set; None if it is not known.
    """

    model_id: str | None = None
    is_own: bool = True
    dataset: Dataset | None = None


def log_metrics(
    client: mlflow.MlflowClient, run_id: str, metrics: Mapping[str, float], measured: Measured | None = None
) -> None:
    """Log the metrics of a step that has ended.

    A metric that the run and the model have with this value already is not logged again.

    Args:
        client: connected to the tracking server.
        run_id: run that gets the metrics.
        metrics: name -> value.
        measured: the logged model that gets them too, so that a search for models can sort by them.
    """
    measured = measured or Measured()
    known = client.get_run(run_id).data.metrics
    of_model = _of_model(client, measured)
    names, now = accepted_names(metrics), get_current_time_millis()
    entities = []
    for name, value in metrics.items():
        plain, number = names[name], float(value)
        joins_model = measured.model_id is not None and (
            plain not in of_model or (measured.is_own and of_model[plain] != number)
        )
        if joins_model or known.get(plain) != number:
            subject = _subject(measured) if joins_model else {}
            entities.append(Metric(plain, number, now, 0, **subject))
    for batch in _batches(entities, _METRICS_A_BATCH):
        client.log_batch(run_id, metrics=batch)


def log_epoch(client: mlflow.MlflowClient, run_id: str, metrics: Mapping[str, float], epoch: int) -> None:
    """Log the metrics of one epoch of training."""
    now, names = get_current_time_millis(), accepted_names(metrics)
    entities = [Metric(names[name], float(value), now, epoch) for name, value in metrics.items()]
    for batch in _batches(entities, _METRICS_A_BATCH):
        client.log_batch(run_id, metrics=batch)


def log_params(client: mlflow.MlflowClient, run_id: str, parameters: Mapping[str, JsonValue]) -> None:
    """Log parameters with dotted names. MLflow cannot change a parameter; a value that a retry changes is a tag."""
    known = client.get_run(run_id).data.params
    flat = flatten(hide_in(parameters))
    names = accepted_names(flat)
    wanted = {names[name]: value[:_LONGEST_PARAM] for name, value in flat.items()}
    new = [Param(name, value) for name, value in wanted.items() if name not in known]
    for batch in _batches(new, _PARAMS_A_BATCH):
        client.log_batch(run_id, params=batch)
    changed = {name: value for name, value in wanted.items() if known.get(name, value) != value}
    log_tags(client, run_id, {f"retry.{name}": value for name, value in changed.items()})


def log_tags(client: mlflow.MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    for batch in _batches([RunTag(name, value) for name, value in tags.items()], _TAGS_A_BATCH):
        client.log_batch(run_id, tags=batch)


def flatten(tree: Mapping[str, JsonValue], prefix: str = "") -> dict[str, str]:
    """Nested parameters with dotted names, as the text MLflow keeps."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _of_model(client: mlflow.MlflowClient, measured: Measured) -> dict[str, float]:
    """The latest value of each metric that a logged model need not be given again.

    A logged model begins with the metrics that its run had before, which name no data set: for the step that made the
    model, those do not count.
    """
    if measured.model_id is None:
        return {}
    metrics = client.get_logged_model(measured.model_id).metrics or []
    if measured.is_own and measured.dataset is not None:
        data = (measured.dataset.name, measured.dataset.digest)
        metrics = [metric for metric in metrics if (metric.dataset_name, metric.dataset_digest) == data]
    return {metric.key: metric.value for metric in sorted(metrics, key=lambda metric: metric.timestamp)}


def _subject(measured: Measured) -> dict[str, str | None]:
    data = measured.dataset
    on = {"dataset_name": data.name, "dataset_digest": data.digest} if data is not None else {}
    return {"model_id": measured.model_id, **on}


def _batches(entities: Sequence[_Entity], size: int) -> list[Sequence[_Entity]]:
    return [entities[start : start + size] for start in range(0, len(entities), size)]
