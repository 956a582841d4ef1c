"""Closes the parent run of a chain: its few figures, tags, data set, pictures and description."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlflow
from mlflow.entities import RunStatus

from tfmot_ops.contract import ACCURACY, CloseRunOptions, Headline, Status, StepResult
from tfmot_ops.tracking import pictures, plots
from tfmot_ops.tracking.children import KIND_TAG, PARENT_TAG, Child, children_of, step_of
from tfmot_ops.tracking.datasets import TRAINING, dataset_of, log_dataset
from tfmot_ops.tracking.description import StepRow, artifact_address, describe
from tfmot_ops.tracking.labels import tags_of
from tfmot_ops.tracking.summary import summary
from tfmot_ops.tracking.views import TRAINING_PAGES, put_view
from tfmot_ops.tracking.writing import log_metrics, log_tags

NOTE = "mlflow.note.content"


def close(client: mlflow.MlflowClient, run_id: str, options: CloseRunOptions, workdir: Path) -> None:
    """Give the parent run what can be said of the whole chain, from the runs of its steps; once more is no harm.

    Args:
        client: connected to the tracking server.
        run_id: the parent run.
        options: the steps' metrics, the steps that did not succeed, and the headline.
        workdir: local folder for files in passing.
    """
    children = children_of(client, run_id)
    results = [child.result for child in children if child.result is not None]
    headline = options.headline or _headline(results) or ACCURACY
    figures = summary(options.steps, headline)
    if results:
        figures["duration_s"] = sum(result.duration_s for result in results)
    log_metrics(client, run_id, figures)
    for result in results:
        data = dataset_of(result.parameters)
        if data is not None:
            log_dataset(client, run_id, data, TRAINING)
    shown = pictures.bring_to_parent(client, run_id, children, headline, workdir)
    known = client.get_run(run_id).data.tags
    # Before the page, which finds the chains of the same model and data by these tags.
    log_tags(client, run_id, {name: value for name, value in _said_by(results).items() if name not in known})
    has_page = plots.put_page(client, run_id, children, headline, workdir)
    run = client.get_run(run_id)
    tags = dict(run.data.tags)
    experiment = str(run.info.experiment_id)
    rows = _rows(children, options, experiment)
    addresses = {caption: artifact_address(run_id, path) for caption, path in shown.items()}
    links = {f"All chains by {headline.words}": put_view(client, experiment, headline)}
    if has_page:
        links["Page of plots"] = artifact_address(run_id, plots.PAGE)
    tags[NOTE] = describe(tags, rows, figures, headline, links=links, pictures=addresses)
    log_tags(client, run_id, {name: value for name, value in tags.items() if run.data.tags.get(name) != value})


def end_what_was_killed(client: mlflow.MlflowClient, run_id: str) -> None:
    """End child runs that are still RUNNING at the end of a chain: their processes were killed."""
    experiment = client.get_run(run_id).info.experiment_id
    running = f"tags.`{PARENT_TAG}` = '{run_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment], running):
        client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def has_failed_mapped_step(client: mlflow.MlflowClient, run_id: str, options: CloseRunOptions) -> bool:
    """Whether a step of a mapped task failed: Airflow hands on the results of the others only, without a gap."""
    experiment = client.get_run(run_id).info.experiment_id
    mapped = {name.partition("[")[0] for name in options.steps if name.endswith("]")}
    if not mapped:
        return False
    unfinished = f"tags.`{PARENT_TAG}` = '{run_id}' and attributes.status != 'FINISHED'"
    names = [step_of(run) for run in client.search_runs([experiment], unfinished)]
    return any(name.endswith("]") and name.partition("[")[0] in mapped for name in names)


def has_failed_registration(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Whether a file of the chain was refused by the rules for the registry; that step is none of the chain's."""
    experiment = client.get_run(run_id).info.experiment_id
    refused = f"tags.`{PARENT_TAG}` = '{run_id}' and tags.`{KIND_TAG}` = 'register' and attributes.status = 'FAILED'"
    return bool(client.search_runs([experiment], refused, max_results=1))


def _headline(results: Sequence[StepResult]) -> Headline | None:
    return next((result.headline for result in reversed(results) if result.headline is not None), None)


def _said_by(results: Sequence[StepResult]) -> dict[str, str]:
    """Tags from the steps' parameters: the task is known once a step has read the data."""
    tags: dict[str, str] = {}
    for result in results:
        tags |= tags_of(result.parameters)
    return tags


def _rows(children: Sequence[Child], options: CloseRunOptions, experiment: str) -> list[StepRow]:
    rows = [_row(child, options, experiment) for child in children]
    seen = {row.name for row in rows}
    rows += [StepRow(name, metrics) for name, metrics in options.steps.items() if name not in seen]
    return rows + [StepRow(name, problem="") for name in options.failed if name not in seen]


def _row(child: Child, options: CloseRunOptions, experiment: str) -> StepRow:
    address = f"#/experiments/{experiment}/runs/{child.run_id}?{TRAINING_PAGES}"
    result, problem = child.result, None
    if result is not None and result.error is not None:
        problem = f"{result.error.type}: {result.error.message}"
    elif child.step in options.failed or (result is not None and result.status is not Status.OK):
        problem = f"The step ended without a result; its run is {child.run.info.status}."
    metrics = options.steps.get(child.step, {}) if result is None else result.metrics
    duration = None if result is None else result.duration_s
    return StepRow(child.step, {} if problem is not None else metrics, problem, duration, address)
