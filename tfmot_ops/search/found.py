"""How the candidates that were tried stand to the goals, and which one is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfmot_ops.contract import Found, Goals, StepResult
from tfmot_ops.search.goals import judge
from tfmot_ops.search.ladder import Tried

#: Ratio of two sizes up to which they count as equal.
_SAME_SIZE = 1.01


def tried(found: Found, goals: Goals) -> Tried:
    """How a candidate that was tried stands to the goals."""
    return Tried(found.candidate, judge(goals, found.metrics, found.headline))


def verdict(found: Found, goals: Goals) -> str:
    """The goals that a candidate misses, with the values received; or `all goals met`, or why its chain failed."""
    if found.error:
        return f"failed: {found.error.splitlines()[0]}"
    missed = [goal for goal in tried(found, goals).judged if not goal.is_met]
    return "; ".join(f"{goal.required}, received {goal.received}" for goal in missed) or "all goals met"


def best(found: Sequence[Found], goals: Goals, *, everything: bool = False) -> Found | None:
    """The candidate to take: the first, in the given order, that meets all goals; None without one.

    Args:
        found: the candidates that were tried.
        goals: what the file has to be.
        everything: for a search that went on after the first: the smallest on the device of those that meet all goals.
            Of candidates whose sizes differ by less than 1 % the one with the best metric, and of equal ones the first.
    """
    fitting = [each for each in found if tried(each, goals).meets_all]
    if not fitting or not everything:
        return fitting[0] if fitting else None
    sizes = [each.metrics.get("target_flash_bytes", each.metrics.get("size_bytes", math.inf)) for each in fitting]
    small = [each for each, size in zip(fitting, sizes, strict=True) if size <= min(sizes) * _SAME_SIZE]
    return max(small, key=_worth)


def _worth(found: Found) -> float:
    value = found.metrics.get(found.headline.name, math.nan)
    value = value if found.headline.higher_is_better else -value
    return -math.inf if math.isnan(value) else value


def figures_of(results: Sequence[StepResult]) -> dict[str, float]:
    """The metrics of a chain's file, with `latency_ratio`: its latency to the float32 TFLite file's."""
    by_step = {result.step_id: result.metrics for result in results}
    metrics = dict(by_step.get("evaluate", {}))
    float_ms = by_step.get("train", {}).get("latency_ms")
    if float_ms and "latency_ms" in metrics:
        metrics["latency_ratio"] = metrics["latency_ms"] / float_ms
    return metrics
