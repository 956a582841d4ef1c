"""`tfmot-ops registry`: put a chain's file into MLflow's registry, make a version the champion, and take it back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfmot_ops.contract import RegisterOptions, Status, StepSpec, Tracking
from tfmot_ops.errors import SpecError
from tfmot_ops.system import environment

if TYPE_CHECKING:
    import mlflow

app = typer.Typer(
    help="Release TFLite files: gates, versions, the champion and the way back.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Name = Annotated[str, typer.Argument(help="Registered model.", metavar="NAME")]
_TrackingUri = Annotated[
    str,
    typer.Option(help="MLflow tracking URI.", envvar=[variable.name for variable in environment.TRACKING_VARIABLES]),
]
_Json = Annotated[bool, typer.Option("--json", help="The answer as JSON on stdout.")]


@app.command()
def register(  # noqa: PLR0917 - typer reads the options from the signature, nobody calls it
    name: _Name,
    run: Annotated[
        str, typer.Option(help="MLflow run of a chain, or of one of its steps (`tracking_run_id` in `--json`).")
    ],
    tracking_uri: _TrackingUri,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Rules that have to hold, a .yaml or .json file; `tfmot-ops schema policy` prints its form.",
            metavar="FILE",
        ),
    ] = None,
    alias: Annotated[str, typer.Option(help="Alias of the new version.")] = "candidate",
    promote: Annotated[bool, typer.Option("--promote", help="Make the version the champion at once.")] = False,
    as_json: _Json = False,
) -> None:
    """Register the TFLite file of a chain, if every rule of the policy holds.

    Exits with 4 when a rule does not hold; all rules are judged, and each one that fails is named.
    """
    from tfmot_ops.cli import execute
    from tfmot_ops.recipes import read_policy
    from tfmot_ops.tracking import registry_of

    rules = read_policy(policy) if policy is not None else None
    spec = _spec(registry_of(tracking_uri), run, tracking_uri)
    options = {"name": name, "alias": alias, "policy": rules, "promote": promote}
    spec = spec.model_copy(update={"options": RegisterOptions(**{**spec.options.model_dump(), **options})})
    result = execute.execute(spec, execute.say_on_stderr)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    elif result.error is None:
        version = result.parameters["registered_version"]
        replaced = result.parameters.get("replaced_version")
        champion = f", the champion instead of {f'version {replaced}' if replaced else 'none'}" if promote else ""
        typer.echo(f"{name}: version {version} is {alias}{champion}")
    if result.error is not None:
        raise typer.Exit(result.error.exit_code)


def _spec(client: mlflow.MlflowClient, run: str, tracking_uri: str) -> StepSpec:
    """The spec that registers the file of a chain with the metrics of its step `evaluate`.

    Args:
        client: of the tracking server.
        run: id of the chain's run, or of the run of one of its steps.
        tracking_uri: of the tracking server.

    Raises:
        SpecError: there is no such run, or its chain made and measured no file.
    """
    from tfmot_ops.tracking import children_of, parent_of

    run = parent_of(client, run)
    results = [child.result for child in children_of(client, run) if child.result is not None]
    ended_well = {result.kind: result for result in results if result.status is Status.OK}
    made, measured = ended_well.get("quantize"), ended_well.get("evaluate")
    if made is None or measured is None or "tflite" not in made.outputs:
        raise SpecError(
            f"run {run} has no file to register",
            required="the parent run of a chain whose steps quantize and evaluate ended well",
            received=", ".join(f"{result.step_id} {result.status}" for result in results) or "a run without steps",
            remedy="take the run that `tfmot-ops optimize` or the DAG opened; MLflow's page shows its id",
        )
    experiment = client.get_experiment(client.get_run(run).info.experiment_id).name
    options: dict[str, Any] = {"name": "to be named", "metrics": measured.metrics, "headline": measured.headline}
    return StepSpec(
        step_id="register",
        inputs={"tflite": made.outputs["tflite"]},
        tracking=Tracking(uri=tracking_uri, experiment=experiment, parent_run_id=run),
        options=RegisterOptions(**options),
    )


@app.command()
def promote(
    name: _Name,
    tracking_uri: _TrackingUri,
    version: Annotated[str, typer.Option(help="Number or alias of the version.")] = "candidate",
    as_json: _Json = False,
) -> None:
    """Make a version the champion; of two promotions at once, one wins and the other exits with 4."""
    from tfmot_ops.tracking import promote as make_champion
    from tfmot_ops.tracking import registry_of

    _tell(make_champion(registry_of(tracking_uri), name, version), as_json)


@app.command()
def rollback(name: _Name, tracking_uri: _TrackingUri, as_json: _Json = False) -> None:
    """Make the version the champion again that the present champion replaced."""
    from tfmot_ops.tracking import registry_of
    from tfmot_ops.tracking import rollback as go_back

    _tell(go_back(registry_of(tracking_uri), name), as_json)


def _tell(promotion: Any, as_json: bool) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(asdict(promotion)))
    else:
        before = "none" if promotion.replaced is None else f"version {promotion.replaced}"
        typer.echo(f"{promotion.name}: version {promotion.version} is the champion; before, it was {before}")
