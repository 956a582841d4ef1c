"""Candidates that are tried at once lead to the choice of trying them one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from tfmot_ops import targets
from tfmot_ops.contract import ACCURACY, Candidate, Found, Goals
from tfmot_ops.search.found import best, tried
from tfmot_ops.search.ladder import ladder
from tfmot_ops.search.rungs import RUNGS, in_order, next_rung, walk

World = Mapping[str, Mapping[str, float]]
NPU = targets.resolve_target("ethos_u55_128")


def measured(candidate: Candidate, world: World) -> Found:
    """What a candidate measures in a world; one that the world does not have fails."""
    metrics = dict(world.get(candidate.name, {}))
    error = "" if metrics else "no space left"
    return Found(candidate=candidate, metrics=metrics, headline=ACCURACY, seconds=1.0, error=error)


def one_by_one(candidates: list[Candidate], goals: Goals, world: World) -> list[Found]:
    found: list[Found] = []
    while (wanted := walk(candidates, found, goals)[1]) is not None:
        found.append(measured(wanted, world))
    return found


def by_rungs(candidates: list[Candidate], goals: Goals, world: World, budget: int = 99) -> list[list[str]]:
    """The names of the candidates of each rung that is not empty."""
    rungs: list[list[str]] = []
    found: list[Found] = []
    for number in range(1, RUNGS + 1):
        rung = next_rung(candidates, found, goals, budget=budget, is_last=number == RUNGS)
        found += [measured(each, world) for each in rung]
        rungs.append([each.name for each in rung])
    return [rung for rung in rungs if rung]


def random_world(names: list[str], seed: int) -> World:
    """Figures with noise: neither accuracy nor size goes strictly with the zeros, and one in ten candidates fails."""
    chance = np.random.default_rng(seed)
    world = {}
    for name in names:
        number = name.removeprefix("sparse").removeprefix("macs").partition("_")[0]
        zeros = int(number) / 100 if name.startswith("sparse") else 0.0
        zeros = 1.0 - int(number) / 100 if name.startswith("macs") else zeros
        drop = 0.01 * chance.uniform(-0.5, 2.0) + 0.03 * zeros**4 * chance.uniform(0.5, 1.5)
        size = 100_000 * (1 - 0.8 * zeros) * chance.uniform(0.9, 1.1)
        if chance.random() > 0.1:
            world[name] = {"accuracy": 0.9 - drop, "accuracy_drop": drop, "target_flash_bytes": size}
    return world


@pytest.mark.parametrize("flash", [None, 45_000, 60_000, 90_000])
def test_the_choice_is_that_of_one_after_the_other_in_every_world(flash: int | None):
    goals = Goals(max_drop=1.0, max_flash=flash)
    candidates = ladder(goals, NPU).candidates
    chosen = set()
    for seed in range(150):
        world = random_world([each.name for each in candidates], seed)
        alone = best(one_by_one(candidates, goals, world), goals)
        names = [name for rung in by_rungs(candidates, goals, world) for name in rung]
        assert len(names) == len(set(names)), "tried twice"
        by_name = {each.name: each for each in candidates}
        found = [measured(by_name[name], world) for name in names]
        assert walk(candidates, found, goals)[1] is None, "the rungs ended before the choice was made"
        together = best(walk(candidates, found, goals)[0], goals)
        assert together == alone
        if alone is not None:
            assert best(in_order(candidates, found, goals), goals) == alone
        chosen.add(alone.candidate.name if alone else None)
    # Else the worlds would show nothing.
    assert len(chosen) > 3


def test_a_rung_has_what_needs_the_same_work_and_stops_at_the_first_that_is_good():
    goals = Goals(max_drop=1.0)
    candidates = ladder(goals, targets.resolve_target("litert_cpu")).candidates
    world = {each.name: {"accuracy_drop": 0.02} for each in candidates}
    assert by_rungs(candidates, goals, world) == [
        ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai16_ptq"],
        ["wi8_ai8", "wi8_ai8_distilled", "wi8_ai8_keep10"],
    ]
    world["wi8_ai8_ptq_aeq"] = {"accuracy_drop": 0.0}
    assert len(by_rungs(candidates, goals, world)) == 1


def test_a_later_candidate_of_a_rung_that_meets_the_goals_does_not_end_the_search_before_a_cheaper_one():
    # 16 bits come after QAT on the ladder, and are tried with the others that are quantised after training.
    goals = Goals(max_drop=1.0)
    candidates = ladder(goals, targets.resolve_target("litert_cpu")).candidates
    world = {each.name: {"accuracy_drop": 0.02} for each in candidates} | {
        "wi8_ai16_ptq": {"accuracy_drop": 0.0},
        "wi8_ai8": {"accuracy_drop": 0.001},
    }
    assert by_rungs(candidates, goals, world)[1] == ["wi8_ai8", "wi8_ai8_distilled", "wi8_ai8_keep10"]
    found = [measured(each, world) for each in candidates]
    chosen = best(in_order(candidates, found, goals), goals)
    assert chosen is not None
    assert chosen.candidate.name == "wi8_ai8"


@pytest.mark.parametrize("budget", range(1, 13))
def test_the_budget_is_never_exceeded(budget: int):
    goals = Goals(max_drop=1.0, max_flash=30_000)
    candidates = ladder(goals, NPU).candidates
    world = {each.name: {"accuracy_drop": 0.0, "target_flash_bytes": 99_999.0} for each in candidates}
    tried_names = [name for rung in by_rungs(candidates, goals, world, budget) for name in rung]
    assert len(tried_names) <= budget
    assert tried_names


def test_with_everything_the_whole_ladder_is_tried_once():
    goals = Goals(max_drop=1.0, max_flash=30_000)
    candidates = ladder(goals, NPU).candidates
    found: list[Found] = []
    for number in range(1, RUNGS + 1):
        rung = next_rung(candidates, found, goals, budget=99, is_last=number == RUNGS, everything=True)
        found += [measured(each, {each.name: {"accuracy_drop": 0.0, "target_flash_bytes": 1.0}}) for each in rung]
    assert sorted(each.candidate.name for each in found) == sorted(each.name for each in candidates)
    assert all(tried(each, goals).meets_all for each in found)


def test_two_with_the_same_pruned_model_are_not_in_one_rung():
    goals = Goals(max_drop=1.0, max_flash=30_000)
    candidates = ladder(goals, NPU).candidates
    first = next(each for each in candidates if each.zeros)
    twin = first.model_copy(update={"name": "twin"})
    both = [*candidates, twin]
    world = {each.name: {"accuracy_drop": 0.0, "target_flash_bytes": 99_999.0} for each in both}
    rungs = by_rungs(both, goals, world)
    (of_first,) = [rung for rung in rungs if first.name in rung]
    assert twin.name not in of_first


def test_a_search_for_the_whole_front_takes_the_smallest_that_is_good_and_else_the_first():
    goals = Goals(max_drop=1.0)
    candidates = ladder(goals, NPU).candidates[:4]
    sizes, drops, accuracies = (99_000, 50_000, 50_300, 10_000), (0.0, 0.0, 0.0, 0.02), (0.9, 0.9, 0.91, 0.88)
    found = [
        Found(
            candidate=each,
            metrics={"accuracy": accuracy, "accuracy_drop": drop, "target_flash_bytes": float(size)},
            headline=ACCURACY,
            seconds=1.0,
        )
        for each, size, drop, accuracy in zip(candidates, sizes, drops, accuracies, strict=True)
    ]
    assert best(found, goals) == found[0]
    assert best(found, goals, everything=True) == found[2]  # as small as the one before it, and better
    assert best(found[3:], goals, everything=True) is None
