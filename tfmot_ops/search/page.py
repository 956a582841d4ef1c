"""The page of a search: one HTML file that works offline, with the candidates as points and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tfmot_ops.contract import Goals, Headline
from tfmot_ops.search.front import COSTS

#: Cost -> the goal that limits it.
_LIMITS = {
    "target_flash_bytes": "max_flash",
    "gzip_bytes": "max_gzip",
    "target_ram_bytes": "max_ram",
    "latency_ms": "max_latency",
}
#: State of a candidate -> its colour in the page and in the picture.
COLOURS = {"chosen": "#0f7b3f", "front": "#1f5fbf", "other": "#8a8f98"}
#: State of a candidate -> what the legends call it.
WORDS = {"chosen": "chosen", "front": "on the Pareto front", "other": "beaten by another candidate"}


@dataclass(frozen=True)
class Point:
    """One candidate of the page.

    Attributes:
        name: of the candidate.
        state: `chosen`, `front` or `other`.
        verdict: how it stands to the goals.
        metrics: of its file.
    """

    name: str
    state: str
    verdict: str
    metrics: dict[str, float]


def _unit(metric: str) -> tuple[float, str]:
    return (1.0, "ms") if metric.endswith("_ms") else (1 / 1024, "KiB")


def worst_value(points: Sequence[Point], headline: Headline, goals: Goals) -> float | None:
    """The worst value of the metric that meets the goals, a share in percent; None without such a goal."""
    found = [] if goals.min_metric is None else [goals.min_metric]
    reference = points[0].metrics.get(f"float_{headline.name}")
    if goals.max_drop is not None and reference is not None:
        drop = goals.max_drop / 100 if headline.is_share else goals.max_drop
        found.append(reference - drop if headline.higher_is_better else reference + drop)
    if not found:
        return None
    strictest = max(found) if headline.higher_is_better else min(found)
    return strictest * (100.0 if headline.is_share else 1.0)


def figure(points: Sequence[Point], headline: Headline, goals: Goals) -> Any:
    """The Plotly figure: the headline metric over a cost, which a menu chooses among those that were measured.

    Args:
        points: the candidates whose chain ended well.
        headline: the task's metric.
        goals: drawn as dashed lines, as far as they limit one of the two axes.
    """
    import plotly.graph_objects as go

    costs = [metric for metric in COSTS if any(metric in point.metrics for point in points)]
    factor = 100.0 if headline.is_share else 1.0
    traces = []
    for state in ("chosen", "front", "other"):
        group = [point for point in points if point.state == state]
        if group:
            traces.append(_trace(go, group, state, costs[0], [factor * p.metrics[headline.name] for p in group]))
    layout: dict[str, Any] = {
        "title": {"text": headline.words + " and cost of each candidate"},
        "template": "plotly_white",
        "xaxis": {"title": {"text": _axis(costs[0])}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": headline.words + (" in %" if headline.is_share else "")}, "automargin": True},
        "legend": {"orientation": "h", "y": -0.2},
        "height": 520,
        "shapes": _lines(points, headline, goals, costs[0]),
    }
    if len(costs) > 1:
        groups = [[p for p in points if p.state == state] for state in ("chosen", "front", "other")]
        buttons = [
            {
                "label": COSTS[cost],
                "method": "update",
                "args": [
                    {"x": [_values(group, cost) for group in groups if group]},
                    {"xaxis.title.text": _axis(cost), "shapes": _lines(points, headline, goals, cost)},
                ],
            }
            for cost in costs
        ]
        layout["updatemenus"] = [{"buttons": buttons, "x": 1.0, "xanchor": "right", "y": 1.15}]
    return go.Figure(traces, layout)


def _lines(points: Sequence[Point], headline: Headline, goals: Goals, cost: str) -> list[dict[str, Any]]:
    """Plotly's shapes for the goals: the largest cost, and the worst value of the metric."""
    line = {"type": "line", "line": {"dash": "dash", "width": 1, "color": "#555555"}}
    limit, worst = getattr(goals, _LIMITS.get(cost, ""), None), worst_value(points, headline, goals)
    lines = [] if worst is None else [{**line, "xref": "paper", "x0": 0, "x1": 1, "y0": worst, "y1": worst}]
    if limit is not None:
        place = _unit(cost)[0] * limit
        lines.append({**line, "yref": "paper", "y0": 0, "y1": 1, "x0": place, "x1": place})
    return lines


def _trace(go: Any, group: list[Point], state: str, cost: str, heights: list[float]) -> Any:
    # Names of beaten candidates would hide each other: they are shown under the pointer.
    return go.Scatter(
        x=_values(group, cost),
        y=heights,
        mode="markers" if state == "other" else "markers+text",
        name=WORDS[state],
        text=[point.name for point in group],
        textposition="top center" if state == "chosen" else "bottom center",
        hovertext=[f"{point.name}: {point.verdict}" for point in group],
        marker={"size": 16 if state == "chosen" else 11, "color": COLOURS[state]},
    )


def _axis(metric: str) -> str:
    return f"{COSTS[metric]} in {_unit(metric)[1]}"


def _values(group: list[Point], metric: str) -> list[float | None]:
    scale = _unit(metric)[0]
    return [scale * point.metrics[metric] if metric in point.metrics else None for point in group]


def page(
    points: Sequence[Point],
    headline: Headline,
    goals: Goals,
    title: str,
    *,
    conclusion: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> str:
    """The page as HTML, with Plotly's own script in it (about 4.7 MB), so that it works without a network.

    Args:
        points: the candidates whose chain ended well; at least one.
        headline: the task's metric.
        goals: what the file has to be.
        title: of the search.
        conclusion: which candidate to take, in lines of text.
        rows: the table; its first row holds the titles.
    """
    main = "".join(f'<p class="main">{escape(line)}</p>' for line in conclusion)
    chart = figure(points, headline, goals).to_html(full_html=False, include_plotlyjs=True)
    return render(title, main + chart, rows)


def render(title: str, charts: str, rows: Sequence[Sequence[str]], below: str = "") -> str:
    """A page as HTML: a title, charts and a table; it asks no network for anything.

    Args:
        title: of the page.
        charts: HTML, which goes into the page as it is.
        rows: the table; its first row holds the titles. A row that begins with `chosen` or `this chain` stands out.
        below: HTML under the table, which goes into the page as it is.
    """
    from jinja2 import Environment, PackageLoader

    template = Environment(autoescape=True, loader=PackageLoader("tfmot_ops.search", "")).get_template("page.html.j2")
    return template.render(title=title, titles=rows[0] if rows else (), rows=rows[1:], charts=charts, below=below)
