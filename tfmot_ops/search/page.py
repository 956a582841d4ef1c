"""The page of a search: one HTML file that works offline, with the candidates as points and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfmot_ops.contract import Headline
from tfmot_ops.search.front import COSTS

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


def figure(points: Sequence[Point], headline: Headline) -> Any:
    """The Plotly figure: the headline metric over a cost, which a menu chooses among those that were measured.

    Args:
        points: the candidates whose chain ended well.
        headline: the task's metric.
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
    }
    if len(costs) > 1:
        groups = [[p for p in points if p.state == state] for state in ("chosen", "front", "other")]
        buttons = [
            {
                "label": COSTS[cost],
                "method": "update",
                "args": [{"x": [_values(group, cost) for group in groups if group]}, {"xaxis.title.text": _axis(cost)}],
            }
            for cost in costs
        ]
        layout["updatemenus"] = [{"buttons": buttons, "x": 1.0, "xanchor": "right", "y": 1.15}]
    return go.Figure(traces, layout)


def _trace(go: Any, group: list[Point], state: str, cost: str, heights: list[float]) -> Any:
    return go.Scatter(
        x=_values(group, cost),
        y=heights,
        mode="markers+text",
        name=WORDS[state],
        text=[point.name for point in group],
        textposition="top center",
        hovertext=[point.verdict for point in group],
        marker={"size": 16 if state == "chosen" else 11, "color": COLOURS[state]},
    )


def _axis(metric: str) -> str:
    return f"{COSTS[metric]} in {_unit(metric)[1]}"


def _values(group: list[Point], metric: str) -> list[float | None]:
    scale = _unit(metric)[0]
    return [scale * point.metrics[metric] if metric in point.metrics else None for point in group]


def page(points: Sequence[Point], headline: Headline, title: str, rows: Sequence[Sequence[str]]) -> str:
    """The page as HTML, with Plotly's own script in it (about 4.7 MB), so that it works without a network.

    Args:
        points: the candidates whose chain ended well; at least one.
        headline: the task's metric.
        title: of the search.
        rows: the table; its first row holds the titles.
    """
    return render(title, figure(points, headline).to_html(full_html=False, include_plotlyjs=True), rows)


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
