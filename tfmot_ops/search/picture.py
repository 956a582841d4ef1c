"""The picture of a search: the headline metric over the flash of each candidate, with the goals, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfmot_ops.contract import Goals, Headline
from tfmot_ops.search.page import COLOURS, WORDS, Point, worst_value
from tfmot_ops.system import files

#: Places of a name beside its point, in points of 1/72 inch: (x, y, which end of the text is there). The first that is
#: free is taken.
_PLACES = (
    *((7, 4, "left"), (7, -13, "left"), (-7, 4, "right"), (-7, -13, "right"), (0, 9, "center"), (0, -19, "center")),
    *((7, 17, "left"), (7, -26, "left"), (-7, 17, "right"), (-7, -26, "right")),
)
#: Points closer to each other than this share of both axes get one name.
_SAME_PLACE = 0.01


def draw(points: Sequence[Point], headline: Headline, goals: Goals, title: str, path: Path) -> None:
    """Write the picture.

    Args:
        points: the candidates that were measured; at least one.
        headline: the task's metric, the vertical axis.
        goals: drawn as lines, as far as they limit one of the two axes; what is within all of them is green.
        title: of the picture.
        path: file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = Figure(figsize=(8.0, 5.0), layout="tight")
    canvas: Any = FigureCanvasAgg(chart)
    axes = chart.subplots()
    factor = 100.0 if headline.is_share else 1.0
    cost = "target_flash_bytes" if "target_flash_bytes" in points[0].metrics else "size_bytes"
    places = {point.name: (point.metrics[cost] / 1024, factor * point.metrics[headline.name]) for point in points}
    for state in ("other", "front", "chosen"):
        found = [places[point.name] for point in points if point.state == state]
        if found:
            x, y = zip(*found, strict=True)
            size = 110 if state == "chosen" else 45
            axes.scatter(x, y, s=size, color=COLOURS[state], label=WORDS[state], zorder=3)
    axes.set_xlabel("flash in KiB")
    axes.set_ylabel(headline.words + (" in %" if headline.is_share else ""))
    axes.set_title(title, fontsize=10)
    axes.margins(0.15)
    _draw_goals(axes, goals, worst_value(points, headline, goals), headline)
    axes.legend(loc="best", fontsize=8)
    canvas.draw()
    _write_names(axes, _names(axes, places), canvas.get_renderer())
    with files.whole(path) as part:
        chart.savefig(part, format="png", dpi=120)


def _draw_goals(axes: Any, goals: Goals, worst: float | None, headline: Headline) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    line = {"color": "#555555", "linestyle": "--", "linewidth": 1, "zorder": 1}
    largest = None if goals.max_flash is None else goals.max_flash / 1024
    if largest is not None:
        right = max(right, largest)
        axes.axvline(largest, **line)
    if worst is not None:
        bottom, top = min(bottom, worst), max(top, worst)
        axes.axhline(worst, **line)
    if largest is not None or worst is not None:
        good = (worst, top) if headline.higher_is_better else (bottom, worst)
        low, high = (bottom, top) if worst is None else good
        axes.fill_between([left, right if largest is None else largest], low, high, color="#0f7b3f", alpha=0.07)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _names(axes: Any, places: dict[str, tuple[float, float]]) -> dict[tuple[float, float], str]:
    """Place -> name of the candidate there; of several at one place the first, with the number of the others."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    groups: dict[tuple[float, float], list[str]] = {}
    for name, (x, y) in places.items():
        near = (
            place
            for place in groups
            if math.hypot((place[0] - x) / (right - left), (place[1] - y) / (top - bottom)) < _SAME_PLACE
        )
        groups.setdefault(next(near, (x, y)), []).append(name)
    return {
        place: names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        for place, names in groups.items()
    }


def _write_names(axes: Any, names: dict[tuple[float, float], str], renderer: Any) -> None:
    """Write each name beside its point where it hides neither a point nor another name, if there is such a place."""
    frame, points = axes.get_window_extent(renderer), axes.transData.transform(list(names))
    taken: list[Any] = []
    for place, name in names.items():
        for number, (x, y, end) in enumerate(_PLACES):
            text = axes.annotate(name, place, (x, y), textcoords="offset points", ha=end, fontsize=8, zorder=4)
            box = text.get_window_extent(renderer)
            is_inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            is_free = is_inside and not box.count_overlaps(taken) and not box.count_contains(points)
            if is_free or number == len(_PLACES) - 1:
                taken.append(box)
                break
            text.remove()
