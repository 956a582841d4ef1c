"""The commands of `tfmot-ops`. Each command imports TensorFlow and MLflow in its body, so `--help` is fast."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tfmot_ops import __version__
from tfmot_ops.cli import registry_commands
from tfmot_ops.cli.bundle_command import bundle
from tfmot_ops.cli.execute import say_on_stderr
from tfmot_ops.cli.optimize_command import optimize
from tfmot_ops.cli.schemas import SCHEMAS, DocumentName
from tfmot_ops.cli.search_command import search
from tfmot_ops.contract import (
    Device,
)
from tfmot_ops.errors import SpecError, StepFailedError, TfmotOpsError
from tfmot_ops.system import environment, files, native_log, processes
from tfmot_ops.system.scratch import temporary_files_in_scratch
from tfmot_ops.system.uri_secrets import hide

app = typer.Typer(
    help="Prune, quantise and export tf_keras models to int8 TFLite, tracked in MLflow.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: paragraphs are wrapped again, and options leave room for their texts
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 a bug, 2 the request is wrong, 3 the model is not supported, 4 the step failed.",
)

app.add_typer(registry_commands.app, name="registry")

_TRACKING = [variable.name for variable in environment.TRACKING_VARIABLES]
#: Commands that make temporary files. If one is killed, the next start of any of them removes its files.
_WITH_TEMPORARY_FILES = frozenset({"run", "optimize", "search", "sweep", "forecast"})
#: Commands that end their MLflow run on SIGINT, SIGTERM and SIGHUP.
_WITH_A_RUN = frozenset({"run", "optimize", "search"})


def main() -> None:
    """Entry point: prints an error of `tfmot_ops.errors` on stderr and exits with the exit code of its class."""
    # TensorFlow's import makes 344,000 objects. Python's default, a collection after every 700, costs a tenth of a
    # short step.
    gc.set_threshold(50_000, 10, 10)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal of another encoding than UTF-8, and a file name that is not UTF-8, cannot be printed as they are.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _check_arguments()
        app()
    except Exception as error:  # noqa: BLE001 - no caller is left to report it
        known = error if isinstance(error, TfmotOpsError) else files.disk_failure(error) or _no_folder(error)
        # An unexpected exception gets Python's traceback, with secrets replaced.
        text = traceback.format_exc() if known is None else f"{type(known).__name__}: {known}\n"
        sys.stderr.write(hide(text, *_uris()))
        sys.exit(TfmotOpsError.exit_code if known is None else known.exit_code)


def _check_arguments() -> None:
    """Refuse arguments, such as a folder's name, that are not UTF-8: no result and no MLflow run could hold them."""
    for argument in sys.argv[1:]:
        given = os.fsencode(argument)
        try:
            given.decode()
        except UnicodeDecodeError as error:
            raise SpecError(
                "an argument is not text in UTF-8",
                required="names of files and folders in UTF-8",
                received=repr(given)[1:],
                remedy="rename the file or folder",
            ) from error


def _no_folder(error: Exception) -> StepFailedError | None:
    """The error for the user if the folder in which the command was started is gone."""
    if isinstance(error, FileNotFoundError) and not files.has_current_folder():
        return StepFailedError(
            "the folder in which the command was started does not exist any more",
            required="a folder that is there while the command runs",
            received=f"{type(error).__name__}: {error}",
            remedy="change to another folder, and start the same command again",
        )
    return None


