"""The main figures of a TFLite file as a table for people: of its model card, and of a request for approval."""

from __future__ import annotations

from collections.abc import Mapping

from tfmot_ops.contract.headline import ACCURACY, Headline

#: Metric -> (its name for people, unit): the figures beside the headline.
_FIGURES = {
    "size_bytes": ("size of the file", "bytes"),
    "float_size_bytes": ("size of the float model's file", "bytes"),
    "gzip_bytes": ("compressed size", "bytes"),
    "sparsity": ("zeros in the pruned kernels", "share"),
    "int8_mac_fraction": ("multiplications in int8", "share"),
    "float_ops": ("operations in float", ""),
    "arena_bytes": ("memory for tensors (TFLite's arena)", "bytes"),
    "latency_ms": ("latency, one thread of the machine that measured", "ms"),
}


def figure_table(metrics: Mapping[str, float], headline: Headline | None = None) -> str:
    """The figures as a table in Markdown; a sentence if there are none.

    Args:
        metrics: of the step `evaluate`.
        headline: the metric by which the task's models are compared; None takes accuracy.
    """
    headline = headline or ACCURACY
    rows = []
    for name, words in ((f"float_{headline.name}", "float model"), (headline.name, "this file")):
        if name in metrics:
            rows.append(f"| {headline.words}, {words} | {headline.text(metrics[name])} |")
    for name, (words, unit) in _FIGURES.items():
        if name in metrics:
            value = f"{metrics[name]:.1%}" if unit == "share" else f"{metrics[name]:,.6g} {unit}".strip()
            rows.append(f"| {words} | {value} |")
    return "\n".join(["| figure | value |", "|---|---:|", *rows]) if rows else "No figures were given."
