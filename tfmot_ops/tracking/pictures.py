"""The pictures of a chain: on the run of its evaluate step, and from there on the parent run.

Training curves, the SQNR of each layer, and what the test samples show: a confusion matrix, an error plot or a
histogram of errors.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from tfmot_ops.contract import ACCURACY, Headline, StepResult
from tfmot_ops.errors import TfmotOpsError
from tfmot_ops.tracking import drawing
from tfmot_ops.tracking.artifacts import put_file
from tfmot_ops.tracking.children import Child, children_of
from tfmot_ops.tracking.client import MlflowStore, download
from tfmot_ops.tracking.epochs import newest

#: Folder of the pictures among a run's artifacts.
FOLDER = "pictures"
#: Tag that says why a picture is missing.
MISSING_TAG = "tfmot_ops.pictures_missing"
_EPOCH = "epoch."
_SQNR_OUTPUT, _DETAILS_OUTPUT = "layer_sqnr", "details"
_SQNR_COLUMN = "float_to_tflite_db"
_CURVES = "training_curves.png"
# File name without suffix -> caption, in the order of the description.
_CAPTIONS = {
    "confusion_matrix": "confusion matrix",
    "error_plot": "targets and predictions",
    "error_histogram": "errors of normal and anomalous samples",
    "training_curves": "training curves",
    "layer_sqnr": "SQNR of each layer",
}
# Kind of the details -> (file name, its fields, function that draws them).
_DETAILS: dict[str, tuple[str, tuple[str, str], Callable[[Path, Any, Any], None]]] = {
    "confusion": ("confusion_matrix", ("classes", "counts"), drawing.draw_confusion),
    "scatter": ("error_plot", ("targets", "predictions"), drawing.draw_scatter),
    "errors": ("error_histogram", ("normal", "anomalous"), drawing.draw_errors),
}
#: What an incomplete output or a matplotlib that cannot be used raises: a picture is not worth a failed step.
TOLERATED = (ImportError, LookupError, MlflowException, OSError, TfmotOpsError, TypeError, ValueError)


def put_pictures(
    client: mlflow.MlflowClient, run_id: str, parent: str | None, result: StepResult, workdir: Path
) -> None:
    """Draw the pictures of an evaluate step and store them on its run; a retry replaces them.

    What cannot be drawn is named by a tag, and does not fail the step.

    Args:
        client: connected to the tracking server.
        run_id: the step's run.
        parent: the parent run, whose children have the epochs; None without one.
        result: of the step.
        workdir: local folder for files in passing.
    """
    store, folder = MlflowStore(client, run_id), workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    headline = result.headline or ACCURACY
    drawings: dict[str, Callable[[], object]] = {
        "training curves": lambda: draw_curves_of(
            client, children_of(client, parent) if parent else [], headline, folder / _CURVES
        ),
        "layers": lambda: _layers(_output(store, result, _SQNR_OUTPUT, workdir), folder),
        "details": lambda: _details(_output(store, result, _DETAILS_OUTPUT, workdir), folder),
    }
    missing = {}
    for name, draw in drawings.items():
        try:
            draw()
        except TOLERATED as error:
            missing[name] = f"{type(error).__name__}: {error}"
    for path in sorted(folder.glob("*.png")):
        put_file(client, run_id, path, FOLDER)
    if missing:
        client.set_tag(run_id, MISSING_TAG, json.dumps(missing))
    elif MISSING_TAG in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, MISSING_TAG)


def bring_to_parent(
    client: mlflow.MlflowClient, parent: str, children: Sequence[Child], headline: Headline, workdir: Path
) -> dict[str, str]:
    """Copy the pictures of the evaluate step to the parent run, or draw the curves of a chain that broke off before.

    Returns:
        Caption -> path among the parent's artifacts.
    """
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for child in children:
            for artifact in client.list_artifacts(child.run_id, FOLDER) if child.kind == "evaluate" else ():
                download(f"runs:/{child.run_id}/{artifact.path}", folder, client.tracking_uri)
        pictures = sorted(folder.rglob("*.png"))
        if not pictures:
            draw_curves_of(client, children, headline, folder / _CURVES)
            pictures = sorted(folder.rglob("*.png"))
        for path in pictures:
            put_file(client, parent, path, FOLDER)
    except TOLERATED as error:
        client.set_tag(parent, MISSING_TAG, f"{type(error).__name__}: {error}")
        return {}
    stems = {path.stem for path in pictures}
    return {caption: f"{FOLDER}/{stem}.png" for stem, caption in _CAPTIONS.items() if stem in stems}


def _output(store: MlflowStore, result: StepResult, name: str, workdir: Path) -> Path | None:
    artifact = result.outputs.get(name)
    return None if artifact is None else store.fetch(artifact, workdir / "outputs" / name)


def draw_curves_of(client: mlflow.MlflowClient, children: Sequence[Child], headline: Headline, path: Path) -> bool:
    """Draw the loss and the headline of all epochs of a chain, as `drawing.draw_curves` does.

    Args:
        client: connected to the tracking server.
        children: the runs of the chain's steps.
        headline: the metric by which the task's models are compared.
        path: PNG or SVG file to write.

    Returns:
        Whether a step has epochs; otherwise no file is written.
    """
    histories: dict[str, Mapping[str, Sequence[tuple[int, float]]]] = {}
    for child in children:
        names = [name for name in child.run.data.metrics if name.startswith(_EPOCH)]
        if names:
            histories[child.step] = {name.removeprefix(_EPOCH): _history(client, child.run_id, name) for name in names}
    known = {name for history in histories.values() for name in history}
    panels = [name for name in dict.fromkeys(("loss", headline.name, *sorted(known))) if name in known]
    panels = [name for name in panels if not name.startswith("val_")][:2]
    if panels:
        drawing.draw_curves(path, histories, panels)
    return bool(panels)


def _history(client: mlflow.MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    # An attempt that was killed may have logged an epoch that a later one repeated.
    points = newest(client.get_metric_history(run_id, name))
    return sorted((epoch, value) for epoch, value in points.items() if math.isfinite(value))


def _layers(table: Path | None, folder: Path) -> None:
    if table is None:
        return
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    values = {row["path"]: float(row[_SQNR_COLUMN]) for row in rows if row[_SQNR_COLUMN]}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    if finite:
        drawing.draw_bars(folder / "layer_sqnr.png", finite)


def _details(document: Path | None, folder: Path) -> None:
    if document is None:
        return
    details = json.loads(document.read_text(encoding="utf-8"))
    if details["kind"] in _DETAILS:
        name, (first, second), draw = _DETAILS[details["kind"]]
        draw(folder / f"{name}.png", details[first], details[second])
