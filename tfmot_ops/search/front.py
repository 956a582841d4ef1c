"""The candidates that no other beats (the Pareto front), and those that miss the goals by least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tfmot_ops.contract import Headline
from tfmot_ops.search.ladder import Tried

#: Costs of a file, smaller is better: metric -> its title.
COSTS = {
    "target_flash_bytes": "flash",
    "size_bytes": "file",
    "gzip_bytes": "gzip",
    "target_ram_bytes": "RAM",
    "latency_ms": "latency",
}


def front(metrics: Mapping[str, Mapping[str, float]], headline: Headline) -> list[str]:
    """Names of the candidates that no other one beats: none is as good in all figures and better in one.

    Args:
        metrics: candidate -> its metrics.
        headline: the task's metric. The other figures are those of `COSTS`, without the latency, which is noisy.
    """
    points = {name: _point(values, headline) for name, values in metrics.items()}
    return [name for name, point in points.items() if not any(_beats(other, point) for other in points.values())]


def _point(values: Mapping[str, float], headline: Headline) -> tuple[float, ...]:
    """Figures of which less is better."""
    value = values.get(headline.name, math.nan)
    score = -value if headline.higher_is_better else value
    costs = [values.get(name, math.nan) for name in COSTS if name != "latency_ms"]
    return tuple(math.inf if math.isnan(figure) else figure for figure in (score, *costs))


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def nearest(tried: Sequence[Tried], count: int = 3) -> list[Tried]:
    """The candidates that miss the goals by least: by the sum of how far each missed goal is beyond its limit."""
    return sorted(tried, key=lambda each: sum(max(0.0, goal.miss) for goal in each.judged))[:count]
