"""The tasks of a sweep: list the catalogue, distribute its cells to shards, run the shards, judge all cells."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from tfmot_ops.errors import SpecError
from tfmot_ops.operators.results import flat, mapping_of
from tfmot_ops.operators.step import StepOperator
from tfmot_ops.runners import (
    IMAGES_VARIABLE,
    PYTHONS_VARIABLE,
    Runner,
    choose_runner,
    look_up,
)
from tfmot_ops.sweep.plan.cells import DEFAULT_RECIPES, Weight, shards
from tfmot_ops.system import environment
from tfmot_ops.system.memory import machine_bytes

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
    "shard_resources",
]

#: Key of the summary task's XCom with the judgement: {kind: {cell: sentence}}. The task pushes it before it fails, so
#: that a notifier can read it.
JUDGEMENT_KEY = "judgement"


@runtime_checkable
class _Sized(Protocol):
    """A runner with a memory limit per step."""

    def with_memory(self, gib: float) -> Runner: ...


def shard_resources(weight: Weight) -> dict[str, Any]:
    """Pool slots and memory of a shard of a weight class, as arguments of a CompatSweepOperator.

    `pool_slots` are slots of Airflow's default pool. With the runner `local`, a shard takes a share of the pool that
    equals its share of this machine's memory, so that concurrent shards of all classes and DAGs fit the machine's
    memory and cores. With other runners a shard takes `Weight.pool_slots`, as one slot stands for one step of the
    cluster or Docker engine. `pool_slots` never exceeds the pool's size in Airflow's settings: such a task would wait
    forever. `memory_gib` is the memory of a container or pod in GiB.
    """
    from airflow.sdk.configuration import conf

    total = conf.getint("core", "default_pool_task_slot_count")
    if environment.runner() == "local":
        slots = weight.slots_of(total, memory_bytes=machine_bytes(), cores=os.cpu_count() or 1)
    else:
        slots = min(weight.pool_slots, total)
    return {"pool_slots": slots, "memory_gib": weight.memory_gib}


#: Deprecated alias, kept for DAGs that import it.
room = shard_resources


class ListOperator(StepOperator):
    """Lists the names in a catalogue, so that a DAG can expand over them. Option `what`."""

    kind = "list"


class PlanSweepOperator(BaseOperator):
    """Distributes cells to shards; returns the options of one CompatSweepOperator per shard, to expand over.

    Args:
        catalogue: result of a ListOperator.
        architectures: names; empty means the whole catalogue.
        recipes: names.
        weight: plan the cells of this weight class only; None plans all cells. Airflow cannot map `pool_slots`, so a
            DAG needs one mapped task per class.
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
        """The options of each shard."""
        from tfmot_ops.sweep.judge.expected import costs, read_expected

        del context
        names = self.architectures or _listed(self.catalogue)
        return [
            {
                "architectures": list(shard.architectures),
                "recipe": shard.recipe,
                "label": shard.label,
                **mapping_of(self.task_id, "options", self.options),
            }
            for shard in shards(names, self.recipes, costs(read_expected()))
            if self.weight in (None, shard.weight)
        ]


