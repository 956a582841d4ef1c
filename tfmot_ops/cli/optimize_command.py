"""The command `tfmot-ops optimize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from tfmot_ops.cli import chain_options as options
from tfmot_ops.cli.execute import say_on_stderr
from tfmot_ops.contract import Status
from tfmot_ops.contract.refusal import refusal


def optimize(  # noqa: PLR0917 - typer reads the options from the signature, nobody calls it
    model: options.Model,
    dataset: options.DatasetName,
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a .yaml or .json file.")],
    epochs: options.Epochs = None,
    fine_tune_epochs: options.FineTuneEpochs = None,
    qat_epochs: options.QatEpochs = None,
    task: options.Task = None,
    metric: options.Metric = None,
    training: options.Training = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Device that the file is for: a name that `tfmot-ops list targets` prints, or a .yaml or .json file.",
            show_default="as the recipe file says",
        ),
    ] = None,
    seed: options.Seed = 0,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 64,
    tracking_uri: options.TrackingUri = None,
    experiment: options.Experiment = "tfmot_ops",
    no_tracking: options.NoTracking = False,
    output: Annotated[Path, typer.Option(help="Folder for the TFLite file and local artifacts.", metavar="DIR")] = Path(
        "tfmot-ops-output"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of continuing an interrupted run of this command.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Train, prune, fine-tune, strip, quantise, evaluate a model.

    Airflow is not needed. The steps are those of the DAG `optimize_model`: the same seed gives the same numbers.
    After a kill, Ctrl-C or a failure, the same command continues its MLflow run and skips the steps and epochs that
    are finished.
    """
    from tfmot_ops.cli import execute
    from tfmot_ops.cli.chain import Chain
    from tfmot_ops.cli.chain_table import print_summary
    from tfmot_ops.recipes.files import is_recipe_file, read_recipe, read_target, read_training

    tracking_uri = options.store_of(tracking_uri, output, no_tracking=no_tracking)
    chain = Chain(
        model=model,
        dataset=dataset,
        recipe=read_recipe(recipe) if is_recipe_file(recipe) else recipe,
        output=output,
        tracking_uri=tracking_uri,
        experiment=experiment,
        epochs=options.epochs_by_step(epochs, fine_tune_epochs, qat_epochs),
        data=options.data_options(batch_size, limit, task, metric),
        training=read_training(training) if training is not None else None,
        target=read_target(target) if target is not None and is_recipe_file(target) else target,
        seed=seed,
        fresh=fresh,
    )
    try:
        last = chain.run(say_on_stderr if as_json else execute.say)
    except ValidationError as error:
        raise refusal("arguments", error, "`tfmot-ops optimize --help` lists what each option takes") from error
    tflite = chain.save_tflite() if last.status is Status.OK else None
    if as_json:
        results = [result.model_dump(mode="json") for result in chain.results]
        typer.echo(json.dumps({"results": results, "tflite": str(tflite) if tflite else None}, indent=2))
    else:
        print_summary(chain.results, tracking_uri, experiment, tflite)
    # A chain that ended well, but whose MLflow run could not be ended, has made its file and fails all the same.
    failed = last.error or (chain.closed.error if chain.closed is not None else None)
    if failed is not None:
        raise typer.Exit(failed.exit_code)
