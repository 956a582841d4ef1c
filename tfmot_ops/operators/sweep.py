"""The tasks of a sweep: list what is in the catalogue, deal its cells into shards, run these, judge them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from tfmot_ops.contract import Tracking
from tfmot_ops.errors import SpecError
from tfmot_ops.operators.step import StepOperator
from tfmot_ops.runners import (
    IMAGES_VARIABLE,
    PYTHONS_VARIABLE,
    Runner,
    choose_runner,
    look_up,
)
from tfmot_ops.sweep.plan.cells import DEFAULT_RECIPES, Weight, machine_bytes, shards
from tfmot_ops.system import environment

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = [
    "DEFAULT_RECIPES",
    "JUDGEMENT_KEY",
    "CompatSweepOperator",
    "ForecastOperator",
    "ListOperator",
    "PlanSweepOperator",
    "SummarizeSweepOperator",
    "Weight",
    "check_forecast",
    "room",
]

#: XCom of the summary task with what is not as expected: {kind: {cell: sentence}}. Pushed before the task fails, so
#: that a notifier can read it.
JUDGEMENT_KEY = "judgement"


@runtime_checkable
class _Sized(Protocol):
    """A runner whose steps have a limit of memory of their own."""

    def with_memory(self, gib: float) -> Runner: ...


def room(weight: Weight) -> dict[str, Any]:
    """What the shards of a weight class take, as arguments of a CompatSweepOperator.

    Slots of Airflow's default pool: where the deployment's runner is local, the share of the pool that the class needs
    of this machine, so that shards that run at the same time fit its memory and its cores, whatever classes and DAGs
    they are of. Elsewhere those of the class, as each slot stands for a step of the cluster or engine. Never more than
    the pool has by Airflow's settings: such a task would wait for ever.
    """
    from airflow.sdk.configuration import conf

    total = conf.getint("core", "default_pool_task_slot_count")
    if environment.runner() == "local":
        slots = weight.slots_of(total, memory_bytes=machine_bytes(), cores=os.cpu_count() or 1)
    else:
        slots = min(weight.pool_slots, total)
    return {"pool_slots": slots, "memory_gib": weight.memory_gib}


class ListOperator(StepOperator):
    """Lists a catalogue where the runner says, so that a DAG can expand over it. Option `what`."""

    kind = "list"


class PlanSweepOperator(BaseOperator):
    """Deals cells into shards; its result, the options of one CompatSweepOperator each, is there to expand over.

    Args:
        catalogue: result of a ListOperator.
        architectures: names; empty for all of the catalogue.
        recipes: names.
        weight: class of the cells; None for all. Pool slots cannot be mapped, so each class is a group of its own.
        options: further options of every shard.
        **kwargs: as for any operator.
    """

    template_fields: Sequence[str] = ("catalogue", "architectures", "recipes", "options")

    def __init__(
        self,
        *,
        catalogue: Any,
        architectures: Sequence[str] | str = (),
        recipes: Sequence[str] | str = DEFAULT_RECIPES,
        weight: str | None = None,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.catalogue = catalogue
        self.architectures = architectures
        self.recipes = recipes
        self.weight = weight
        self.options = options

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Options by shard."""
        from tfmot_ops.sweep.judge.expected import costs, read_expected

        del context
        names = self.architectures or _listed(self.catalogue)
        return [
            {
                "architectures": list(shard.architectures),
                "recipe": shard.recipe,
                "label": shard.label,
                **(self.options or {}),
            }
            for shard in shards(names, self.recipes, costs(read_expected()))
            if self.weight in (None, shard.weight)
        ]


