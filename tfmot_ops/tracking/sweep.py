"""Sweeps in MLflow: a parent run a sweep, a child a cell, the whole matrix as a table; and what is there already."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis
from pydantic import ValidationError

from tfmot_ops.contract import CompatResult, Status, SweepResult
from tfmot_ops.errors import StepFailedError
from tfmot_ops.tracking.client import connect, download

_KIND, _ID = "tfmot_ops.kind", "tfmot_ops.sweep_id"
_CELL = "tfmot_ops.cell"
_DOCUMENT = "sweep.json"
_TABLE = "matrix.json"


def record_sweep(sweep: SweepResult, files: Mapping[str, Path], uri: str, experiment: str) -> SweepResult:
    """Put a sweep on MLflow; recorded again (after an interruption) it takes up its runs instead of adding some.

    Args:
        sweep: the finished sweep.
        files: folder on the run (empty for its top) with the name -> local file.
        uri: of the tracking server.
        experiment: MLflow experiment.

    Returns:
        The sweep with the id of its run as `runs:/<id>`.

    Raises:
        StepFailedError: MLflow cannot be reached.
    """
    client, experiment_id = connect(uri, experiment)
    try:
        name = f"sweep {sweep.started_at:%Y-%m-%d %H:%M}"
        parent = _run_of(client, experiment_id, sweep.sweep_id, "", name=name, tags={})
        _log(client, experiment_id, parent, sweep, files)
    except (MlflowException, OSError) as error:
        raise StepFailedError(
            f"tracking: the sweep {sweep.sweep_id} could not be recorded whole",
            required=f"an MLflow server at {uri} that answers",
            received=f"{type(error).__name__}: {error}",
            remedy="it is kept on disk; the next sweep records it, too",
        ) from error
    return sweep.model_copy(update={"run_url": f"runs:/{parent}"})


def log_sweep(client: mlflow.MlflowClient, run_id: str, folder: Path) -> None:
    """Put the sweep that a summarize step left in its work folder on a run, which becomes the sweep's."""
    sweep = SweepResult.model_validate_json((folder / _DOCUMENT).read_text(encoding="utf-8"))
    for name, value in {_KIND: "sweep", _ID: sweep.sweep_id, _CELL: "-"}.items():
        client.set_tag(run_id, name, value)
    files = {f"repros/{name}": folder / name for name in sweep.repros.values()}
    _log(client, client.get_run(run_id).info.experiment_id, run_id, sweep, files)


def _log(
    client: mlflow.MlflowClient, experiment_id: str, run_id: str, sweep: SweepResult, files: Mapping[str, Path]
) -> None:
    for cell in sweep.cells:
        tags = {"mlflow.parentRunId": run_id, **cell_tags(cell)}
        child = _run_of(client, experiment_id, sweep.sweep_id, cell.cell, name=cell.cell, tags=tags)
        _log_cell(client, child, cell)
    _log_sweep(client, run_id, sweep, files)


def cell_tags(cell: CompatResult) -> dict[str, str]:
    """What runs of cells are searched by: `tags.stage = 'export'`."""
    return {
        "architecture": cell.architecture,
        "family": cell.family,
        "recipe": cell.recipe,
        "status": cell.status.value,
        "stage": cell.failed_stage.value if cell.failed_stage else "",
        "error_class": cell.error_class or "",
        "cached": str(cell.cached).lower(),
    }


def _run_of(
    client: mlflow.MlflowClient, experiment_id: str, sweep_id: str, cell: str, *, name: str, tags: dict[str, str]
) -> str:
    query = f"tags.`{_ID}` = '{sweep_id}' and tags.`{_CELL}` = '{cell or '-'}'"
    found = client.search_runs([experiment_id], query, max_results=1)
    if found:
        return str(found[0].info.run_id)
    kind = "cell" if cell else "sweep"
    tags = {_KIND: kind, _ID: sweep_id, _CELL: cell or "-", **tags}
    return str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)


def _log_cell(client: mlflow.MlflowClient, run_id: str, cell: CompatResult) -> None:
    now = get_current_time_millis()
    metrics = [Metric(name, value, now, 0) for name, value in cell.metrics.items()]
    params = [Param("architecture", cell.architecture), Param("recipe", cell.recipe)]
    client.log_batch(run_id, metrics=metrics, params=params, tags=[RunTag("mlflow.note.content", _note(cell))])
    client.set_terminated(run_id, "FINISHED" if cell.status is Status.OK else "FAILED")


def _note(cell: CompatResult) -> str:
    return f"```\n{cell.message}\n```" if cell.message else "All stages passed."


def _log_sweep(client: mlflow.MlflowClient, run_id: str, sweep: SweepResult, files: Mapping[str, Path]) -> None:
    figures = {
        "cells": len(sweep.cells),
        "passed": sweep.passed,
        "cached": sum(cell.cached for cell in sweep.cells),
        "regressions": len(sweep.judgement.regressions),
        "improvements": len(sweep.judgement.improvements),
        "missing": len(sweep.judgement.missing),
        "duration_s": sweep.duration_s,
    }
    now = get_current_time_millis()
    client.log_batch(run_id, metrics=[Metric(name, float(value), now, 0) for name, value in figures.items()])
    rows = [_row(cell) for cell in sweep.cells]
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
        client.log_dict(run_id, table, _TABLE)
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": _TABLE, "type": "table"}]))
    for name, path in files.items():
        client.log_artifact(run_id, str(path), str(Path(name).parent) if "/" in name else None)
    client.log_dict(run_id, sweep.model_dump(mode="json"), _DOCUMENT)
    client.set_terminated(run_id, "FINISHED" if sweep.judgement.is_good else "FAILED")


def _row(cell: CompatResult) -> dict[str, Any]:
    return {**cell_tags(cell), "error_type": cell.error_type or "", "message": cell.message[:200], **cell.metrics}


def earlier_sweeps(uri: str, experiment: str, limit: int = 30) -> list[SweepResult]:
    """The last sweeps on MLflow, from the latest on; one that cannot be read (any more) is left out.

    Raises:
        StepFailedError: MLflow cannot be reached.
    """
    client, experiment_id = connect(uri, experiment)
    query = f"tags.`{_KIND}` = 'sweep'"
    runs = client.search_runs([experiment_id], query, max_results=limit, order_by=["attributes.start_time DESC"])
    found = []
    for run in runs:
        with contextlib.suppress(MlflowException, OSError, ValidationError):
            found.append(_read(run.info.run_id, uri))
    return found


def _read(run_id: str, uri: str) -> SweepResult:
    with tempfile.TemporaryDirectory() as folder:
        path = download(f"runs:/{run_id}/{_DOCUMENT}", Path(folder), uri)
        sweep = SweepResult.model_validate_json(path.read_text(encoding="utf-8"))
    return sweep.model_copy(update={"run_url": f"runs:/{run_id}"})
