"""The search's decisions: which candidates a target allows, which one comes next, and when to stop."""

from __future__ import annotations

import math

import pytest

from tfmot_ops import targets
from tfmot_ops.contract import ACCURACY, Candidate, Goals, Headline
from tfmot_ops.errors import SpecError
from tfmot_ops.search.front import front, nearest
from tfmot_ops.search.goals import judge, require_goals
from tfmot_ops.search.ladder import Tried, ladder, next_candidate

NPU = targets.resolve_target("ethos_u55_128")


def played(
    goals: Goals, world: dict[str, dict[str, float]], target: str = "ethos_u55_128"
) -> tuple[list[str], str | None]:
    """(names in the order tried, the chosen one), where `world` says what each candidate would measure."""
    rungs = ladder(goals, targets.resolve_target(target)).candidates
    tried: list[Tried] = []
    while not any(each.meets_all for each in tried):
        rung: Candidate | None = next_candidate(rungs, tried)
        if rung is None:
            break
        tried.append(Tried(rung, judge(goals, world[rung.name], ACCURACY)))
    best = next((each.candidate.name for each in tried if each.meets_all), None)
    return [each.candidate.name for each in tried], best


def world(dense_drop: float, *, densest: int = 90, largest: float = 100_000) -> dict[str, dict[str, float]]:
    """PTQ drops by `dense_drop`, QAT by half; zeros above `densest` percent cost 5 points; bytes fall with zeros."""
    names = {"wi8_ai8_ptq": dense_drop, "wi8_ai8_ptq_aeq": dense_drop, "wi8_ai8": dense_drop / 2}
    names |= {"wi8_ai8_distilled": dense_drop / 2}
    found = {name: {"accuracy_drop": drop, "target_flash_bytes": largest} for name, drop in names.items()}
    for zeros in (50, 60, 65, 70, 80, 85, 90):
        drop = 0.0 if zeros <= densest else 0.05
        found[f"sparse{zeros}_wi8_ai8"] = {"accuracy_drop": drop, "target_flash_bytes": largest * (1 - zeros / 100)}
    for macs in (25, 40, 50, 70):  # fewer filters cost more accuracy than zeros
        drop = 0.0 if 100 - macs <= densest - 30 else 0.05
        found[f"macs{macs}_wi8_ai8"] = {"accuracy_drop": drop, "target_flash_bytes": largest * macs / 100}
    return found


def test_the_cheapest_that_is_good_enough_ends_the_search():
    assert played(Goals(max_drop=1.0), world(0.0)) == (["wi8_ai8_ptq"], "wi8_ai8_ptq")


def test_an_inaccurate_ptq_is_followed_by_what_changes_accuracy():
    names, best = played(Goals(max_drop=1.0), world(0.015))
    assert names == ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai8"]
    assert best == "wi8_ai8"


def test_a_file_that_is_only_too_large_is_followed_by_zeros():
    names, best = played(Goals(max_drop=1.0, max_flash=60_000), world(0.0))
    assert (names, best) == (["wi8_ai8_ptq", "sparse50_wi8_ai8"], "sparse50_wi8_ai8")


def test_the_search_between_too_large_and_too_inaccurate():
    """50 % is too large, 80 % too inaccurate: what lies between, and nothing beyond either."""
    names, best = played(Goals(max_drop=1.0, max_flash=35_000), world(0.0, densest=70))
    assert best == "sparse65_wi8_ai8"
    assert names == ["wi8_ai8_ptq", "sparse50_wi8_ai8", "sparse80_wi8_ai8", "sparse65_wi8_ai8"]
    assert "sparse90_wi8_ai8" not in names


def test_goals_that_cannot_be_met_end_without_trying_everything():
    names, best = played(Goals(max_drop=1.0, max_flash=1_000), world(0.0, densest=90))
    assert best is None
    # 90 % is still too large, so nothing with fewer zeros is tried after it.
    # The same holds for removed filters: 75 % of the multiplications are too many, and the file is too large still.
    assert names[:4] == ["wi8_ai8_ptq", "sparse50_wi8_ai8", "sparse80_wi8_ai8", "sparse90_wi8_ai8"]
    assert names[4:] == ["macs50_wi8_ai8", "macs25_wi8_ai8"]


