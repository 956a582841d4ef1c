"""Geometry of the page's two charts: where the points of the trend and of the scatter lie, in SVG units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tfmot_ops.contract import CompatResult
from tfmot_ops.contract.compat import SweepResult
from tfmot_ops.sweep.report import figures

#: Number of sweeps in the trend; the last of them is the page's own sweep.
TREND = 30
_WIDTH, _HEIGHT = 360.0, 96.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 30.0, 12.0, 10.0, 18.0
_SIDE, _PAD = 300.0, 34.0
_TICKS = 4


@dataclass(frozen=True)
class Point:
    """One point of the trend: a sweep of one recipe."""

    x: float
    y: float
    label: str
    url: str


@dataclass(frozen=True)
class Trend:
    """Number of passed cells of one recipe over the last sweeps."""

    recipe: str
    points: tuple[Point, ...]
    requested: str  # the line of requested cells, as the attribute `points` of an SVG polyline
    passed_now: int
    requested_now: int
    change: int | None
    low: int
    high: int
    first: str
    last: str
    width: float = _WIDTH
    height: float = _HEIGHT

    @property
    def line(self) -> str:
        """The line of passed cells, as the attribute `points` of an SVG polyline."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class Scatter:
    """Scatter plot with one dot per cell: SQNR of PTQ's file (x) and SQNR of this project's file (y), both in dB."""

    dots: tuple[tuple[float, float, bool, str], ...]  # x, y, whether it is below the margin, label
    ticks: tuple[tuple[float, int], ...]  # distance from the origin, dB
    side: float = _SIDE
    pad: float = _PAD


def last_sweeps(sweep: SweepResult, history: Sequence[SweepResult]) -> list[SweepResult]:
    """The sweeps of the trend, oldest first; the last is `sweep`, and later sweeps are left out."""
    earlier = {s.sweep_id: s for s in history if s.sweep_id != sweep.sweep_id and s.started_at <= sweep.started_at}
    ordered = sorted(earlier.values(), key=lambda s: (s.started_at, s.sweep_id))
    return [*ordered[-(TREND - 1) :], sweep]


def trends(sweeps: Sequence[SweepResult]) -> list[Trend]:
    """One trend for each recipe of the last sweep; a sweep without the recipe has no point."""
    return [_trend(recipe, sweeps) for recipe in figures.recipes(sweeps[-1])]


def _trend(recipe: str, sweeps: Sequence[SweepResult]) -> Trend:
    had = [(index, sweep, counts) for index, sweep in enumerate(sweeps) if (counts := figures.passed_of(sweep, recipe))]
    values = [value for _, _, counts in had for value in counts]
    low, high = min(values), max(values)
    if low == high:
        low = max(0, low - 1)
    span = max(1, high - low)

    def x(index: int) -> float:
        # A single sweep is drawn at the right end, where the newest sweep always is.
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (index / (len(sweeps) - 1) if len(sweeps) > 1 else 1.0)

    def y(value: int) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / span

    points = tuple(
        Point(x(i), y(passed), f"{day(s)}: {passed} of {total} passed ({s.sweep_id})", s.run_url)
        for i, s, (passed, total) in had
    )
    *before, (_, _, (passed_now, requested_now)) = had
    return Trend(
        recipe=recipe,
        points=points,
        requested=" ".join(f"{x(i):.1f},{y(total):.1f}" for i, _, (_, total) in had),
        passed_now=passed_now,
        requested_now=requested_now,
        change=passed_now - before[-1][2][0] if before else None,
        low=low,
        high=high,
        first=day(sweeps[0]),
        last=day(sweeps[-1]),
    )


def day(sweep: SweepResult) -> str:
    """The date of a sweep, as in 2026-11-24."""
    return sweep.started_at.date().isoformat()


def scatter(cells: Sequence[CompatResult]) -> Scatter | None:
    """Scatter plot of the SQNR of this project's files against PTQ's files; None if no cell measured both."""
    both = [cell for cell in cells if figures.against_ptq(cell) is not None]
    if not both:
        return None
    values = [cell.metrics[name] for cell in both for name in ("sqnr_db", "ptq_sqnr_db")]
    step = 5 * math.ceil((max(values) - min(values) + 1) / (5 * _TICKS))
    low = step * math.floor(min(values) / step)
    high = max(low + step, step * math.ceil(max(values) / step))
    scale = (_SIDE - _PAD - 10) / (high - low)

    def at(value: float) -> float:
        return (value - low) * scale

    dots = tuple(
        (
            round(_PAD + at(cell.metrics["ptq_sqnr_db"]), 1),
            round(_SIDE - _PAD - at(cell.metrics["sqnr_db"]), 1),
            cell.metrics["ptq_sqnr_db"] - cell.metrics["sqnr_db"] > figures.MARGIN_DB,
            f"{cell.cell}: {cell.metrics['sqnr_db']:.1f} dB, PTQ {cell.metrics['ptq_sqnr_db']:.1f} dB",
        )
        for cell in both
    )
    return Scatter(dots, tuple((round(at(tick), 1), tick) for tick in range(low, high + 1, step)))
