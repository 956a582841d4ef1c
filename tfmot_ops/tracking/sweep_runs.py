"""Sweeps in MLflow: records a parent run per sweep and a child run per cell, and reads earlier sweeps."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from tfmot_ops.contract import CompatResult, Status, SweepResult
from tfmot_ops.errors import StepFailedError
from tfmot_ops.system.environment import MLFLOW_UI
from tfmot_ops.system.uri_secrets import address, hide
from tfmot_ops.tracking.artifacts import put_file, put_json
from tfmot_ops.tracking.client import connect, download
from tfmot_ops.tracking.creating import create_run
from tfmot_ops.tracking.owner import owner_tag
from tfmot_ops.tracking.patience import briefly

_KIND, _ID = "tfmot_ops.kind", "tfmot_ops.sweep_id"
_CELL = "tfmot_ops.cell"
_DOCUMENT = "sweep.json"
_TABLE = "matrix.json"
#: The sweep's page with links to the MLflow runs, which exist only once the sweep is recorded.
PAGE = "index.html"
#: Retries of a request. MLflow's default, 7, takes 4 minutes if the server is down; 2 retries take 6 s, and the sweep
#: is kept on disk anyway.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
#: Seconds after which no further sweep is read; reading a sweep takes less than a second.
_READING_S = 60.0
#: Number of run ids that the message on unreadable sweeps names.
_TOLD_RUNS = 3

#: Function of (the sweep with the URL of its run; cell -> URL of its run) that returns artifact path -> local file.
Files = Callable[[SweepResult, Mapping[str, str]], Mapping[str, Path]]


def record_sweep(sweep: SweepResult, files: Files, uri: str, experiment: str) -> SweepResult:
    """Record a sweep in MLflow; a sweep that is recorded again (interrupted, or with repros) reuses its runs.

    Args:
        sweep: the finished sweep.
        files: returns the artifacts of the sweep's run; called once the URLs of the runs are known.
        uri: of the tracking server.
        experiment: MLflow experiment.

    Returns:
        The sweep with the URL of its run.

    Raises:
        StepFailedError: MLflow cannot be reached.
    """
    with _impatient():
        client, experiment_id = connect(uri, experiment)
        try:
            runs = _runs(client, experiment_id, sweep.sweep_id)
            if "-" in runs:
                parent = runs["-"].info.run_id
            else:
                name = f"sweep {sweep.started_at:%Y-%m-%d %H:%M}"
                parent = _create(client, experiment_id, sweep, name=name, tags={})
            return _log(client, parent, sweep, runs, files)
        except (MlflowException, OSError) as error:
            raise StepFailedError(
                f"tracking: the sweep {sweep.sweep_id} could not be recorded whole",
                required=f"an MLflow server at {uri} that answers",
                received=hide(f"{type(error).__name__}: {error}", uri),
                remedy="start the server; the sweep is kept on disk, and the next sweep records it",
            ) from error


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Use fewer retries for a server that does not answer, unless the user has set MLflow's variables."""
    ours = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        with briefly():
            yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def log_sweep(client: mlflow.MlflowClient, run_id: str, folder: Path) -> None:
    """Record the sweep in a summarize step's work folder; the run `run_id` becomes the sweep's parent run.

    The step's page was written before the runs existed; if the runs have URLs, a page with links to them is added.
    """
    from tfmot_ops.sweep.report.page import web_address, write_page
    from tfmot_ops.sweep.whole import read_sweeps

    sweep = SweepResult.model_validate_json((folder / _DOCUMENT).read_text(encoding="utf-8"))
    for name, value in {_KIND: "sweep", _ID: sweep.sweep_id, _CELL: "-"}.items():
        client.set_tag(run_id, name, value)

    def files(sweep: SweepResult, runs: Mapping[str, str]) -> Mapping[str, Path]:
        found = repro_files(sweep, folder)
        if web_address(sweep.run_url):
            found[PAGE] = write_page(folder / PAGE, sweep, read_sweeps(folder / "earlier"), runs)
        return found

    experiment_id = client.get_run(run_id).info.experiment_id
    _log(client, run_id, sweep, _runs(client, experiment_id, sweep.sweep_id), files)


def repro_files(sweep: SweepResult, folder: Path) -> dict[str, Path]:
    """Artifact path -> local file, for the scripts and fingerprints of repros in the folder of the sweep's page."""
    names = [each for name in sweep.repros.values() for each in (name, _fingerprint(name))]
    return {name: folder / name for name in names if (folder / name).exists()}


def _fingerprint(script: str) -> str:
    return str(PurePosixPath(script).with_suffix(".json"))


def run_address(uri: str, experiment_id: str, run_id: str) -> str:
    """URL of a run in MLflow's UI; `runs:/<id>` if the tracking URI is not http."""
    ui = MLFLOW_UI.get() or uri
    if not ui.startswith(("http://", "https://")):
        return f"runs:/{run_id}"
    # Without user and password, as the page may be given to many people.
    return f"{address(ui)}/#/experiments/{experiment_id}/runs/{run_id}"


def _log(
    client: mlflow.MlflowClient, run_id: str, sweep: SweepResult, runs: Mapping[str, Run], files: Files
) -> SweepResult:
    experiment_id = str(client.get_run(run_id).info.experiment_id)
    children = {
        cell.cell: _log_cell(client, experiment_id, sweep, cell, parent=run_id, runs=runs) for cell in sweep.cells
    }
    addresses = {name: run_address(client.tracking_uri, experiment_id, each) for name, each in children.items()}
    url = run_address(client.tracking_uri, experiment_id, run_id)
    sweep = sweep.model_copy(update={"run_url": url})
    made = files(sweep, addresses)
    for name, script in sweep.repros.items():
        for each in (script, _fingerprint(script)):
            if each in made and name in children:
                put_file(client, children[name], made[each])
    _log_sweep(client, run_id, sweep, made)
    return sweep


