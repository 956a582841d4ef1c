"""`tfmot-ops registry`: put a chain's file into MLflow's registry, make a version the champion, and take it back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from tfmot_ops.contract import RegisterOptions, Status, StepResult, StepSpec, Tracking
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.errors import SpecError
from tfmot_ops.system import environment

if TYPE_CHECKING:
    import mlflow

app = typer.Typer(
    help="Release TFLite files: rules, versions, champion, rollback.",
    no_args_is_help=True,
    rich_markup_mode=None,
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
    """Register the TFLite file of a chain, if it keeps the rules.

    Exits with 4 when a rule does not hold; all rules are judged, and each one that fails is named.
    """
    from tfmot_ops.recipes import read_policy

    rules = read_policy(policy) if policy is not None else None
    given = {"name": name, "alias": alias, "policy": rules, "promote": promote}
    try:
        options = RegisterOptions.model_validate(given)
    except ValidationError as error:
        raise refusal("arguments", error, "`tfmot-ops registry register --help` lists what each takes") from error
    result = register_chain(run, tracking_uri, options)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    elif result.error is None:
        typer.echo(registered_text(result, options))
    if result.error is not None:
        raise typer.Exit(result.error.exit_code)


def register_chain(run: str, tracking_uri: str, options: RegisterOptions) -> StepResult:
    """Register the file of a chain with its card, if every rule holds; progress is told on stderr.

    Args:
        run: id of the chain's run, or of the run of one of its steps.
        tracking_uri: of the tracking server.
        options: name, alias, policy and promotion; the metrics are taken from the chain.

    Returns:
        The result of the step `register`, with the error of a rule that does not hold.

    Raises:
        SpecError: there is no such run, or its chain made and measured no file.
        StepFailedError: MLflow cannot be used.
    """
    from tfmot_ops.cli import execute
    from tfmot_ops.tracking import registry_of

    with _refusals_told(tracking_uri):
        spec = _spec(registry_of(tracking_uri), run, tracking_uri, options.name)
    known = {name: getattr(spec.options, name) for name in ("metrics", "headline")}
    spec = spec.model_copy(update={"options": options.model_copy(update=known)})
    return execute.execute(spec, execute.say_on_stderr)


def registered_text(result: StepResult, options: RegisterOptions) -> str:
    """A line on a version that was registered: `digits: version 3 is candidate`."""
    champion = f" and the champion; {_before(result.parameters.get('replaced_version'))}" if options.promote else ""
    return f"{options.name}: version {result.parameters['registered_version']} is {options.alias}{champion}"


def _spec(client: mlflow.MlflowClient, run: str, tracking_uri: str, name: str) -> StepSpec:
    """The spec that registers the file of a chain with the metrics of its step `evaluate`.

    Its key names the chain and the registered model: the same command again, as after a kill, makes no second version.

    Args:
        client: of the tracking server.
        run: id of the chain's run, or of the run of one of its steps.
        tracking_uri: of the tracking server.
        name: of the registered model.

    Raises:
        SpecError: there is no such run, or its chain made and measured no file.
    """
    from tfmot_ops.tracking import children_of, parent_of

    parent = parent_of(client, run)
    results = [child.result for child in children_of(client, run) if child.result is not None]
    if not results:  # the run of a step; the run of a candidate's chain has a parent too, the search
        run = parent
        results = [child.result for child in children_of(client, run) if child.result is not None]
    ended_well = [result for result in results if result.status is Status.OK]
    made = [result for result in ended_well if result.kind == "quantize" and "tflite" in result.outputs]
    measured = [result for result in ended_well if result.kind == "evaluate"]
    if len(made) != 1 or len(measured) != 1:
        raise SpecError(
            f"run {run} has no file to register",
            required="the run of a chain with one step quantize and one step evaluate that ended well",
            received=", ".join(f"{result.step_id} {result.status}" for result in results) or "a run without steps",
            remedy="take the run that `tfmot-ops optimize` or the DAG opened; MLflow's page shows its id",
        )
    experiment = client.get_experiment(client.get_run(run).info.experiment_id).name
    options: dict[str, Any] = {"name": name, "metrics": measured[0].metrics, "headline": measured[0].headline}
    return StepSpec(
        step_id="register",
        inputs={"tflite": made[0].outputs["tflite"]},
        tracking=Tracking(uri=tracking_uri, experiment=experiment, parent_run_id=run, key={"run": run, "model": name}),
        options=RegisterOptions(**options),
    )


@app.command()
def promote(
    name: _Name,
    tracking_uri: _TrackingUri,
    version: Annotated[str, typer.Option(help="Number or alias of the version.")] = "candidate",
    as_json: _Json = False,
) -> None:
    """Make a version the champion.

    Of two promotions at the same time, one wins and the other exits with 4.
    """
    from tfmot_ops.tracking import promote as make_champion
    from tfmot_ops.tracking import registry_of

    with _refusals_told(tracking_uri):
        done = make_champion(registry_of(tracking_uri), name, version)
    _tell(done, as_json)


@app.command()
def rollback(name: _Name, tracking_uri: _TrackingUri, as_json: _Json = False) -> None:
    """Make the previous champion the champion again."""
    from tfmot_ops.tracking import registry_of
    from tfmot_ops.tracking import rollback as go_back

    with _refusals_told(tracking_uri):
        done = go_back(registry_of(tracking_uri), name)
    _tell(done, as_json)


@contextlib.contextmanager
def _refusals_told(uri: str) -> Iterator[None]:
    """Turn a refusal by MLflow into an error for the user."""
    from tfmot_ops.tracking import refusal_of_mlflow

    try:
        yield
    except Exception as error:
        known = refusal_of_mlflow(error, uri)
        if known is None:
            raise
        raise known from error


def _tell(promotion: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(promotion)))
    else:
        typer.echo(f"{promotion.name}: version {promotion.version} is the champion; {_before(promotion.replaced)}")


def _before(replaced: Any) -> str:
    return "there was none before" if replaced is None else f"before, it was version {replaced}"
