"""Gates: every bound, judged against the file, the float model and the champion."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tfmot_ops.contract import Headline, Policy, RegisterOptions, Rule, broken_rules
from tfmot_ops.errors import RecipeError
from tfmot_ops.recipes import read_policy

METRICS = {
    "accuracy": 0.90,
    "float_accuracy": 0.93,
    "size_bytes": 300.0,
    "float_size_bytes": 1000.0,
    "rmse": 2.0,
    "float_rmse": 1.5,
}
CHAMPION = {"accuracy": 0.91, "size_bytes": 400.0, "rmse": 2.0}

HOLD: list[dict[str, Any]] = [
    {"metric": "accuracy", "at_least": 0.9},
    {"metric": "size_bytes", "at_most": 300},
    {"metric": "accuracy", "max_drop": 0.031},
    {"metric": "rmse", "max_drop": 0.5},
    {"metric": "size_bytes", "max_ratio": 0.3},
    {"metric": "accuracy", "max_worse": 0.011},
    {"metric": "size_bytes", "better": True},
    {"metric": "rmse", "max_worse": 0.0},
]
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"metric": "accuracy", "at_least": 0.901}, "accuracy at_least: required 0.901 or more, received 0.9"),
    ({"metric": "size_bytes", "at_most": 299}, "size_bytes at_most: required 299 or less, received 300"),
    ({"metric": "accuracy", "max_drop": 0.02}, "at most 0.02 worse than the float model's 0.93, received 0.9"),
    ({"metric": "rmse", "max_drop": 0.4}, "at most 0.4 worse than the float model's 1.5, received 2"),
    ({"metric": "size_bytes", "max_ratio": 0.29}, "required at most 0.29 of the float model's 1000, received 300"),
    ({"metric": "accuracy", "max_worse": 0.005}, "at most 0.005 worse than the champion's 0.91, received 0.9"),
    ({"metric": "accuracy", "better": True}, "required better than the champion's 0.91, received 0.9"),
    ({"metric": "rmse", "better": True}, "required better than the champion's 2, received 2"),
    ({"metric": "iou", "at_least": 0.5}, "iou: required a value, received no such metric"),
    ({"metric": "float_rmse", "max_drop": 0.5}, "required the metric float_float_rmse"),
    ({"metric": "float_rmse", "max_worse": 0.5}, "received a champion without it"),
]


@pytest.mark.parametrize("rule", HOLD, ids=str)
def test_a_rule_that_holds(rule: dict[str, Any]) -> None:
    assert broken_rules([Rule(**rule)], METRICS, CHAMPION) == []


@pytest.mark.parametrize(("rule", "problem"), BROKEN, ids=str)
def test_a_rule_that_does_not_hold(rule: dict[str, Any], problem: str) -> None:
    (told,) = broken_rules([Rule(**rule)], METRICS, CHAMPION)
    assert problem in told


def test_all_rules_are_judged_and_without_a_champion_none_is_worse_than_it() -> None:
    rules = [Rule(**rule) for rule, _ in BROKEN]
    assert len(broken_rules(rules, METRICS, CHAMPION)) == len(BROKEN)
    compared = sum(rule.needs_champion for rule in rules)
    assert len(broken_rules(rules, METRICS, None)) == len(BROKEN) - compared


def test_the_direction_of_the_headline_is_the_tasks() -> None:
    rule = Rule(metric="accuracy", better=True)
    lower = Headline(name="accuracy", higher_is_better=False)
    assert broken_rules([rule], METRICS, CHAMPION, lower) == []
    own = Rule(metric="accuracy", better=True, higher_is_better=True)
    assert broken_rules([own], METRICS, CHAMPION, lower)


@pytest.mark.parametrize(
    "rule", [{"metric": "a"}, {"metric": "", "at_least": 1}, {"metric": "a", "at_most": float("nan")}], ids=str
)
def test_a_rule_without_a_bound_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule(**rule)


def test_gates_and_policy_are_rules_of_one_step() -> None:
    policy = Policy(rules=(Rule(metric="size_bytes", better=True),))
    options = RegisterOptions(name="net", gates={"accuracy": 0.8}, policy=policy)
    assert [rule.metric for rule in options.rules] == ["accuracy", "size_bytes"]
    assert options.compares_with_champion
    assert not RegisterOptions(name="net", gates={"accuracy": 0.8}).compares_with_champion


def test_a_policy_is_read_from_a_file(tmp_path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rules:\n- {metric: accuracy, max_drop: 0.01}\n- {metric: size_bytes, at_most: 262144}\n")
    assert [rule.metric for rule in read_policy(path).rules] == ["accuracy", "size_bytes"]
    path.write_text("rules:\n- {metric: accuracy, max_dorp: 0.01}\n")
    with pytest.raises(RecipeError, match="max_dorp"):
        read_policy(path)
