"""The command `tfmot-ops search`, and the table, page and picture with which it ends."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tfmot_ops.cli import execute
from tfmot_ops.cli.execute import say_on_stderr
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import environment, files

_TRACKING = [variable.name for variable in environment.TRACKING_VARIABLES]


def search(  # noqa: PLR0917 - typer reads the options from the signature, nobody calls it
    model: Annotated[
        str, typer.Option(help="Built-in name, application:<Name>, saved model, MLflow URI, or a registered name.")
    ],
    dataset: Annotated[
        str,
        typer.Option(help="Built-in name, npz:<path>, images:<folder>, ..., as `tfmot-ops list datasets` prints them."),
    ],
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
    epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Epochs of float training.", show_default="10; 0 for a saved model"),
    ] = None,
    fine_tune_epochs: Annotated[int | None, typer.Option(min=0, help="Epochs of pruning.", show_default="4")] = None,
    qat_epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs of quantisation-aware training.", show_default="2")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What the targets mean, as `tfmot-ops list tasks` prints it.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Headline of task own: [<output>:]<metric>.")] = None,
    training: Annotated[Path | None, typer.Option(help="Training plan, a .yaml or .json file.", metavar="FILE")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed for data, weights and batches.")] = 0,
    limit: Annotated[int | None, typer.Option(min=50, help="Maximum number of training samples.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per training step.")] = 64,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow tracking URI.", envvar=_TRACKING, show_default="mlflow.db in the output folder"),
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "tfmot_ops",
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Record nothing in MLflow.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for files, table and page.", metavar="DIR")] = Path(
        "tfmot-ops-search"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of continuing an earlier start of this search.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout, progress on stderr.")] = False,
) -> None:
    """Find the recipe that meets your goals on your device: tries recipes, the cheapest first.

    One float model is trained for all candidates. The search stops at the first candidate that meets every goal, and
    exits with 4 if none does; then it names the nearest ones and what each misses. The same command goes on where an
    earlier start was stopped.
    """
    from tfmot_ops.cli.search import Search
    from tfmot_ops.recipes.files import read_training
    from tfmot_ops.search.goals import Goals

    if no_tracking:
        tracking_uri = None
    elif tracking_uri is None:
        tracking_uri = files.sqlite_uri(output.resolve() / "mlflow.db")
    own = {name: value for name, value in (("task", task), ("metric", metric)) if value is not None}
    requested = {"train": epochs, "fine_tune": fine_tune_epochs, "prune": fine_tune_epochs, "quantize": qat_epochs}
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
            epochs={step: count for step, count in requested.items() if count is not None},
            data={"batch_size": batch_size, "limit": limit, **own},
            training=read_training(training) if training is not None else None,
            seed=seed,
            most=candidates,
            longest_s=math.inf if minutes is None else 60.0 * minutes,
            everything=everything,
            fresh=fresh,
        )
        best = run.run(say)
    except ValidationError as error:
        raise refusal("arguments", error, "`tfmot-ops search --help` lists what each option takes") from error
    from tfmot_ops.cli.search_report import report

    document: dict[str, Any] = report(run, best, say)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        typer.echo("\n" + "\n".join(document.pop("lines")))
    if best is None:
        raise typer.Exit(StepFailedError.exit_code)
