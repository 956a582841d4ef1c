"""The ladder of candidates, cheapest first, and which one to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tfmot_ops import targets
from tfmot_ops.contract import Candidate, Goals, IoType, Target
from tfmot_ops.contract.training import Distillation, TrainingPlan
from tfmot_ops.errors import SpecError
from tfmot_ops.recipes.names import decode
from tfmot_ops.search.goals import Judged, Kind

#: Recipes without pruning, cheapest first, and what each tries.
_DENSE = (
    ("wi8_ai8_ptq", "quantised after training, with calibration samples alone"),
    ("wi8_ai8_ptq_aeq", "quantised after training by Google's AI Edge Quantizer, which rounds and scales otherwise"),
    ("wi8_ai8", "trained with int8 rounding (QAT)"),
)
_WIDER = (
    ("wi8_ai8_keep10", "the layers that lose most by int8 in float, the others trained with int8 rounding"),
    ("wi8_ai16_ptq", "activations of 16 bits, quantised after training"),
)
_DISTILLED = ("wi8_ai8_distilled", "trained with int8 rounding to give the float model's outputs")
#: Percent of zeros, in the order in which they are tried: the middle, the far end, and what lies between.
_ZEROS = (50, 80, 90, 65, 70, 85, 60)
#: Percent of the multiplications that go with removed filters, in the order in which they are tried.
_REMOVED = (50, 75, 30, 60)
#: Field of a candidate -> what it counts, in messages.
_WORDS = {"zeros": "zeros", "removed": "removed filters"}


@dataclass(frozen=True)
class Tried:
    """A candidate that was tried, and how it stands to the goals."""

    candidate: Candidate
    judged: Sequence[Judged]

    def misses(self, kind: Kind) -> list[Judged]:
        """The goals of a kind that the candidate misses."""
        return [goal for goal in self.judged if goal.kind is kind and not goal.is_met]

    @property
    def meets_all(self) -> bool:
        """Whether the candidate meets every goal."""
        return all(goal.is_met for goal in self.judged)


@dataclass
class Ladder:
    """The candidates of one search.

    Attributes:
        candidates: in the order in which they are tried.
        left_out: name of a candidate -> why it is not tried.
    """

    candidates: list[Candidate]
    left_out: dict[str, str] = field(default_factory=dict)


def ladder(goals: Goals, target: Target | None, training: TrainingPlan | None = None) -> Ladder:
    """The candidates for goals and a target, cheapest first.

    Args:
        goals: what the file has to be.
        target: the device; None for no certain device.
        training: the user's training plan, which each candidate that trains follows.
    """
    found = Ladder([])
    plan = training or TrainingPlan()
    for name, tries in _DENSE:
        _add(found, Candidate(name=name, recipe=decode(name), tries=tries), target)
    name, tries = _DISTILLED
    recipe = decode("wi8_ai8").model_copy(
        update={"name": name, "training": plan.model_copy(update={"distillation": Distillation()})}
    )
    if plan.distillation is None:
        _add(found, Candidate(name=name, recipe=recipe, tries=tries), target)
    for name, tries in _WIDER:
        _add(found, Candidate(name=name, recipe=decode(name), tries=tries, wide=True), target)
    for zeros in _ZEROS:
        name = f"sparse{zeros}_wi8_ai8"
        if _zeros_help(goals, target):
            tries = f"{zeros} % zeros, trained, then trained with int8 rounding"
            _add(found, Candidate(name=name, recipe=decode(name), tries=tries, zeros=zeros), target)
        else:
            found.left_out[name] = "zeros help none of the goals on this target"
    for removed in _REMOVED:
        name = f"macs{100 - removed}_wi8_ai8"
        if _limits_a_cost(goals):
            tries = f"filters removed with {removed} % of the multiplications, trained, then trained with int8 rounding"
            _add(found, Candidate(name=name, recipe=decode(name), tries=tries, removed=removed), target)
        else:
            found.left_out[name] = "fewer filters help none of the goals"
    return found


def _add(found: Ladder, candidate: Candidate, target: Target | None) -> None:
    try:
        targets.adapted(candidate.recipe, target)
    except SpecError as error:
        found.left_out[candidate.name] = f"not for target {target.name if target else 'any'}: {error.required} required"
        return
    if target is not None and target.input_type not in {None, IoType.INT8} and candidate.name.endswith("_aeq"):
        found.left_out[candidate.name] = "this back end makes int8 inputs and outputs only"
        return
    found.candidates.append(candidate)


def _zeros_help(goals: Goals, target: Target | None) -> bool:
    """Whether zeros make a goal easier: gzip always; the flash of an Ethos-U, whose weights Vela compresses."""
    compresses = target is not None and target.vela is not None
    return goals.max_gzip is not None or (goals.max_flash is not None and compresses)


def _limits_a_cost(goals: Goals) -> bool:
    """Whether a goal limits flash, memory, download or latency, which a model with fewer filters needs less of."""
    limits = (goals.max_flash, goals.max_ram, goals.max_gzip, goals.max_latency, goals.max_latency_ratio)
    return any(limit is not None for limit in limits)


def epochs_of(candidate: Candidate, epochs: Mapping[str, int]) -> dict[str, int]:
    """Step -> epochs for a candidate, of those that the user gave: epochs of pruning are for recipes that prune."""
    return {
        step: count for step, count in epochs.items() if not candidate.is_dense or step not in {"prune", "fine_tune"}
    }


def training_of(candidate: Candidate, training: TrainingPlan | None) -> TrainingPlan | None:
    """The user's training plan for a candidate; None where the candidate's recipe has a plan, which is made of it."""
    return training if candidate.recipe.training is None else None


def next_candidate(candidates: Sequence[Candidate], tried: Sequence[Tried]) -> Candidate | None:
    """The next candidate worth trying; None if none is left that could meet what the best so far misses."""
    done = {each.candidate.name for each in tried}
    return next((each for each in candidates if each.name not in done and why_not(each, tried) is None), None)


def why_not(candidate: Candidate, tried: Sequence[Tried]) -> str | None:
    """Why a candidate cannot meet the goals, by what others showed; None if it may."""
    tried = [
        each for each in tried if any(math.isfinite(goal.miss) for goal in each.judged)
    ]  # a failed one shows nothing
    dense = [each for each in tried if each.candidate.is_dense]
    if candidate.is_dense:
        return _why_not_dense(candidate, dense)
    small = [each for each in dense if not each.misses(Kind.SIZE)]
    if small:
        return f"{small[0].candidate.name} is small enough already; what it misses, a smaller file does not mend"
    return _why_not_beside("zeros", candidate, tried) or _why_not_beside("removed", candidate, tried)


def _why_not_beside(what: str, candidate: Candidate, tried: Sequence[Tried]) -> str | None:
    """As `why_not`, by candidates with more or fewer zeros, or more or fewer removed filters.

    Args:
        what: `zeros` or `removed`: the field of the candidates that is compared. A larger value makes the file smaller
            and less accurate.
        candidate: the one to judge.
        tried: those that were tried.
    """
    share = getattr(candidate, what)
    for each in tried if share else ():
        other, name = getattr(each.candidate, what), each.candidate.name
        if 0 < other < share and each.misses(Kind.ACCURACY):
            return f"{name} is too inaccurate already, with fewer {_WORDS[what]}"
        if 0 < other < share and not each.misses(Kind.SIZE):
            return f"{name} is small enough already, with fewer {_WORDS[what]}"
        if other > share and each.misses(Kind.SIZE):
            return f"{name} is too large already, with more {_WORDS[what]}"
    return None


def _why_not_dense(candidate: Candidate, dense: Sequence[Tried]) -> str | None:
    """As `why_not`, for a candidate without pruning: a dense int8 file costs the same, however it is made."""
    fits = [each for each in dense if not each.misses(Kind.ACCURACY)]
    if fits:
        return f"{fits[0].candidate.name} is accurate enough already; what it misses, this does not change"
    if candidate.wide and any(each.misses(Kind.SIZE) for each in dense):
        return "more bits make nothing smaller"
    return None
