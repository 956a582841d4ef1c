"""The summary table of a chain: one row per step, and the drop of the headline. Loads no TensorFlow, no MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from tfmot_ops.contract import Headline, Status, StepResult
from tfmot_ops.system.uri_secrets import hide


def _share(value: float) -> str:
    return f"{value:.1%}"


def _kilobytes(value: float) -> str:
    return f"{value / 1000:.1f} kB"


def _milliseconds(value: float) -> str:
    return f"{value:.3f} ms"


#: (column title, metric, function that formats the metric), after the column of the headline.
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("sparsity", "sparsity", _share),
    ("size", "size_bytes", _kilobytes),
    ("gzip", "gzip_bytes", _kilobytes),
    ("int8 MACs", "int8_mac_fraction", _share),
    ("latency", "latency_ms", _milliseconds),
)
#: A step without this metric measured no model and has no row.
_WITH_A_ROW = "size_bytes"
_MISSING = "-"
#: The headline of results that were written before tasks had one.
_ACCURACY = Headline(name="accuracy")


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
    """Notes below the table, one sentence per line: the drop of the headline, and a warning about the test split."""
    notes = []
    for result in results:
        if "test_split" in result.parameters:
            notes.append(f"test split: {result.parameters['test_split']}, so the figures may be too good for new data")
        headline = result.headline or _ACCURACY
        if f"{headline.name}_drop" in result.metrics:
            notes.append(_loss(result, headline))
    return notes


def in_words(headline: Headline) -> str:
    """Name of a metric for people: `mean iou`."""
    return headline.name.replace("_", " ")


def value_text(headline: Headline, value: float) -> str:
    """A value of the headline: a share in percent, others with four digits."""
    return _share(value) if headline.is_share else f"{value:.4g}"


def difference_text(headline: Headline, difference: float) -> str:
    """The size of a difference between two values of the headline: shares in points, others in their unit."""
    return f"{100.0 * abs(difference):.1f} points" if headline.is_share else f"{abs(difference):.3g}"


def _loss(result: StepResult, headline: Headline) -> str:
    metrics, name = result.metrics, headline.name
    drop = metrics[f"{name}_drop"]
    against = "trained float model" if result.parameters.get("float_reference") == "trained" else "float model"
    difference = "no difference" if drop == 0.0 else _difference(headline, drop)
    text = (
        f"TFLite file against the {against}: {in_words(headline)} {value_text(headline, metrics[name])} instead of "
        f"{value_text(headline, metrics[f'float_{name}'])}, {difference}"
    )
    if "pruning_drop" in metrics:
        parts = (f"{word} {_signed(headline, metrics[f'{word}_drop'])}" for word in ("pruning", "quantization"))
        text += f" (lost by {', by '.join(parts)})"
    return f"{text}; {metrics['compression']:.1f} times smaller"


def _difference(headline: Headline, drop: float) -> str:
    """`1.2 points lower`; of a metric of which less is better also whether that is worse."""
    is_lower = (drop > 0.0) == headline.higher_is_better
    meaning = "" if headline.higher_is_better else ", which is worse" if drop > 0.0 else ", which is better"
    return f"{difference_text(headline, drop)} {'lower' if is_lower else 'higher'}{meaning}"


def _signed(headline: Headline, drop: float) -> str:
    return ("-" if drop < 0.0 else "") + difference_text(headline, drop)


def _cells(results: Sequence[StepResult]) -> tuple[list[str], list[list[str]]]:
    headline = next((result.headline for result in results if result.headline is not None), _ACCURACY)
    titles = ["step", in_words(headline), *(title for title, _, _ in _COLUMNS), "wall time"]
    rows = []
    for result in results:
        if result.status is Status.FAILED:
            rows.append([result.step_id, "failed", *[_MISSING] * len(_COLUMNS), f"{result.duration_s:.1f} s"])
        elif _WITH_A_ROW in result.metrics:
            first = value_text(headline, result.metrics[headline.name]) if headline.name in result.metrics else _MISSING
            cells = [first] + [_cell(result.metrics, name, write) for _, name, write in _COLUMNS]
            rows.append([result.step_id, *cells, f"{result.duration_s:.1f} s"])
    return titles, rows


def _cell(metrics: Mapping[str, float], name: str, write: Callable[[float], str]) -> str:
    return write(metrics[name]) if name in metrics else _MISSING


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
        store = hide(tracking_uri)
        # `mlflow` is beside this Python, and on the path only in an activated environment.
        command = Path(sys.executable).with_name("mlflow")
        typer.echo(f"MLflow: experiment {experiment}; open it with: {command} ui --backend-store-uri {store}")
    if tflite:
        typer.echo(f"TFLite: {tflite}")
