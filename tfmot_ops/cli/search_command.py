"""The command `tfmot-ops search`, and the table, page and picture with which it ends."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tfmot_ops.cli import chain_options as options
from tfmot_ops.cli import execute
from tfmot_ops.cli.execute import say_on_stderr
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.errors import StepFailedError


def search(  # noqa: PLR0917 - typer reads the options from the signature, nobody calls it
    model: options.Model,
    dataset: options.DatasetName,
    target: Annotated[
        str, typer.Option(help="Device: a name that `tfmot-ops list targets` prints, or a .yaml or .json file.")
    ] = "litert_cpu",
    max_drop: Annotated[
        float | None, typer.Option(help="How much worse than the float model, in points (1.0) or the metric's unit.")
    ] = None,
    min_metric: Annotated[
        float | None, typer.Option(help="Worst value of the task's metric: 0.9 for 90 %, else in its unit.")
    ] = None,
    max_flash: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most flash on the device; 256k is 256 * 1024 bytes.")
    ] = None,
    max_ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory for activations on the device.")
    ] = None,
    max_gzip: Annotated[str | None, typer.Option(metavar="SIZE", help="Largest gzipped file, a download.")] = None,
    max_latency_ratio: Annotated[
        float | None, typer.Option(min=0.0, help="Longest inference, as a ratio to the float32 file's, measured here.")
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option(min=0.0, help="Longest inference in ms: Vela's estimate, or measured here.")
    ] = None,
    min_npu_share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Least share of operations on the NPU.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Most candidates to try.")] = 8,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="Minutes after which no further candidate is started.", show_default="no limit"),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Go on after a candidate has met the goals, for the whole Pareto front.")
    ] = False,
    epochs: options.Epochs = None,
    fine_tune_epochs: options.FineTuneEpochs = None,
    qat_epochs: options.QatEpochs = None,
    task: options.Task = None,
    metric: options.Metric = None,
    training: options.Training = None,
    seed: options.Seed = 0,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 64,
    tracking_uri: options.TrackingUri = None,
    experiment: options.Experiment = "tfmot_ops",
    no_tracking: options.NoTracking = False,
    output: Annotated[Path, typer.Option(help="Folder for files, table and page.", metavar="DIR")] = Path(
        "tfmot-ops-search"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of continuing an earlier start of this search.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the recipe that meets your goals on your device: tries recipes, the cheapest first.

    One float model is trained for all candidates. The search stops at the first candidate that meets every goal, and
    exits with 4 if none does; then it names the nearest ones and what each misses. The same command goes on where an
    earlier start was stopped.
    """
    from tfmot_ops.cli.search import Search
    from tfmot_ops.recipes.files import read_training
    from tfmot_ops.search.goals import Goals

    tracking_uri = options.store_of(tracking_uri, output, no_tracking=no_tracking)
    say = say_on_stderr if as_json else execute.say
    try:
        goals = Goals.model_validate(
            {
                "max_drop": max_drop,
                "min_metric": min_metric,
                "max_flash": max_flash,
                "max_ram": max_ram,
                "max_gzip": max_gzip,
                "max_latency_ratio": max_latency_ratio,
                "max_latency": max_latency,
                "min_npu_share": min_npu_share,
            }
        )
        run = Search(
            model=model,
            dataset=dataset,
            target=target,
            goals=goals,
            output=output,
            tracking_uri=tracking_uri,
            experiment=experiment,
            epochs=options.epochs_by_step(epochs, fine_tune_epochs, qat_epochs),
            data=options.data_options(batch_size, limit, task, metric),
            training=read_training(training) if training is not None else None,
            seed=seed,
            max_candidates=candidates,
            max_seconds=math.inf if minutes is None else 60.0 * minutes,
            everything=everything,
            fresh=fresh,
        )
        best = run.run(say)
    except ValidationError as error:
        raise refusal("arguments", error, "`tfmot-ops search --help` lists what each option takes") from error
    from tfmot_ops.cli.search_report import report

    document: dict[str, Any] = report(run, best, say)
    lines = document.pop("lines")
    typer.echo(json.dumps(document, indent=2) if as_json else "\n" + "\n".join(lines))
    if best is None:
        raise typer.Exit(StepFailedError.exit_code)
