"""The summary table of a chain: one row per step, and the drop of the headline. Loads no TensorFlow, no MLflow."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from tfmot_ops.contract import ACCURACY, Activations, Headline, Outcome, Status, StepResult
from tfmot_ops.contract.step_table import MISSING, figure_cells, measured_a_model, table_titles
from tfmot_ops.system.uri_secrets import hide

#: (title, metric, function that writes the metric) of a file's cost on its target.
_COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("flash", "target_flash_bytes", lambda size: f"{size / 1000:.1f} kB"),
    ("RAM", "target_ram_bytes", lambda size: f"{size / 1000:.1f} kB"),
    ("inference", "target_inference_ms", "{:.3f} ms".format),
    ("on the NPU", "npu_share", "{:.1%}".format),
    ("NPU cycles", "npu_cycles", "{:,.0f}".format),
    ("equal to TFLite's reference", "tflm_equal_outputs", "{:.1%}".format),
)
#: Layers that a note names.
_NAMES_SHOWN = 5


def summary_table(results: Sequence[StepResult]) -> Table:
    """A table for a terminal.

    Args:
        results: of the steps, in order. The table shows the task's headline metric, the sparsity in %, the size of the
            step's model as a TFLite file in kB, and the median latency with one thread in ms.
    """
    table = Table(
        title="float32 TFLite until quantize, int8 from there on; latency of one thread", title_justify="left"
    )
    titles, rows = _cells(results)
    for title in titles:
        table.add_column(title, justify="left" if title == "step" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    notes = summary_notes(results)
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def summary_lines(results: Sequence[StepResult]) -> list[str]:
    """The same table in plain text, one string per line, for a log or a file."""
    titles, rows = _cells(results)
    grid = [titles, *rows]
    widths = [max(len(row[column]) for row in grid) for column in range(len(titles))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in grid]
    return lines + summary_notes(results)


def summary_notes(results: Sequence[StepResult]) -> list[str]:
    """Notes below the table, one per line: the test split, layers that stayed in float, the drop of the headline."""
    notes = []
    for result in results:
        notes += _kept_float(result)
        if "test_split" in result.parameters:
            notes.append(f"test split: {result.parameters['test_split']}, so the figures may be too good for new data")
        notes += _on_target(result)
        headline = result.headline or ACCURACY
        if f"{headline.name}_drop" in result.metrics:
            notes.append(_loss(result, headline))
    return notes


def _on_target(result: StepResult) -> list[str]:
    """What the file costs on the step's target, in one line; none for a step without a target."""
    found = [f"{title} {write(result.metrics[metric])}" for title, metric, write in _COSTS if metric in result.metrics]
    return [f"on target {result.parameters.get('target')}: {', '.join(found)}"] if found else []


def _kept_float(result: StepResult) -> list[str]:
    """The layers that a recipe with integer activations left in float, one line for each reason."""
    recipe = result.parameters.get("recipe")
    quantization = recipe.get("quantization") if isinstance(recipe, dict) else None
    if not isinstance(quantization, dict) or quantization.get("activations") == Activations.FLOAT32:
        return []
    by_reason: dict[str, list[str]] = {}
    for layer in result.layers:
        if layer.outcome is Outcome.KEPT_FLOAT:
            by_reason.setdefault(layer.reason, []).append(f"{layer.path} ({layer.class_name})")
    return [f"stayed in float: {_first(names)}: {reason}" for reason, names in by_reason.items()]


def _first(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _loss(result: StepResult, headline: Headline) -> str:
    metrics, name = result.metrics, headline.name
    drop = metrics[f"{name}_drop"]
    against = "trained float model" if result.parameters.get("float_reference") == "trained" else "float model"
    difference = "no difference" if drop == 0.0 else _difference(headline, drop)
    text = (
        f"TFLite file against the {against}: {headline.words} {headline.text(metrics[name])} instead of "
        f"{headline.text(metrics[f'float_{name}'])}, {difference}"
    )
    if "pruning_drop" in metrics:
        parts = (f"{word} {_signed(headline, metrics[f'{word}_drop'])}" for word in ("pruning", "quantization"))
        text += f" (lost by {', by '.join(parts)})"
    return f"{text}; {metrics['compression']:.1f} times smaller"


def _difference(headline: Headline, drop: float) -> str:
    """`1.2 points lower`; of a metric of which less is better also whether that is worse."""
    is_lower = (drop > 0.0) == headline.higher_is_better
    meaning = "" if headline.higher_is_better else ", which is worse" if drop > 0.0 else ", which is better"
    return f"{headline.size_text(drop)} {'lower' if is_lower else 'higher'}{meaning}"


def _signed(headline: Headline, drop: float) -> str:
    return ("-" if drop < 0.0 else "") + headline.size_text(drop)


def _cells(results: Sequence[StepResult]) -> tuple[list[str], list[list[str]]]:
    is_accuracy = any(ACCURACY.name in result.metrics for result in results)
    # A chain whose first step failed has measured nothing, and its task is not known.
    unknown = ACCURACY if is_accuracy else Headline(name="metric")
    headline = next((result.headline for result in results if result.headline is not None), unknown)
    titles = table_titles(headline)
    rows = []
    for result in results:
        wall_time = f"{result.duration_s:.1f} s"
        if result.status is Status.FAILED:
            rows.append([result.step_id, "failed", *[MISSING] * (len(titles) - 3), wall_time])
        elif measured_a_model(result.metrics):
            rows.append([result.step_id, *figure_cells(result.metrics, headline), wall_time])
    return titles, rows


def print_summary(
    results: Sequence[StepResult], tracking_uri: str | None, experiment: str, tflite: Path | None
) -> None:
    """Print the table of a chain, the paths of its outputs, and the command that opens its runs in MLflow.

    Args:
        results: of the steps, in order.
        tracking_uri: MLflow tracking URI; None without tracking.
        experiment: name of the MLflow experiment.
        tflite: path of the TFLite file; None when the chain made none.
    """
    typer.echo()
    if sys.stdout.isatty():
        Console().print(summary_table(results))
    else:
        typer.echo("\n".join(summary_lines(results)))
    typer.echo()
    for result in results:
        for name, artifact in result.outputs.items():
            typer.echo(f"{result.step_id} {name}: {hide(artifact.uri)}")
    if tracking_uri:
        store = shlex.quote(hide(tracking_uri))
        # `mlflow` is beside this Python, and on the path only in an activated environment.
        command = Path(sys.executable).with_name("mlflow")
        command_line = f"{shlex.quote(str(command))} ui --backend-store-uri {store}"
        typer.echo(f"MLflow: experiment {experiment}; open it with: {command_line}")
    if tflite:
        typer.echo(f"TFLite: {tflite}")
