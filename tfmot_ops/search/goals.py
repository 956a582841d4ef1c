"""Goals of a search, and which of them a candidate meets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tfmot_ops.contract import Goals, Headline, Limits, Target
from tfmot_ops.errors import SpecError


class Kind(StrEnum):
    """What a goal limits, and so what can help to meet it."""

    ACCURACY = "accuracy"
    SIZE = "size"


@dataclass(frozen=True)
class Judged:
    """One goal, and how a candidate stands to it.

    Attributes:
        name: of the goal (`max_drop`).
        kind: what it limits.
        required: the goal for people.
        received: the candidate's figure for people.
        miss: how far the figure is beyond the goal, relative to the goal; at most 0 where the goal is met, infinite for
            a figure that was not measured.
    """

    name: str
    kind: Kind
    required: str
    received: str
    miss: float

    @property
    def is_met(self) -> bool:
        """Whether the candidate meets the goal."""
        return self.miss <= 0.0


def _kilobytes(size: float) -> str:
    return f"{size / 1024:.1f} KiB"


@dataclass(frozen=True)
class _Bound:
    """How a goal is judged: by which metric, whether that may be at most as large, and how it is written."""

    metric: str
    at_most: bool
    write: Callable[[float], str]


_SIZES = {
    "max_flash": _Bound("target_flash_bytes", True, _kilobytes),
    "max_ram": _Bound("target_ram_bytes", True, _kilobytes),
    "max_gzip": _Bound("gzip_bytes", True, _kilobytes),
    "max_latency_ratio": _Bound("latency_ratio", True, "{:.2f}".format),
    "max_latency": _Bound("target_inference_ms", True, "{:.3f} ms".format),
    "min_npu_share": _Bound("npu_share", False, "{:.1%}".format),
}


def judge(goals: Goals, metrics: Mapping[str, float], headline: Headline) -> list[Judged]:
    """Judge all goals by a candidate's metrics.

    Args:
        goals: what the file has to be.
        metrics: of the candidate's file, as the step `evaluate` measures it, with `latency_ratio`.
        headline: the task's metric, with its direction.
    """
    found = []
    if goals.max_drop is not None:
        limit = goals.max_drop / 100.0 if headline.is_share else goals.max_drop
        drop = metrics.get(f"{headline.name}_drop", math.nan)
        sign = "-" if drop < 0 else ""
        found.append(
            Judged("max_drop", Kind.ACCURACY, f"drop at most {headline.size_text(limit)}",
                   _received(drop, lambda value: sign + headline.size_text(value)), _beyond(drop, limit, at_most=True))
        )  # fmt: skip
    if goals.min_metric is not None:
        value, at_most = metrics.get(headline.name, math.nan), not headline.higher_is_better
        found.append(
            Judged("min_metric", Kind.ACCURACY,
                   f"{headline.words} at {'most' if at_most else 'least'} {headline.text(goals.min_metric)}",
                   _received(value, headline.text), _beyond(value, goals.min_metric, at_most=at_most))
        )  # fmt: skip
    for name, bound in _SIZES.items():
        limit = getattr(goals, name)
        if limit is not None:
            value = metrics.get(bound.metric, math.nan)
            words = name[4:].replace("_", " ")
            required = f"{words} at {'most' if bound.at_most else 'least'} {bound.write(limit)}"
            received = _received(value, bound.write)
            found.append(Judged(name, Kind.SIZE, required, received, _beyond(value, limit, at_most=bound.at_most)))
    return found


def _received(value: float, write: Callable[[float], str]) -> str:
    return "not measured" if math.isnan(value) else write(value)


def _beyond(value: float, limit: float, *, at_most: bool) -> float:
    """How far a value is beyond its limit, relative to the limit; infinite without a value."""
    if math.isnan(value):
        return math.inf
    difference = value - limit if at_most else limit - value
    return difference / max(abs(limit), 1e-3)


def require_goals(goals: Goals) -> None:
    """Refuse a search without a goal.

    Raises:
        SpecError: no goal is set.
    """
    if goals == Goals():
        raise SpecError(
            "the search has no goal",
            required="at least one of " + ", ".join(Goals.model_fields),
            received="none",
            remedy="--max-drop 1, for example, or max_drop 1 in the form of the DAG, allows one point of accuracy",
        )


def with_limits_as_goals(goals: Goals, target: Target) -> tuple[Goals, Target]:
    """The goals with the target's limits where they set none, and the target without limits, beyond which steps fail.

    Raises:
        SpecError: there is no goal, nor a limit.
    """
    pairs = {"max_flash": "flash_bytes", "max_ram": "ram_bytes"}
    pairs |= {"min_npu_share": "npu_share", "max_latency": "inference_ms"}
    taken = {goal: getattr(target.limits, limit) for goal, limit in pairs.items() if getattr(goals, goal) is None}
    goals = goals.model_copy(update={name: value for name, value in taken.items() if value is not None})
    require_goals(goals)
    return goals, target.model_copy(update={"limits": Limits()})
