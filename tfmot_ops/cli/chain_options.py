"""The options that `tfmot-ops optimize` and `tfmot-ops search` share, as typer reads them from a signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfmot_ops.system import environment, files

_TRACKING = [variable.name for variable in environment.TRACKING_VARIABLES]

Model = Annotated[
    str, typer.Option(help="Built-in name, application:<Name>, saved model, MLflow URI, or a registered name.")
]
DatasetName = Annotated[
    str,
    typer.Option(help="Built-in name, npz:<path>, images:<folder>, ..., as `tfmot-ops list datasets` prints them."),
]
Epochs = Annotated[
    int | None, typer.Option(min=0, help="Epochs of float training.", show_default="10; 0 for a saved model")
]
FineTuneEpochs = Annotated[
    int | None,
    typer.Option(min=0, help="Epochs of pruning.", show_default="as the recipe says; 0 if it does not prune"),
]
QatEpochs = Annotated[
    int | None,
    typer.Option(min=0, help="Epochs of quantisation-aware training.", show_default="as the recipe says"),
]
Task = Annotated[
    str | None,
    typer.Option(help="What the targets mean, as `tfmot-ops list tasks` prints it.", show_default="follows from them"),
]
Metric = Annotated[
    str | None, typer.Option(help="Headline of task own: [<output>:]<metric>.", show_default="the model's loss")
]
Training = Annotated[
    Path | None,
    typer.Option(
        help="Training plan, a .yaml or .json file: schedule, early stopping, augmentation, distillation, ...",
        show_default="as the recipe file says",
        metavar="FILE",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed for data, weights and batches.")]
Limit = Annotated[int | None, typer.Option(min=50, help="Maximum number of training samples.", show_default="all")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per training step.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow tracking URI.", envvar=_TRACKING, show_default="mlflow.db in the output folder"),
]
Experiment = Annotated[str, typer.Option(help="MLflow experiment.")]
NoTracking = Annotated[bool, typer.Option("--no-tracking", help="Record nothing in MLflow.")]
AsJson = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout, progress on stderr.")]


def store_of(tracking_uri: str | None, output: Path, *, no_tracking: bool) -> str | None:
    """The MLflow tracking URI of a command: the given one, else a database in the output folder; None for none."""
    if no_tracking:
        return None
    return tracking_uri if tracking_uri is not None else files.sqlite_uri(output.resolve() / "mlflow.db")


def epochs_by_step(epochs: int | None, fine_tune: int | None, qat: int | None) -> dict[str, int]:
    """Step -> epochs, for the numbers that were given."""
    requested = {"train": epochs, "fine_tune": fine_tune, "prune": fine_tune, "quantize": qat}
    return {step: count for step, count in requested.items() if count is not None}


def data_options(batch_size: int, limit: int | None, task: str | None, metric: str | None) -> dict[str, object]:
    """The options of every step that computes with the data set."""
    own = {name: value for name, value in (("task", task), ("metric", metric)) if value is not None}
    return {"batch_size": batch_size, "limit": limit, **own}
