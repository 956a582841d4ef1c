"""Which candidates to try at once, so that the choice is the one of trying them one after the other.

The command tries one candidate, looks at its figures and decides on the next. A DAG tries several at once: those that
need the same kind of work. `walk` then goes through the figures as the command would have, so both choose alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from tfmot_ops.contract import Candidate, Found, Goals, Recipe
from tfmot_ops.contract.recipe import Method
from tfmot_ops.search.found import best, tried
from tfmot_ops.search.ladder import next_candidate, why_not

#: How many rungs a DAG has: one for what is quantised after training, one for QAT, two for what is pruned.
RUNGS = 4


def walk(
    candidates: Sequence[Candidate], found: Sequence[Found], goals: Goals, *, everything: bool = False
) -> tuple[list[Found], Candidate | None]:
    """Go through the candidates as if they were tried one after the other.

    Args:
        candidates: of the ladder, in its order.
        found: those that were tried, in any order.
        goals: what the file has to be.
        everything: go on after a candidate that meets the goals, and leave none out.

    Returns:
        The candidates that are needed for the choice, in order, and the next one that is needed but was not tried yet;
        None where the choice is made or no candidate is left.
    """
    measured = {each.candidate.name: each for each in found}
    walked: list[Found] = []
    while everything or best(walked, goals) is None:
        done = {each.candidate.name for each in walked}
        wanted = (
            next((each for each in candidates if each.name not in done), None)
            if everything
            else next_candidate(candidates, [tried(each, goals) for each in walked])
        )
        if wanted is None or wanted.name not in measured:
            return walked, wanted
        walked.append(measured[wanted.name])
    return walked, None


def in_order(candidates: Sequence[Candidate], found: Sequence[Found], goals: Goals) -> list[Found]:
    """The candidates that the choice needed, in the order of `walk`; then the others, in the order of the ladder."""
    walked, _ = walk(candidates, found, goals)
    place = {each.name: index for index, each in enumerate(candidates)}
    rest = [each for each in found if each not in walked]
    return walked + sorted(rest, key=lambda each: place.get(each.candidate.name, len(place)))


def next_rung(
    candidates: Sequence[Candidate],
    found: Sequence[Found],
    goals: Goals,
    *,
    budget: int,
    is_last: bool = False,
    everything: bool = False,
) -> list[Candidate]:
    """The candidates to try next, at once: the next one that `walk` needs, and those that need the same kind of work.

    Args:
        candidates: of the ladder, in its order.
        found: those that were tried, with those that failed.
        goals: what the file has to be.
        budget: how many candidates may be tried in the whole search.
        is_last: whether no further rung follows.
        everything: try every candidate of the ladder, also after one has met the goals.

    Returns:
        The candidates in the order of the ladder; empty where the choice is made or the budget is used up. Of those
        that are pruned, half are left for the next rung, as the figures of the others may show which of them cannot
        help. Two that share a pruned model are not in one rung: the later one takes over the model of the other.
    """
    walked, wanted = walk(candidates, found, goals, everything=everything)
    if wanted is None:
        return []
    done, judged = {each.candidate.name for each in found}, [tried(each, goals) for each in walked]
    same = [
        each
        for each in candidates
        if each.name not in done
        and _work(each.recipe) == _work(wanted.recipe)
        and (everything or why_not(each, judged) is None)
    ]
    if not is_last and _prunes(wanted.recipe):
        same = _each_pruned_model_once(same)
        same = same[: (len(same) + 1) // 2]
    return same[: max(0, budget - len(found))]


def _work(recipe: Recipe) -> tuple[bool, bool]:
    """The kind of work that a recipe needs: (whether it prunes, whether it trains with int8 rounding)."""
    return _prunes(recipe), recipe.quantization is not None and recipe.quantization.method is Method.QAT


def _prunes(recipe: Recipe) -> bool:
    return recipe.sparsity is not None or recipe.channels is not None


def _each_pruned_model_once(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates without those that prune as one before them does."""
    first: dict[str, Candidate] = {}
    for each in candidates:
        first.setdefault(each.recipe.model_dump_json(include={"sparsity", "channels", "budget"}), each)
    return list(first.values())
