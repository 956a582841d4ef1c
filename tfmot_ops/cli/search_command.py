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
from tfmot_ops.contract import Found, Goals, RegisterOptions, StepError
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.errors import SpecError, StepFailedError


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
    register: Annotated[
        str | None,
        typer.Option(
            help="Registered model that the chosen file becomes a version of, as `tfmot-ops registry register` does.",
            metavar="NAME",
            show_default="not registered",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Rules that have to hold for the registration, a .yaml or .json file.", metavar="FILE"),
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make the version the champion at once.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of continuing an earlier start of this search.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the recipe that meets your goals on your device.

    Recipes are tried one after the other, the cheapest first. One float model is trained for all candidates. The
    search stops at the first candidate that meets every goal, and exits with 4 if none does; then it names the
    nearest ones and what each misses. The same command goes on where an earlier start was stopped.

    With `--register`, the chosen file is put into MLflow's model registry. Nothing is registered if no candidate meets
    every goal, or if a rule of the policy does not hold: the exit code is 4.
    """
    from tfmot_ops.cli.search import Search
    from tfmot_ops.recipes.files import read_training

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
        release = _release(register, policy, promote=promote, tracking_uri=tracking_uri)
        best = run.run(say)
    except ValidationError as error:
        raise refusal("arguments", error, "`tfmot-ops search --help` lists what each option takes") from error
    from tfmot_ops.cli.search_report import report

    document: dict[str, Any] = report(run, say)
    lines = document.pop("lines")
    refused = _handed_over(best, release, str(tracking_uri), document, lines) if release is not None else None
    typer.echo(json.dumps(document, indent=2) if as_json else "\n" + "\n".join(lines))
    if best is None:
        raise typer.Exit(StepFailedError.exit_code)
    if refused is not None:
        raise typer.Exit(refused.exit_code)


def _release(
    name: str | None, policy: Path | None, *, promote: bool, tracking_uri: str | None
) -> RegisterOptions | None:
    """How the chosen file is registered; None where it is not.

    Raises:
        SpecError: the rest was given without a name, or nothing is recorded in MLflow.
        ValidationError: MLflow does not take the name.
    """
    from tfmot_ops.recipes import read_policy

    if name is None:
        if policy is not None or promote:
            raise SpecError(
                "--policy and --promote are about a registration, and nothing is registered",
                required="--register NAME",
                received="no --register",
                remedy="name the registered model, or leave the other option out",
            )
        return None
    if tracking_uri is None:
        raise SpecError(
            "--register needs MLflow, and nothing is recorded there",
            required="a tracking server with a model registry",
            received="--no-tracking",
            remedy="leave --no-tracking out",
        )
    return RegisterOptions(name=name, policy=read_policy(policy) if policy else None, promote=promote)


def _handed_over(
    best: Found | None, release: RegisterOptions, tracking_uri: str, document: dict[str, Any], lines: list[str]
) -> StepError | None:
    """Register the chosen file, and add to the command's answer what came of it.

    Returns:
        Why the file was not registered; None where it was, or where no candidate was chosen.
    """
    from tfmot_ops.cli.registry_commands import register_chain, registered_text

    document["registered"] = None
    if best is None or best.run_id is None:
        lines.append(f"{release.name}: nothing registered, as no candidate meets every goal")
        return None
    result = register_chain(best.run_id, tracking_uri, release)
    if result.error is not None:
        lines.append(f"{release.name}: nothing registered: {result.error.message}")
        return result.error
    names = {"version": "registered_version", "replaced": "replaced_version"}
    versions = {name: result.parameters.get(parameter) for name, parameter in names.items()}
    document["registered"] = {"name": release.name, "alias": release.alias, **versions}
    lines.append(registered_text(result, release))
    return None