def _uris() -> list[str | None]:
    """The texts that may hold a secret: this process's arguments and the MLflow tracking URIs it was given."""
    return [*sys.argv[1:], *environment.tracking_uris()]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tfmot-ops {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # the option's callback has printed it already
    context.with_resource(native_log.errors_only())
    if context.invoked_subcommand in _WITH_TEMPORARY_FILES:
        context.with_resource(temporary_files_in_scratch())
    if context.invoked_subcommand in _WITH_A_RUN:
        context.with_resource(processes.exit_on_signals())


@app.command()
def run(
    spec: Annotated[
        str,
        typer.Option(help="StepSpec: a JSON file, or env:NAME to read the JSON from that variable.", metavar="FILE"),
    ],
    result: Annotated[Path, typer.Option(help="File for the StepResult, written atomically.", metavar="FILE")],
    die_with_parent: Annotated[
        bool,
        typer.Option("--die-with-parent", help="Exit, with all children, when stdin (a pipe) closes."),
    ] = False,
) -> None:
    """Run one step: read a StepSpec file, write a StepResult file.

    An invalid spec writes no result. A step that fails writes a result with the status `failed` and its error.
    """
    from tfmot_ops.cli import execute

    if die_with_parent:
        processes.die_with_parent(with_group=True)
    answer = execute.execute(execute.read_spec(spec))
    execute.write_result(answer, result)
    if answer.error is not None:
        raise typer.Exit(answer.error.exit_code)


app.command()(optimize)
app.command()(search)
app.command()(bundle)


@app.command("list")
def list_names(
    what: Annotated[
        Literal["architectures", "models", "datasets", "recipes", "targets", "tasks"],
        typer.Argument(help="Which catalogue."),
    ] = "models",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of the names.")] = False,
) -> None:
    """List the names of models, data sets, recipes, targets and tasks.

    The options `--model`, `--dataset`, `--recipe`, `--target` and `--task` take these names.
    """
    from tfmot_ops import steps

    names = steps.catalogue(what)
    if as_json:
        typer.echo(json.dumps(list(names)))
        return
    width = max(map(len, names))
    for name, line in names.items():
        typer.echo(f"{name:<{width}}  {line}".rstrip())


_Architectures = Annotated[str, typer.Option(help="Names, separated by commas.", show_default="the whole catalogue")]
_Recipes = Annotated[str, typer.Option(help="Names or files, separated by commas.")]
_Cache = Annotated[Path, typer.Option(help="Cache folder for finished cells and sweeps.", metavar="DIR")]
_Force = Annotated[bool, typer.Option("--force", help="Run every cell, even if its inputs are unchanged.")]
_Jobs = Annotated[int, typer.Option(min=0, help="Number of cells run in parallel.", show_default="one per core")]
_TimeLimit = Annotated[float, typer.Option(min=1, help="Time limit per cell in seconds.")]
_MemoryLimit = Annotated[
    float, typer.Option(min=0.5, help="Memory limit per cell in GiB (capped at what is available).")
]
_CellSeed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed for weights and images.")]
_RECIPES = "wi8_ai8,sparse50_wi8_ai8"


@app.command(
    epilog="Exit codes: 0 nothing got worse, 1 a bug, 2 the request is wrong, 4 a cell regressed or is missing (or "
    "--accept cannot write), 130 stopped by Ctrl-C. A model that fails is a result, never an exit code 3."
)
def sweep(  # noqa: PLR0917 - typer reads the options from the signature, nobody calls it
    architectures: _Architectures = "",
    recipes: _Recipes = _RECIPES,
    report: Annotated[Path, typer.Option(help="Folder for the page and the repros.", metavar="DIR")] = Path(
        "sweep-report"
    ),
    folder: _Cache = Path(".sweep"),
    force: _Force = False,
    accept: Annotated[bool, typer.Option("--accept", help="Save the results as the new expected.yaml.")] = False,
    jobs: _Jobs = 0,
    time_limit: _TimeLimit = 3600,
    memory_limit: _MemoryLimit = 18,
    seed: _CellSeed = 0,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow tracking URI.",
            envvar=_TRACKING,
            show_default="none, nothing is recorded",
        ),
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "tfmot_ops_sweep",
    as_json: Annotated[bool, typer.Option("--json", help="The SweepResult as JSON on stdout.")] = False,
) -> None:
    """Run every architecture through the chain; report what broke.

    Each cell of the matrix (an architecture with a recipe) runs in its own process. The results are compared with
    expected.yaml and the last good sweep. A regression makes the command fail only after all results are recorded.
    """
    from rich.console import Console

    from tfmot_ops.cli import sweep_command as command
    from tfmot_ops.sweep.report.listing import print_listing
    from tfmot_ops.sweep.report.progress import SweepProgress
    from tfmot_ops.sweep.run.limits import Limits
    from tfmot_ops.sweep.whole import Sweep

    plan = Sweep(
        folder=folder,
        architectures=command.names(architectures),
        recipes=command.read_recipes(recipes),
        seed=seed,
        jobs=jobs,
        limits=Limits(time_limit, memory_limit * 2**30),
        force=force,
    )
    if accept:
        command.check_acceptable()
    console = Console(stderr=True) if as_json else Console()
    with SweepProgress(console, len(plan.cells())) as progress:
        tracking = (tracking_uri, experiment) if tracking_uri else None
        done = command.run_sweep(plan, report, tracking, progress, say_on_stderr)
    if as_json:
        typer.echo(done.sweep.model_dump_json(indent=1))
    print_listing(
        console, done.sweep, folder=done.folder, accept="" if accept else command.accept_command(plan, recipes)
    )
    console.print(f"page: {done.folder / command.PAGE}", highlight=False, soft_wrap=True)
    if accept:
        console.print(f"expected from now on: {command.accept_sweep(done.sweep)}", highlight=False, soft_wrap=True)
    elif not done.sweep.judgement.is_good:
        raise typer.Exit(StepFailedError.exit_code)


