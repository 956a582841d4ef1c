"""Gates: the rules on metrics that a file has to keep before it is registered, and what each rule says of a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from tfmot_ops.contract.document import Document
from tfmot_ops.contract.headline import Headline

#: Ends of the names of metrics of which less is better: sizes, times, losses, errors, counts of slow operations.
_LOWER_IS_BETTER = ("_bytes", "_ms", "_s", "_drop", "_ops", "loss", "error", "rmse", "mae", "mse")


class Rule(Document):
    """One rule on a metric. It has one or more bounds, and all of them have to hold.

    Attributes:
        metric: key in the metrics of the step `evaluate`: `accuracy`, `size_bytes`, `latency_ms`.
        at_least: lowest allowed value.
        at_most: highest allowed value.
        max_drop: how much worse than the float model the file may be, in the metric's unit. The float model's value is
            the metric `float_<metric>`.
        max_ratio: highest allowed value as a share of the float model's: 0.3 for a file of at most 30 % of its size.
        max_worse: how much worse than the present champion the file may be, in the metric's unit. Without a champion
            this bound holds.
        better: whether the file has to be better than the present champion. Without a champion this bound holds.
        higher_is_better: direction of the metric. None: the task's direction for its headline metric; for others less
            is better where the name ends like a size, a time, a loss or an error (`size_bytes`, `latency_ms`).
    """

    metric: str = Field(min_length=1)
    at_least: float | None = None
    at_most: float | None = None
    max_drop: float | None = None
    max_ratio: float | None = Field(default=None, gt=0.0)
    max_worse: float | None = None
    better: bool = False
    higher_is_better: bool | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        bounds = (self.at_least, self.at_most, self.max_drop, self.max_ratio, self.max_worse)
        if not self.better and all(bound is None for bound in bounds):
            raise ValueError("one of at_least, at_most, max_drop, max_ratio, max_worse, or better: true")
        if any(bound is not None and not math.isfinite(bound) for bound in bounds):
            raise ValueError("finite numbers as bounds")
        return self

    @property
    def needs_champion(self) -> bool:
        """Whether the rule compares with the present champion."""
        return self.better or self.max_worse is not None


class Policy(Document):
    """The content of a policy file: all rules that a file has to keep."""

    rules: tuple[Rule, ...] = Field(min_length=1)


def broken_rules(
    rules: Sequence[Rule],
    metrics: Mapping[str, float],
    champion: Mapping[str, float] | None = None,
    headline: Headline | None = None,
) -> list[str]:
    """One sentence for each bound that the metrics do not keep, with what is required and what was received.

    Args:
        rules: all are judged.
        metrics: of the file, from the step `evaluate`.
        champion: the metrics of the present champion; None if there is none.
        headline: gives the direction of the task's metric.
    """
    return [problem for rule in rules for problem in _Judgement(rule, metrics, champion, headline).problems()]


class _Judgement:
    def __init__(
        self,
        rule: Rule,
        metrics: Mapping[str, float],
        champion: Mapping[str, float] | None,
        headline: Headline | None,
    ) -> None:
        self.rule = rule
        self.metrics = metrics
        self.champion = champion
        self.higher = _is_higher_better(rule, headline)

    def problems(self) -> list[str]:
        rule, name = self.rule, self.rule.metric
        value = self.metrics.get(name)
        if value is None:
            return [f"{name}: required a value, received no such metric (there are {', '.join(sorted(self.metrics))})"]
        found = []
        if rule.at_least is not None and not value >= rule.at_least:
            found.append(f"at_least: required {rule.at_least:g} or more, received {value:g}")
        if rule.at_most is not None and not value <= rule.at_most:
            found.append(f"at_most: required {rule.at_most:g} or less, received {value:g}")
        found += self._against_float(value)
        if rule.needs_champion and self.champion is not None:
            found += self._against_champion(value, self.champion.get(name))
        return [f"{name} {problem}" for problem in found]

    def _worse(self, reference: float, value: float) -> float:
        return reference - value if self.higher else value - reference

    def _against_float(self, value: float) -> list[str]:
        rule, name = self.rule, f"float_{self.rule.metric}"
        if rule.max_drop is None and rule.max_ratio is None:
            return []
        reference = self.metrics.get(name)
        if reference is None:
            return [f"required the metric {name} to compare with, received no such metric"]
        found = []
        drop = self._worse(reference, value)
        if rule.max_drop is not None and not drop <= rule.max_drop:
            found.append(
                f"max_drop: required at most {rule.max_drop:g} worse than the float model's {reference:g}, received "
                f"{value:g}, which is {drop:g} worse"
            )
        if rule.max_ratio is not None and not value <= rule.max_ratio * reference:
            found.append(
                f"max_ratio: required at most {rule.max_ratio:g} of the float model's {reference:g}, received {value:g}"
            )
        return found

    def _against_champion(self, value: float, reference: float | None) -> list[str]:
        if reference is None:
            return [f"required the champion's {self.rule.metric} to compare with, received a champion without it"]
        found, worse = [], self._worse(reference, value)
        if self.rule.better and not worse < 0.0:
            found.append(f"better: required better than the champion's {reference:g}, received {value:g}")
        if self.rule.max_worse is not None and not worse <= self.rule.max_worse:
            found.append(
                f"max_worse: required at most {self.rule.max_worse:g} worse than the champion's {reference:g}, "
                f"received {value:g}"
            )
        return found


def _is_higher_better(rule: Rule, headline: Headline | None) -> bool:
    if rule.higher_is_better is not None:
        return rule.higher_is_better
    if headline is not None and headline.name == rule.metric:
        return headline.higher_is_better
    return not rule.metric.endswith(_LOWER_IS_BETTER)


def rules_of(gates: Mapping[str, float], rules: Sequence[Any]) -> list[Rule]:
    """The rules of a step: those of `gates` (metric -> lowest allowed value), then `rules`."""
    return [*(Rule(metric=name, at_least=lowest) for name, lowest in gates.items()), *rules]
