"""The tasks of a search: plan a rung of candidates, try them, choose the one that meets the goals.

The float model is trained once, and each rung is a mapped task, whose figures decide on the next rung.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from pydantic import ValidationError

from tfmot_ops.contract import ACCURACY, Artifact, Candidate, Found, Goals, Headline, Target, TrainingPlan
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.errors import SpecError
from tfmot_ops.operators.results import flat, mapping_of
from tfmot_ops.operators.step import StepOperator
from tfmot_ops.operators.sweep import Weight, shard_resources
from tfmot_ops.recipes.files import read_training
from tfmot_ops.search.goals import with_limits_as_goals
from tfmot_ops.search.ladder import Ladder, epochs_of, ladder, training_of
from tfmot_ops.search.report import name_of
from tfmot_ops.search.rungs import RUNGS, in_order, next_rung
from tfmot_ops.system import environment
from tfmot_ops.targets.by_name import resolve_target

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = [
    "RUNGS",
    "CandidateOperator",
    "ChooseOperator",
    "PlanCandidatesOperator",
    "candidate_resources",
    "check_goals",
]

_REMEDY = "correct the run's parameters"


def candidate_resources() -> dict[str, Any]:
    """Limits on how many candidates run at once, as arguments of a CandidateOperator.

    `pool_slots` are slots of Airflow's default pool, see `shard_resources`. With the runner `local`, the candidates of
    one DAG run are tried one after the other: a training takes all cores, and the latency of a candidate must not be
    measured while another one is trained.
    """
    slots = shard_resources(Weight.MEDIUM)["pool_slots"]
    one_machine = environment.runner() == "local"
    return {"pool_slots": slots, "max_active_tis_per_dagrun": 1 if one_machine else None}


def check_goals(goals: Mapping[str, Any], target: str) -> None:
    """Check a search's goals and target before its first step.

    Args:
        goals: name -> value, as in `Goals`.
        target: name of the device.

    Raises:
        AirflowFailException: a value is wrong, or there is no goal; no retry helps.
    """
    try:
        _goals(goals, target)
    except SpecError as error:
        raise AirflowFailException(str(error)) from error


def _goals(goals: Mapping[str, Any], target: str) -> tuple[Goals, Target]:
    """The goals with the target's limits among them, and the target without limits.

    Raises:
        SpecError: a value is wrong, or there is no goal.
    """
    try:
        given = Goals.model_validate(goals)
    except ValidationError as error:
        raise refusal("goals", error, _REMEDY) from error
    return with_limits_as_goals(given, resolve_target(target))


class _Searching(BaseOperator):
    """What the tasks that plan and the task that chooses are given of the search.

    Args:
        request: `model`, `dataset`, `task`, `metric`, `batch_size`, `limit`, `target` (a name), `training` (the path of
            a file), `fine_tune_epochs` and `qat_epochs`, as the steps of all candidates get them.
        goals: name -> value, as in `Goals`; None sets no goal.
        trained: result of the TrainOperator.
        planned: results of the PlanCandidatesOperators of the earlier rungs, in order.
        tried: results of the mapped CandidateOperators of these rungs.
        **kwargs: as for any operator.
    """

    searching_fields: Sequence[str] = ("request", "goals", "trained", "planned", "tried")

    def __init__(
        self,
        *,
        request: Mapping[str, Any] | None = None,
        goals: Mapping[str, Any] | None = None,
        trained: Any = None,
        planned: Sequence[Any] = (),
        tried: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.request = request
        self.goals = goals
        self.trained = trained
        self.planned = planned
        self.tried = tried

    def _searched(self) -> tuple[Goals, Target, Ladder, TrainingPlan | None]:
        """The goals, the target without limits, the ladder of candidates, and the user's training plan.

        Raises:
            SpecError: an argument is wrong.
        """
        request = mapping_of(self.task_id, "request", self.request)
        goals, target = _goals(mapping_of(self.task_id, "goals", self.goals), str(request["target"]))
        training = read_training(request["training"]) if request.get("training") else None
        return goals, target, ladder(goals, target, training), training

    def _found(self, candidates: Sequence[Candidate]) -> list[Found]:
        """The candidates that were planned, each with its figures, or with an error if its task has no result."""
        results = {result["parameters"]["candidate"]: result for result in flat(self.tried)}
        by_name = {each.name: each for each in candidates}
        names = [options["recipe"]["name"] for options in flat(self.planned)]
        return [_one(by_name[name], results.get(name)) for name in names if name in by_name]


def _one(candidate: Candidate, result: Mapping[str, Any] | None) -> Found:
    if result is None:
        lost = "its task ended without a result; see the log of the task"
        return Found(candidate=candidate, metrics={}, headline=ACCURACY, seconds=0.0, error=lost)
    return Found(
        candidate=candidate,
        metrics=result["metrics"],
        headline=Headline.model_validate(result["headline"]) if result["headline"] else ACCURACY,
        seconds=result["duration_s"],
        file=Artifact.model_validate(result["outputs"]["tflite"]),
        run_id=result["tracking_run_id"],
    )


class PlanCandidatesOperator(_Searching):
    """Decides which candidates are tried next, all at once; returns the options of a CandidateOperator for each.

    The list is empty, and the mapped task is skipped, once the choice is made, no candidate of the ladder could help,
    or the budget is used up.

    Args:
        budget: `candidates`, how many may be tried in the whole search; `minutes` since the start of the DAG run after
            which no further ones are started, None for no limit; `everything`, whether the search goes on after a
            candidate has met the goals.
        is_last: whether this is the last rung.
        **kwargs: as for `_Searching`.
    """

    template_fields: Sequence[str] = (*_Searching.searching_fields, "budget")

    def __init__(self, *, budget: Mapping[str, Any] | None = None, is_last: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.budget = budget
        self.is_last = is_last

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """The options of each candidate of the rung."""
        if not isinstance(self.trained, Mapping):
            raise AirflowSkipException("no candidate is tried: there is no float model, see the task that trains it")
        try:
            return self._planned(context)
        except SpecError as error:
            # The same arguments would be refused again, so Airflow must not retry.
            raise AirflowFailException(str(error)) from error

    def _planned(self, context: Context) -> list[dict[str, Any]]:
        goals, target, found_ladder, training = self._searched()
        budget = mapping_of(self.task_id, "budget", self.budget)
        found = self._found(found_ladder.candidates)
        minutes = budget.get("minutes")
        if minutes is not None and _minutes_since_start(context) >= minutes:
            self.log.info("no further candidate is started: %s minutes have passed", minutes)
            return []
        rung = next_rung(
            found_ladder.candidates,
            found,
            goals,
            budget=int(budget["candidates"]),
            is_last=self.is_last,
            everything=bool(budget.get("everything")),
        )
        for each in rung:
            self.log.info("to be tried: %s: %s", each.name, each.tries)
        return [self._options(each, found_ladder.candidates, target, training) for each in rung]

    def _options(
        self, candidate: Candidate, candidates: Sequence[Candidate], target: Target, training: TrainingPlan | None
    ) -> dict[str, Any]:
        request = dict(mapping_of(self.task_id, "request", self.request))
        epochs = {step: request.pop(f"{step}_epochs", None) for step in ("fine_tune", "qat")}
        given = epochs_of(candidate, {step: count for step, count in epochs.items() if count is not None})
        plan = training_of(candidate, training)
        return {
            **request,
            **{f"{step}_epochs": count for step, count in given.items()},
            "recipe": candidate.recipe.model_dump(mode="json"),
            "training": plan.model_dump(mode="json") if plan else None,
            "target": target.model_dump(mode="json"),
            "trained": dict(self.trained),
            "shared": self._shared_with(candidate, candidates),
        }

    def _shared_with(self, candidate: Candidate, candidates: Sequence[Candidate]) -> dict[str, Any]:
        """The results of the steps that prune, of an earlier candidate that prunes alike; empty without one."""
        by_name = {each.name: each for each in candidates}
        for result in flat(self.tried):
            other = by_name.get(result["parameters"]["candidate"])
            if other is not None and _pruning(other) == _pruning(candidate):
                return dict(result["parameters"]["shared"])
        return {}


def _pruning(candidate: Candidate) -> tuple[Any, Any]:
    return candidate.recipe.channels, candidate.recipe.sparsity


def _minutes_since_start(context: Context) -> float:
    started = context["dag_run"].start_date
    return 0.0 if started is None else (datetime.now(UTC) - started).total_seconds() / 60.0


class CandidateOperator(StepOperator):
    """Tries one candidate of a search: prune, fine-tune, strip, quantise, evaluate, in one step. Output `tflite`.

    The chain has an MLflow run with a run for each of its steps; a retry continues after the last one that ended well.
    A task that is cleared in Airflow takes over the steps that ended well, too, unless what they are given has changed.
    Map it over the result of a PlanCandidatesOperator: `CandidateOperator.partial(task_id="rung_1",
    **candidate_resources()).expand(options=plan.output)`.
    """

    kind = "candidate"


class ChooseOperator(_Searching, StepOperator):
    """Chooses the candidate that meets every goal, and makes table, page and picture. Output `tflite`, its file.

    The task fails without a retry if no candidate meets every goal; the message names the nearest ones and what each
    misses. With the option `everything` the smallest of several is chosen, else the first.
    """

    kind = "choose"
    template_fields: Sequence[str] = (*StepOperator.template_fields, *_Searching.searching_fields)

    def execute(self, context: Context) -> dict[str, Any]:
        """Choose, and fail if there is nothing to choose."""
        if not isinstance(self.trained, Mapping):
            raise AirflowFailException(
                "no candidate was tried, as there is no float model: see the task that trains it"
            )
        return super().execute(context)

    def _options(self, context: Context) -> dict[str, Any]:
        goals, target, found_ladder, _ = self._searched()
        request = mapping_of(self.task_id, "request", self.request)
        found = in_order(found_ladder.candidates, self._found(found_ladder.candidates), goals)
        return {
            "name": name_of(str(request["model"]), str(request["dataset"])),
            "target": target.name,
            "goals": goals.model_dump(mode="json"),
            "found": [each.model_dump(mode="json") for each in found],
            "left_out": found_ladder.left_out,
            **super()._options(context),
        }

    def _judge(self, answer: dict[str, Any], context: Context) -> None:
        del context
        if answer["parameters"]["chosen"] is None:
            # AirflowFailException, as a retry would judge the same candidates again.
            raise AirflowFailException(answer["parameters"]["search"])