@app.command(
    epilog="Exit codes: 0 go, 1 a bug, 2 the request is wrong (PYTHON cannot run cells), 4 no-go, 130 stopped."
)
def forecast(  # noqa: PLR0917 - typer reads the options from the signature, nobody calls it
    python: Annotated[
        str,
        typer.Argument(help="Python of an environment with the versions to test and this package.", metavar="PYTHON"),
    ],
    architectures: _Architectures = "",
    recipes: _Recipes = _RECIPES,
    folder: _Cache = Path(".sweep"),
    force: _Force = False,
    jobs: _Jobs = 0,
    time_limit: _TimeLimit = 3600,
    memory_limit: _MemoryLimit = 18,
    seed: _CellSeed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON on stdout.")] = False,
) -> None:
    """Show what would break under other package versions.

    Every cell of the sweep runs twice, with this Python and with that of the other environment; then both are compared.
    """
    from rich.console import Console

    from tfmot_ops.cli import sweep_command as command
    from tfmot_ops.sweep.forecast import compare, packages
    from tfmot_ops.sweep.report.progress import SweepProgress
    from tfmot_ops.sweep.run.limits import Limits
    from tfmot_ops.sweep.whole import Sweep

    plan = Sweep(
        folder=folder,
        architectures=command.names(architectures),
        recipes=command.read_recipes(recipes),
        seed=seed,
        jobs=jobs,
        limits=Limits(time_limit, memory_limit * 2**30),
        force=force,
    )
    packages(python)  # refuses an unusable interpreter before an hour of work
    kept = f"stopped: finished cells are kept in {folder}; the same command runs the rest"
    progress = SweepProgress(Console(stderr=True), 2 * len(plan.cells()))
    with command.report_on_interrupt(say_on_stderr, lambda: kept), progress:
        table = compare(plan, python, progress)
    typer.echo(table.as_json() if as_json else table.text())
    if not table.is_go:
        raise typer.Exit(StepFailedError.exit_code)


@app.command()
def doctor(
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow tracking URI.", envvar=_TRACKING),
    ] = None,
    device: Annotated[Device, typer.Option(help="Device that steps will use.")] = Device.CPU,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Check whether a step can run on this machine.

    Looks at versions, the Keras pin, devices, scratch space and tracking. Exits with 4 when a check fails; the line
    of a failed check names its remedy.
    """
    from tfmot_ops.cli import doctor as look

    findings = look.examine(device, tracking_uri)
    typer.echo(look.as_json(findings) if as_json else "\n".join(look.as_lines(findings)))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(StepFailedError.exit_code)


@app.command()
def schema(
    document: Annotated[DocumentName, typer.Argument(help="Which document.")] = "spec",
) -> None:
    """Print the JSON Schema of a document, such as a step's spec."""
    definition: dict[str, Any] = SCHEMAS[document].model_json_schema()
    typer.echo(json.dumps(definition, indent=2))