def cell_tags(cell: CompatResult) -> dict[str, str]:
    """Tags of a cell's run, for searches such as `tags.stage = 'export'`."""
    return {
        "architecture": cell.architecture,
        "family": cell.family,
        "recipe": cell.recipe,
        "status": cell.status.value,
        "stage": cell.failed_stage.value if cell.failed_stage else "",
        "error_class": cell.error_class or "",
        "cached": str(cell.cached).lower(),
    }


def _runs(client: mlflow.MlflowClient, experiment_id: str, sweep_id: str) -> dict[str, Run]:
    """Cell -> its existing run; the key `-` is the run of the sweep itself."""
    runs: dict[str, Run] = {}
    page, query = "", f"tags.`{_ID}` = '{sweep_id}'"
    while True:
        found = client.search_runs([experiment_id], query, max_results=1000, page_token=page or None)
        runs |= {run.data.tags.get(_CELL, "-"): run for run in found}
        page = found.token
        if not page:
            return runs


def _create(
    client: mlflow.MlflowClient,
    experiment_id: str,
    sweep: SweepResult,
    cell: str = "",
    *,
    name: str,
    tags: dict[str, str],
) -> str:
    tags = {_KIND: "cell" if cell else "sweep", _ID: sweep.sweep_id, _CELL: cell or "-", **owner_tag(), **tags}
    # With the sweep's own start time: it may be recorded long after it ran, and after later sweeps.
    started = round(sweep.started_at.timestamp() * 1000)
    return create_run(client, experiment_id, start_time=started, tags=tags, run_name=name)


def _log_cell(
    client: mlflow.MlflowClient,
    experiment_id: str,
    sweep: SweepResult,
    cell: CompatResult,
    *,
    parent: str,
    runs: Mapping[str, Run],
) -> str:
    """Log a cell and return the id of its run; a run that has ended with this result is not logged again."""
    run, tags = runs.get(cell.cell), cell_tags(cell)
    if run is None:
        of_run = {"mlflow.parentRunId": parent, **tags}
        run_id = _create(client, experiment_id, sweep, cell.cell, name=cell.cell, tags=of_run)
    else:
        run_id = str(run.info.run_id)
        if run.info.status != "RUNNING" and tags.items() <= run.data.tags.items():
            return run_id
    now = get_current_time_millis()
    metrics = [Metric(name, value, now, 0) for name, value in cell.metrics.items()]
    params = [Param("architecture", cell.architecture), Param("recipe", cell.recipe)]
    run_tags = [RunTag(name, value) for name, value in {**tags, "mlflow.note.content": _note(cell)}.items()]
    client.log_batch(run_id, metrics=metrics, params=params, tags=run_tags)
    client.set_terminated(run_id, "FINISHED" if cell.status is Status.OK else "FAILED")
    return run_id


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
        put_json(client, run_id, table, _TABLE)
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": _TABLE, "type": "table"}]))
    for name, path in files.items():
        put_file(client, run_id, path, str(Path(name).parent) if "/" in name else "")
    put_json(client, run_id, sweep.model_dump(mode="json"), _DOCUMENT)
    ended = min(now, round((sweep.started_at.timestamp() + sweep.duration_s) * 1000))
    client.set_terminated(run_id, "FINISHED" if sweep.judgement.is_good else "FAILED", ended)


def _row(cell: CompatResult) -> dict[str, Any]:
    return {**cell_tags(cell), "error_type": cell.error_type or "", "message": cell.message[:200], **cell.metrics}


def earlier_sweeps(
    uri: str, experiment: str, limit: int = 30, say: Callable[[str], None] = lambda _text: None
) -> list[SweepResult]:
    """The last sweeps in MLflow, latest first.

    Args:
        uri: tracking URI.
        experiment: name of the MLflow experiment.
        limit: largest number of sweeps.
        say: called with a message if sweeps are left out, as they cannot be read or are of an incompatible version.

    Raises:
        StepFailedError: MLflow cannot be reached.
    """
    with _impatient():
        client, experiment_id = connect(uri, experiment)
        query = f"tags.`{_KIND}` = 'sweep'"
        order = ["attributes.start_time DESC"]
        try:
            runs = client.search_runs([experiment_id], query, max_results=limit, order_by=order)
        except (MlflowException, OSError) as error:
            raise StepFailedError(
                "tracking: earlier sweeps cannot be listed",
                required=f"an MLflow server at {uri} that answers",
                received=hide(f"{type(error).__name__}: {error}", uri),
                remedy="look at the server's log; without it, only this machine's sweeps are known",
            ) from error
        found, left_out, deadline = [], [], time.monotonic() + _READING_S
        for run in runs:
            if time.monotonic() > deadline:
                break
            try:
                found.append(_read(run, uri))
            except (MlflowException, OSError, ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, no sweep
                left_out.append(str(run.info.run_id))
    if left_out:
        run_ids = ", ".join(left_out[:_TOLD_RUNS]) + (", ..." if len(left_out) > _TOLD_RUNS else "")
        say(f"left out {len(left_out)} of {len(runs)} earlier sweeps: {_DOCUMENT} is no valid sweep in runs {run_ids}")
    return found


def _read(run: Run, uri: str) -> SweepResult:
    with tempfile.TemporaryDirectory() as folder:
        path = download(f"runs:/{run.info.run_id}/{_DOCUMENT}", Path(folder), uri)
        sweep = SweepResult.model_validate_json(path.read_text(encoding="utf-8"))
    return sweep.model_copy(update={"run_url": run_address(uri, run.info.experiment_id, run.info.run_id)})
