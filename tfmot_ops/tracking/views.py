"""A saved view of the experiment in MLflow's pages: the chains with the figures that compare them, the best one first.

MLflow's pages show no metric until a person picks columns. A saved view is a tag of the experiment, in the form that
MLflow 3.17's own button `Save view` writes; other versions of the pages leave the tag alone.
"""

from __future__ import annotations

import contextlib
import json
import re

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from tfmot_ops.contract import Headline
from tfmot_ops.tracking.children import KIND_TAG

_TAG = "mlflow.sharedViewState."
#: Opens the pages for model training; MLflow opens those for agents unless a browser remembers a choice.
TRAINING_PAGES = "workflowType=machine_learning"
#: Metrics of a parent run that the view shows after those that are named after the headline.
_SHOWN = ("tflite_size_bytes", "tflite_gzip_bytes", "tflite_latency_ms", "final_sparsity", "int8_mac_fraction")

# Column of the pages -> its width in pixels: the name of a run says what it is.
_WIDTHS = {"attributes.`Run Name`": 270}
_METRIC_WIDTH = 130
_LAST_COLUMNS = ("runDateAndNestInfo", "duration")


def put_view(client: mlflow.MlflowClient, experiment: str, headline: Headline) -> str:
    """Save the view of an experiment in which the best chain comes first, unless it is there.

    Args:
        client: connected to the tracking server.
        experiment: id of the experiment.
        headline: the metric by which the chains are compared.

    Returns:
        Address of the view within MLflow's pages.
    """
    key = f"tfmot_ops_{re.sub(r'[^A-Za-z0-9]', '_', headline.name)}"
    # A user who may only add runs to an experiment must not fail for a view of them.
    with contextlib.suppress(MlflowException):
        if f"{_TAG}{key}" not in client.get_experiment(experiment).tags:
            client.set_experiment_tag(experiment, f"{_TAG}{key}", _view(headline))
    return f"#/experiments/{experiment}/runs?viewStateShareKey={key}&{TRAINING_PAGES}"


def _view(headline: Headline) -> str:
    name = headline.name
    metrics = [f"metrics.`{each}`" for each in (f"int8_{name}", f"{name}_drop", f"float_{name}", *_SHOWN)]
    state = {
        "searchFilter": f"tags.`{KIND_TAG}` = 'open_run'",
        "orderByKey": metrics[0],
        "orderByAsc": not headline.higher_is_better,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": metrics,
        "columnOrder": [*_WIDTHS, *metrics, *_LAST_COLUMNS],
        "columnWidths": _WIDTHS | dict.fromkeys(metrics, _METRIC_WIDTH),
    }
    now = get_current_time_millis()
    title = f"Chains by {headline.words}"
    return json.dumps({"name": title, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