class CompatSweepOperator(StepOperator):
    """Runs a shard of the compat matrix: cells one after the other, each in its own process. Output `cells`.

    A cell that fails does not fail the task. The task fails only for infrastructure reasons (an evicted pod, a lost
    worker); a retry runs the cells that were not finished.

    Map it over shards: `CompatSweepOperator.partial(task_id="light", **shard_resources(Weight.LIGHT)).expand(
    options=plan.output)` with a PlanSweepOperator of that weight, or over a list of options
    (`[{"architectures": [...], "recipe": "wi8_ai8", "label": "..."}]`).

    Args:
        memory_gib: memory of the shard's container or pod in GiB, unless the runner's memory is larger. A cell may use
            85 % of it (`MEMORY_SHARE`).
        next_image: for a forecast: name of the image in which the shards run, as listed in TFMOT_OPS_FORECAST_IMAGES.
            None means the runner's image.
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
            return runner  # its `start` raises an error that names the missing package


class SummarizeSweepOperator(StepOperator):
    """Judges a sweep, makes its page and records it in MLflow; then fails if a cell got worse or is missing.

    Args:
        shards: results of the shards: the `output` of each mapped CompatSweepOperator.
        catalogue: result of the ListOperator. If the option `architectures` is empty, the sweep requests all
            architectures of the catalogue and of expected.yaml, so an architecture that left the catalogue is missing.
            If the listing failed, the sweep requests the architectures of expected.yaml.
        **kwargs: as for StepOperator. Options: `architectures` and `recipes`, all requested names.
    """

    kind = "summarize"
    template_fields: Sequence[str] = (*StepOperator.template_fields, "shards", "catalogue")

    def __init__(self, *, shards: Sequence[Any] = (), catalogue: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shards = shards
        self.catalogue = catalogue

    def _inputs(self) -> Mapping[str, Any]:
        """The `cells` of all shards; the cells of a shard without a result are missing."""
        return _cells("cells", self.shards)

    def _options(self, context: Context) -> dict[str, Any]:
        from tfmot_ops.sweep.judge.expected import read_expected

        options = super()._options(context)
        if not options.get("architectures"):
            options["architectures"] = sorted({*_listed(self.catalogue), *read_expected()})
        return options

    def _tracking(self, context: Context) -> dict[str, Any] | None:
        tracking = super()._tracking(context)
        if tracking is None:
            return None
        # The sweep's id begins with this time: it is the same in each attempt, and ids sort by time.
        moment = context["dag_run"].run_after.isoformat()
        return {**tracking, "key": {**tracking["key"], "run_after": moment}}

    def _judge(self, answer: dict[str, Any], context: Context) -> None:
        judgement = answer["parameters"]["judgement"]
        context["ti"].xcom_push(JUDGEMENT_KEY, judgement)
        worse = {**judgement["regressions"], **judgement["missing"]}
        if worse:
            lines = [f"  {cell}: {how}" for cell, how in sorted(worse.items())]
            # AirflowFailException, as a retry would judge the same cells again.
            raise AirflowFailException("\n".join([*self._unlisted(), f"{len(worse)} cells got worse", *lines]))

    def _unlisted(self) -> list[str]:
        requested = self.options.get("architectures") if isinstance(self.options, Mapping) else True
        if requested or self.catalogue is not None:
            return []
        return [
            "the catalogue could not be listed (see that task's log); expected.yaml named the architectures instead"
        ]


class ForecastOperator(StepOperator):
    """Compares shards of cells with the same shards under other versions, and fails if a cell would break.

    Args:
        planned: result of the PlanSweepOperator; the comparison must contain every planned cell.
        now: results of the shards under the current versions: the `output` of each mapped CompatSweepOperator.
        then: results of the shards under the other versions.
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
        """Fail the task if a cell has no result or would break; the task's log has the whole table."""
        del context
        found, requested = answer["metrics"]["cells"], sum(len(shard["architectures"]) for shard in self.planned or ())
        # A cell without a result under both sets of versions has no row in the table.
        if found < max(requested, 1):
            raise AirflowFailException(
                f"no forecast: {found:g} of {requested} cells have a result\n{answer['parameters']['forecast']}"
            )
        if answer["metrics"]["worse"]:
            raise AirflowFailException(answer["parameters"]["forecast"])


def check_forecast(next_python: object, next_image: object) -> None:
    """Check the parameters of a forecast before its first step.

    Args:
        next_python: name of an interpreter, empty for none.
        next_image: name of an image, empty for none.

    Raises:
        AirflowFailException: both or none are given, or the deployment does not list the name; no retry helps.
    """
    requested = {PYTHONS_VARIABLE: next_python, IMAGES_VARIABLE: next_image}
    named = {variable: name for variable, name in requested.items() if name}
    if len(named) != 1:
        raise AirflowFailException("required: either next_python or next_image\nreceived: both or none")
    for variable, name in named.items():
        try:
            look_up(variable, name)
        except SpecError as error:
            raise AirflowFailException(str(error)) from error


def _listed(catalogue: Any) -> list[str]:
    """The names in a ListOperator's result; empty if that task failed."""
    return list(catalogue["parameters"]["list"]) if isinstance(catalogue, Mapping) else []


def _cells(name: str, shards: Any) -> dict[str, Any]:
    """`<name>_0000`, ... -> the output `cells` of each shard; a shard without a result is left out."""
    ended = [result for result in flat(shards) if "cells" in result.get("outputs", {})]
    return {f"{name}_{index:04}": result["outputs"]["cells"] for index, result in enumerate(ended)}
