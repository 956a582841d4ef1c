"""Draws the pictures of a chain with matplotlib, each into a PNG or SVG file; knows nothing of MLflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Step name -> metric -> (epoch, value), in the order of the chain.
Histories = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

_DPI = 100
_MOST_BARS = 40
#: Above this number of classes a confusion matrix has no numbers in its cells, and above the next no names.
_MOST_NUMBERS, _MOST_NAMES = 20, 40
#: Length of an axis of costs, relative to the largest cost.
_ROOM = 1.35
_TRAINING, _VALIDATION, _WORST, _BAR = "#1f77b4", "#ff7f0e", "#c1432e", "#5b8db8"


@dataclass(frozen=True)
class Mark:
    """The point of one chain.

    Attributes:
        name: of the chain.
        value: of the metric, as its axis shows it.
        costs: cost -> value, as its axis shows it.
        color: of the point.
        is_this: whether the point stands out, as that of the chain that the page is about.
        is_labelled: whether its name stands beside it.
    """

    name: str
    value: float
    costs: Mapping[str, float]
    color: str
    is_this: bool
    is_labelled: bool


def draw_curves(path: Path, histories: Histories, names: Sequence[str]) -> None:
    """Draw the metrics of the epochs of all steps, one after the other along one axis.

    Args:
        path: file to write.
        histories: the epochs of each step that trains.
        names: metrics, one panel each; beside a metric its `val_` metric is drawn.
    """
    figure = _figure(9.0, 3.4)
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        start = 0
        for step, history in histories.items():
            length = max((epoch for points in history.values() for epoch, _ in points), default=0)
            for each, color in ((name, _TRAINING), (f"val_{name}", _VALIDATION)):
                points = sorted(history.get(each, ()))
                axes.plot(
                    [start + epoch for epoch, _ in points], [value for _, value in points], "o-", color=color, ms=3
                )
            if start:
                axes.axvline(start + 0.5, color="0.7", lw=0.8, ls="--")
            # One name above the other, as a step of one epoch is narrower than its name.
            axes.text(start + 0.55, 1.01, step, transform=axes.get_xaxis_transform(), fontsize=7, rotation=20)
            start += length
        axes.set_xlim(0.5, max(start, 1) + 0.5)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.3)
        for label, color in (("training", _TRAINING), ("validation", _VALIDATION)):
            axes.plot([], [], "o-", color=color, label=label, ms=3)
        axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def draw_bars(path: Path, values: Mapping[str, float]) -> None:
    """Draw the SQNR of each layer in dB as a bar, in the order of the model; the lowest one is red.

    Args:
        path: file to write.
        values: path of the layer -> dB. Of more than 40 layers those with the lowest values are drawn.
    """
    lowest = sorted(values, key=values.__getitem__)[:_MOST_BARS]
    shown = [name for name in values if name in set(lowest)]
    figure = _figure(8.0, 1.4 + 0.22 * len(shown))
    axes = figure.add_subplot()
    colors = [_WORST if name == lowest[0] else _BAR for name in shown]
    axes.barh(range(len(shown)), [values[name] for name in shown], color=colors)
    axes.set_yticks(range(len(shown)), [name if len(name) <= 40 else f"...{name[-37:]}" for name in shown], fontsize=7)  # noqa: PLR2004 - as wide as the picture allows
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("SQNR in dB, float model against TFLite file; higher is better")
    of_all = f"the {len(shown)} lowest of {len(values)} layers; " if len(shown) < len(values) else ""
    axes.set_title(f"{of_all}lowest: {lowest[0]}, {values[lowest[0]]:.1f} dB", fontsize=9, loc="left")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def draw_confusion(path: Path, classes: Sequence[str], counts: npt.ArrayLike) -> None:
    """Draw a confusion matrix.

    Args:
        path: file to write.
        classes: names.
        counts: samples, [true class, predicted class].
    """
    numbers = np.asarray(counts, float)
    shares = numbers / np.maximum(numbers.sum(axis=1, keepdims=True), 1.0)
    size = min(9.0, 2.6 + 0.42 * len(classes))
    figure = _figure(size + 0.6, size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    if len(classes) <= _MOST_NAMES:
        axes.set_xticks(range(len(classes)), list(classes), rotation=90 if _are_long(classes) else 0, fontsize=8)
        axes.set_yticks(range(len(classes)), list(classes), fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    right = float(np.trace(numbers) / max(numbers.sum(), 1.0))
    axes.set_title(f"TFLite file, {numbers.sum():.0f} test samples, {right:.1%} right", fontsize=9, loc="left")
    if len(classes) <= _MOST_NUMBERS:
        for (row, column), number in np.ndenumerate(numbers):
            if number:
                color = "white" if shares[row, column] > 0.5 else "black"  # noqa: PLR2004 - half of the colour map
                axes.text(column, row, f"{number:.0f}", ha="center", va="center", fontsize=8, color=color)
    _save(figure, path)


def draw_scatter(path: Path, targets: npt.ArrayLike, predictions: npt.ArrayLike) -> None:
    """Draw predictions over targets, [samples] each; on the line they are equal."""
    x, y = np.asarray(targets, float).ravel(), np.asarray(predictions, float).ravel()
    figure = _figure(5.6, 5.0)
    axes = figure.add_subplot()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axes.plot(ends, ends, color="0.5", lw=1.0)
    axes.plot(x, y, "o", color=_TRAINING, ms=3, alpha=0.5)
    axes.set_xlabel("target")
    axes.set_ylabel("prediction of the TFLite file")
    rmse = float(np.sqrt(np.mean((x - y) ** 2)))
    axes.set_title(f"{x.size} values, root mean squared error {rmse:.4g}", fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    _save(figure, path)


def draw_errors(path: Path, normal: npt.ArrayLike, anomalous: npt.ArrayLike) -> None:
    """Draw histograms of the reconstruction error of normal and of anomalous samples, [samples] each."""
    groups = {"normal": np.asarray(normal, float).ravel(), "anomalous": np.asarray(anomalous, float).ravel()}
    both = np.concatenate(list(groups.values()))
    figure = _figure(6.4, 3.6)
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(both, bins=40)
    for (name, values), color in zip(groups.items(), (_TRAINING, _WORST), strict=True):
        # Shares of each group, as there are mostly fewer anomalies.
        weights = np.full(values.size, 1.0 / max(values.size, 1))
        axes.hist(
            values, list(map(float, edges)), weights=weights, alpha=0.6, color=color, label=f"{name} ({values.size})"
        )
    axes.set_xlabel("reconstruction error of a sample, TFLite file")
    axes.set_ylabel("share of the group")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    _save(figure, path)


def draw_tradeoff(
    path: Path, marks: Sequence[Mark], costs: Mapping[str, str], title: str, reference: float | None
) -> None:
    """Draw a metric over several costs, one panel each, with a point for each chain.

    Args:
        path: SVG file to write; the group of the point `i` of panel `p` has the id `mark-<p>-<i>`.
        marks: the chains. In a panel, those are left out that do not have its cost.
        costs: cost -> title of its axis.
        title: of the metric's axis.
        reference: the float model's value of the metric; None if it is not known.
    """
    figure = _figure(4.2 * len(costs), 3.8)
    for panel, (cost, words) in enumerate(costs.items()):
        axes = figure.add_subplot(1, len(costs), panel + 1)
        if reference is not None:
            axes.axhline(reference, color="0.6", lw=1.0, ls="--", label="float model")
        for index, mark in enumerate(marks):
            if cost not in mark.costs:
                continue
            place = mark.costs[cost], mark.value
            size = 11 if mark.is_this else 8
            (point,) = axes.plot(*place, "o", color=mark.color, ms=size, zorder=3 if mark.is_labelled else 2)
            point.set_gid(f"mark-{panel}-{index}")
            if mark.is_labelled:
                # Below the point of this chain and above the others: of two close points both names can be read.
                style: dict[str, Any] = {"xytext": (0, 8)}
                if mark.is_this:
                    style = {"xytext": (0, -16), "weight": "bold"}
                axes.annotate(mark.name, place, textcoords="offset points", fontsize=8, ha="center", **style)
        axes.set_xlabel(words)
        axes.set_ylabel(title if panel == 0 else "")
        axes.margins(y=0.2)
        axes.locator_params(axis="x", nbins=5)
        # From 0, as a file that is 2 % smaller has to look so, and with room for the names at the right.
        axes.set_xlim(0.0, _ROOM * max(mark.costs[cost] for mark in marks if cost in mark.costs))
        axes.grid(alpha=0.3)
        if reference is not None:
            axes.legend(fontsize=8, frameon=False, loc="best")
    _save(figure, path)


def _are_long(names: Sequence[str]) -> bool:
    return max((len(name) for name in names), default=0) > 3  # noqa: PLR2004 - as wide as a cell


def _figure(width: float, height: float) -> Figure:
    """A figure of this size in inches; no window and no state of matplotlib's own is involved."""
    # It says that it makes its list of fonts, and where.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=_DPI, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    import matplotlib as mpl

    # Without matplotlib's version, a date and random names, so that the same figures give the same file. Text in an SVG
    # stays text, which a reader can select and search.
    metadata: dict[str, None] = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tfmot_ops"}):
        figure.savefig(path, format=path.suffix.removeprefix("."), metadata=metadata)