def test_filters_are_removed_where_zeros_help_nothing():
    goals = Goals(max_drop=1.0, max_flash=60_000)
    names, best = played(goals, world(0.0), target="cortex_m")
    assert (names, best) == (["wi8_ai8_ptq", "macs50_wi8_ai8"], "macs50_wi8_ai8")
    # QAT and more zeros cannot mend the accuracy of a file that is small enough.
    assert played(Goals(max_drop=1.0, max_flash=200_000), world(0.05))[0] == [
        *("wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai8", "wi8_ai8_distilled")
    ]
    assert "macs50_wi8_ai8" in ladder(Goals(max_drop=1.0), None).left_out


def test_zeros_are_no_candidates_where_they_help_nothing():
    found = ladder(Goals(max_drop=1.0, max_flash=1_000), targets.resolve_target("cortex_m"))
    assert not [rung for rung in found.candidates if rung.zeros]
    assert found.left_out["sparse80_wi8_ai8"] == "zeros help none of the goals on this target"
    assert [rung for rung in ladder(Goals(max_gzip=1_000), targets.resolve_target("cortex_m")).candidates if rung.zeros]


def test_what_a_target_does_not_take_is_left_out_with_the_reason():
    found = ladder(Goals(max_drop=1.0), targets.resolve_target("per_tensor_npu"))
    assert "int8 activations" in found.left_out["wi8_ai16_ptq"]
    assert "every layer in int8" in found.left_out["wi8_ai8_keep10"]
    assert "wi8_ai8_ptq_aeq" in found.left_out
    assert "wi8_ai16_ptq" in [rung.name for rung in ladder(Goals(max_drop=1.0), None).candidates]


def test_a_failed_candidate_shows_nothing():
    goals = Goals(max_drop=1.0, max_flash=60_000)
    rungs = ladder(goals, NPU).candidates
    failed = Tried(rungs[0], judge(goals, {}, ACCURACY))
    assert all(math.isinf(goal.miss) for goal in failed.judged)
    assert next_candidate(rungs, [failed]) == rungs[1]


def test_goals_follow_the_direction_of_the_metric():
    rmse = Headline(name="rmse", higher_is_better=False, is_share=False)
    goals = Goals(max_drop=0.1, min_metric=2.0)
    good = judge(goals, {"rmse": 1.9, "rmse_drop": 0.1}, rmse)
    bad = judge(goals, {"rmse": 2.1, "rmse_drop": 0.3}, rmse)
    assert all(goal.is_met for goal in good)
    assert not any(goal.is_met for goal in bad)
    assert bad[1].required == "rmse at most 2"
    # A share's drop is in points.
    (points,) = judge(Goals(max_drop=1.0), {"accuracy_drop": 0.012}, ACCURACY)
    assert (points.required, points.received, points.is_met) == ("drop at most 1.0 points", "1.2 points", False)


def test_the_front_and_the_nearest():
    metrics = {
        "small": {"accuracy": 0.90, "size_bytes": 10.0, "gzip_bytes": 9.0},
        "good": {"accuracy": 0.95, "size_bytes": 20.0, "gzip_bytes": 18.0},
        "beaten": {"accuracy": 0.90, "size_bytes": 20.0, "gzip_bytes": 18.0},
    }
    assert front(metrics, ACCURACY) == ["small", "good"]
    goals = Goals(max_gzip=10)
    rungs = ladder(goals, None).candidates
    tried = [
        Tried(rung, judge(goals, {"gzip_bytes": size}, ACCURACY))
        for rung, size in zip(rungs, (30, 12, 20), strict=False)
    ]
    assert [each.candidate.name for each in nearest(tried, 2)] == [rungs[1].name, rungs[2].name]


def test_a_search_without_a_goal_is_refused():
    with pytest.raises(SpecError, match="--max-drop"):
        require_goals(Goals())
