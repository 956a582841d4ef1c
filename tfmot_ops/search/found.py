"""How the candidates that were tried stand to the goals, and which one is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from tfmot_ops.contract import Found, Goals, StepResult
from tfmot_ops.search.goals import judge
from tfmot_ops.search.ladder import Tried


def tried(found: Found, goals: Goals) -> Tried:
    """How a candidate that was tried stands to the goals."""
    return Tried(found.candidate, judge(goals, found.metrics, found.headline))


def verdict(found: Found, goals: Goals) -> str:
    """The goals that a candidate misses, with the values received; or `all goals met`, or why its chain failed."""
    if found.error:
        return f"failed: {found.error.splitlines()[0]}"
    missed = [goal for goal in tried(found, goals).judged if not goal.is_met]
    return "; ".join(f"{goal.required}, received {goal.received}" for goal in missed) or "all goals met"


def best(found: Sequence[Found], goals: Goals) -> Found | None:
    """The first candidate, in the given order, that meets all goals; None without one."""
    return next((each for each in found if tried(each, goals).meets_all), None)


def figures_of(results: Sequence[StepResult]) -> dict[str, float]:
    """The metrics of a chain's file, with `latency_ratio`: its latency to the float32 TFLite file's."""
    by_step = {result.step_id: result.metrics for result in results}
    metrics = dict(by_step.get("evaluate", {}))
    float_ms = by_step.get("train", {}).get("latency_ms")
    if float_ms and "latency_ms" in metrics:
        metrics["latency_ratio"] = metrics["latency_ms"] / float_ms
    return metrics
