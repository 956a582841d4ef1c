"""The columns of the table of a chain's steps, which the command prints and the MLflow run describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tfmot_ops.contract.headline import Headline

#: Stands in the table for a figure that a step did not measure.
MISSING = "-"
#: (column title, metric, function that writes the metric), after the column of the headline.
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("sparsity", "sparsity", "{:.1%}".format),
    ("size", "size_bytes", lambda size: f"{size / 1000:.1f} kB"),
    ("gzip", "gzip_bytes", lambda size: f"{size / 1000:.1f} kB"),
    ("int8 MACs", "int8_mac_fraction", "{:.1%}".format),
    ("latency", "latency_ms", "{:.3f} ms".format),
)


def table_titles(headline: Headline) -> list[str]:
    """The titles of all columns, the step's name and its wall time included."""
    return ["step", headline.words, *(title for title, _, _ in _COLUMNS), "wall time"]


def figure_cells(metrics: Mapping[str, float], headline: Headline) -> list[str]:
    """The cells of a step between its name and its wall time, the headline first."""
    columns = (("headline", headline.name, headline.text), *_COLUMNS)
    return [write(metrics[metric]) if metric in metrics else MISSING for _, metric, write in columns]


def measured_a_model(metrics: Mapping[str, float]) -> bool:
    """Whether a step has a row: one that measured no model has none."""
    return "size_bytes" in metrics
