"""The command `tfmot-ops optimize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from tfmot_ops.cli.execute import say_on_stderr
from tfmot_ops.contract import Status
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.system import environment, files

_TRACKING = [variable.name for variable in environment.TRACKING_VARIABLES]


def optimize(  # noqa: PLR0917 - typer reads the options from the signature, nobody calls it
    model: Annotated[
        str, typer.Option(help="Built-in name, application:<Name>, saved model, MLflow URI, or a registered name.")
    ],
    dataset: Annotated[
        str,
        typer.Option(help="Built-in name, npz:<path>, images:<folder>, ..., as `tfmot-ops list datasets` prints them."),
    ],
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a .yaml or .json file.")],
    epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Epochs of float training.", show_default="10; 0 for a saved model"),
    ] = None,
    fine_tune_epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Epochs of pruning.", show_default="as the recipe says; 0 if it does not prune"),
    ] = None,
    qat_epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Epochs of quantisation-aware training.", show_default="as the recipe says"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What the targets mean, as `tfmot-ops list tasks` prints it.", show_default="follows from them"
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Headline of task own: [<output>:]<metric>.", show_default="the model's loss")
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            help="Training plan, a .yaml or .json file: schedule, early stopping, augmentation, distillation, ...",
            show_default="as the recipe file says",
            metavar="FILE",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Device that the file is for: a name that `tfmot-ops list targets` prints, or a .yaml or .json file.",
            show_default="as the recipe file says",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed for data, weights and batches.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=50, help="Maximum number of training samples.", show_default="all")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per training step.")] = 64,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow tracking URI.",
            envvar=_TRACKING,
            show_default="mlflow.db in the output folder",
        ),
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "tfmot_ops",
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Record nothing in MLflow.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the TFLite file and local artifacts.", metavar="DIR")] = Path(
        "tfmot-ops-output"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of continuing an interrupted run of this command.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout, progress on stderr.")] = False,
) -> None:
    """Train, prune, fine-tune, strip, quantise and evaluate a model, without Airflow.

    The steps are those of the DAG `optimize_model`: the same seed gives the same numbers. After a kill, Ctrl-C or a
    failure, the same command continues its MLflow run and skips the steps and epochs that are finished.
    """
    from tfmot_ops.cli import execute
    from tfmot_ops.cli.chain import Chain
    from tfmot_ops.cli.chain_table import print_summary
    from tfmot_ops.recipes.files import is_recipe_file, read_recipe, read_target, read_training

    if no_tracking:
        tracking_uri = None
    elif tracking_uri is None:
        tracking_uri = files.sqlite_uri(output.resolve() / "mlflow.db")
    own = {name: value for name, value in (("task", task), ("metric", metric)) if value is not None}
    requested = {"train": epochs, "fine_tune": fine_tune_epochs, "prune": fine_tune_epochs, "quantize": qat_epochs}
    chain = Chain(
        model=model,
        dataset=dataset,
        recipe=read_recipe(recipe) if is_recipe_file(recipe) else recipe,
        output=output,
        tracking_uri=tracking_uri,
        experiment=experiment,
        epochs={step: count for step, count in requested.items() if count is not None},
        data={"batch_size": batch_size, "limit": limit, **own},
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