class CompatSweepOperator(StepOperator):
    """Runs a shard of the compat matrix: cells one after the other, each in its own process. Output `cells`.

    A red cell is a result, and the task green. The task fails only for infrastructure reasons (an evicted pod, a lost
    worker); its retry runs the cells that were not finished.

    Map it over shards: `CompatSweepOperator.partial(task_id="light", **room(Weight.LIGHT)).expand(options=plan.output)`
    with a PlanSweepOperator of that weight, or over options of your own (`[{"architectures": [...], "recipe":
    "wi8_ai8", "label": "..."}]`).

    Args:
        memory_gib: GiB that a container or pod gets for a shard, unless the runner gives it more already. A cell may
            hold 85 % of it.
        next_image: name of the image that the shards run in, for a forecast; TFMOT_OPS_FORECAST_IMAGES lists it. None
            is the runner's own image.
        **kwargs: as for StepOperator.
    """

    kind = "compat"
    template_fields: Sequence[str] = (*StepOperator.template_fields, "next_image")

    def __init__(self, *, memory_gib: float | None = None, next_image: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.memory_gib = memory_gib
        self.next_image = next_image

    def _choose_runner(self, context: Context) -> Runner:
        if self.next_image is None:
            runner = super()._choose_runner(context)
        else:
            image = look_up(IMAGES_VARIABLE, self.next_image)
            runner = choose_runner({"image": image}, context["params"].get("runner"))
        if self.memory_gib is None or not isinstance(runner, _Sized):
            return runner
        try:
            return runner.with_memory(self.memory_gib)
        except ImportError:
            return runner  # whose start says which package is missing


class SummarizeSweepOperator(StepOperator):
    """Judges a sweep, makes its page and records it in MLflow; then fails if a cell got worse or is missing.

    Args:
        shards: results of the shards: of each mapped CompatSweepOperator its `output`.
        catalogue: result of the ListOperator. Where the option `architectures` is empty, all that it and expected.yaml
            name were asked for: what is gone from the catalogue is missing. Where the listing failed, too, which
            leaves expected.yaml alone.
        **kwargs: as for StepOperator. Options: `architectures` and `recipes`, all that were asked for.
    """

    kind = "summarize"
    template_fields: Sequence[str] = (*StepOperator.template_fields, "shards", "catalogue")

    def __init__(self, *, shards: Sequence[Any] = (), catalogue: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shards = shards
        self.catalogue = catalogue

    def _inputs(self) -> Mapping[str, Any]:
        """The cells; a shard that left nothing leaves its cells missing."""
        return _cells("cells", self.shards)

    def _options(self, context: Context) -> dict[str, Any]:
        from tfmot_ops.sweep.judge.expected import read_expected

        options = super()._options(context)
        if not options.get("architectures"):
            options["architectures"] = sorted({*_listed(self.catalogue), *read_expected()})
        return options

    def _tracking(self, context: Context) -> Tracking | None:
        tracking = super()._tracking(context)
        if tracking is None:
            return None
        # The same at each attempt, and sorts sweeps by time: the step names its sweep by it.
        moment = context["dag_run"].run_after.isoformat()
        return tracking.model_copy(update={"key": {**tracking.key, "run_after": moment}})

    def _judge(self, answer: dict[str, Any], context: Context) -> None:
        judgement = answer["parameters"]["judgement"]
        context["ti"].xcom_push(JUDGEMENT_KEY, judgement)
        worse = {**judgement["regressions"], **judgement["missing"]}
        if worse:
            told = [f"  {cell}: {how}" for cell, how in sorted(worse.items())]
            # Cells do not get better by asking again.
            raise AirflowFailException("\n".join([*self._unlisted(), f"{len(worse)} cells got worse", *told]))

    def _unlisted(self) -> list[str]:
        asked = self.options.get("architectures") if isinstance(self.options, Mapping) else True
        if asked or self.catalogue is not None:
            return []
        return ["the catalogue was not listed (see the log of that task), so what expected.yaml names was asked for"]


class ForecastOperator(StepOperator):
    """Compares shards of cells with the same shards under other versions, and fails if a cell would break.

    Args:
        planned: result of the PlanSweepOperator: every cell of it has to be in the comparison.
        now: results of the shards under these versions: of each mapped CompatSweepOperator its `output`.
        then: the same under the others.
        **kwargs: as for StepOperator.
    """

    kind = "forecast"
    template_fields: Sequence[str] = (*StepOperator.template_fields, "planned", "now", "then")

    def __init__(
        self, *, planned: Any = None, now: Sequence[Any] = (), then: Sequence[Any] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.planned = planned
        self.now = now
        self.then = then

    def _inputs(self) -> Mapping[str, Any]:
        return {**_cells("now", self.now), **_cells("then", self.then)}

    def _judge(self, answer: dict[str, Any], context: Context) -> None:
        """The log has the table."""
        del context
        found, asked = answer["metrics"]["cells"], sum(len(shard["architectures"]) for shard in self.planned or ())
        # A cell that neither side has is in no row.
        if found < max(asked, 1):
            raise AirflowFailException(
                f"no forecast: {found:g} of {asked} cells have a result\n{answer['parameters']['forecast']}"
            )
        if answer["metrics"]["worse"]:
            raise AirflowFailException(answer["parameters"]["forecast"])


def check_forecast(next_python: object, next_image: object) -> None:
    """Refuse a forecast before its first step.

    Args:
        next_python: name of an interpreter, empty for none.
        next_image: name of an image, empty for none.

    Raises:
        AirflowFailException: both or none are given, or the deployment does not list the name; no retry helps.
    """
    asked = {PYTHONS_VARIABLE: next_python, IMAGES_VARIABLE: next_image}
    named = {variable: name for variable, name in asked.items() if name}
    if len(named) != 1:
        raise AirflowFailException("required: next_python or next_image, one of them\nreceived: both or none")
    for variable, name in named.items():
        try:
            look_up(variable, name)
        except SpecError as error:
            raise AirflowFailException(str(error)) from error


def _listed(catalogue: Any) -> list[str]:
    """The names in a ListOperator's result; none where it failed."""
    return list(catalogue["parameters"]["list"]) if isinstance(catalogue, Mapping) else []


def _cells(name: str, shards: Any) -> dict[str, Any]:
    """`<name>_0000`, ... -> the cells of each shard; one that left nothing leaves its cells missing."""
    ended = [result for result in _flat(shards) if "cells" in result.get("outputs", {})]
    return {f"{name}_{index:04}": result["outputs"]["cells"] for index, result in enumerate(ended)}


def _flat(shards: Any) -> Iterable[Mapping[str, Any]]:
    """The results in nested lists of them; what a skipped or failed task left, None, is passed over."""
    if isinstance(shards, Mapping):
        yield shards
    elif isinstance(shards, Iterable) and not isinstance(shards, str):
        for each in shards:
            yield from _flat(each)
