"""The tasks of a sweep: list what is in the catalogue, run shards of cells, judge them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from tfmot_ops.operators.step import StepOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

#: XCom of the summary task with what is not as expected: {kind: {cell: sentence}}. Pushed before the task fails, so
#: that a notifier can read it.
JUDGEMENT_KEY = "judgement"


class ListOperator(StepOperator):
    """Lists a catalogue where the runner says, so that a DAG can expand over it. Option `what`."""

    kind = "list"


class CompatSweepOperator(StepOperator):
    """Runs a shard of the compat matrix: cells one after the other, each in its own process. Output `cells`.

    A red cell is a result, and the task green. The task fails for its place's sake only (an evicted pod, a lost
    worker); its retry runs the cells that were not finished.

    Map it over shards: `CompatSweepOperator.partial(task_id="light").expand(options=[{"architectures": [...],
    "recipe": "wi8_ai8", "label": "..."}])`.
    """

    kind = "compat"


class SummarizeSweepOperator(StepOperator):
    """Judges a sweep, makes its page and records it in MLflow; then fails if a cell got worse or is missing.

    Args:
        shards: results of the shards: of each mapped CompatSweepOperator its `output`.
        **kwargs: as for StepOperator. Options: `architectures` and `recipes`, all that were asked for.
    """

    kind = "summarize"
    template_fields: Sequence[str] = (*StepOperator.template_fields, "shards")

    def __init__(self, *, shards: Sequence[Any] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shards = shards

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the step; a shard that left nothing leaves its cells missing."""
        self.inputs = _cells("cells", self.shards)
        answer = super().execute(context)
        judgement = answer["parameters"]["judgement"]
        context["ti"].xcom_push(JUDGEMENT_KEY, judgement)
        worse = {**judgement["regressions"], **judgement["missing"]}
        if worse:
            told = "\n".join(f"  {cell}: {how}" for cell, how in sorted(worse.items()))
            # Cells do not get better by asking again.
            raise AirflowFailException(f"{len(worse)} cells got worse\n{told}")
        return answer


class ForecastOperator(StepOperator):
    """Compares shards of cells with the same shards under other versions, and fails if a cell would break.

    Args:
        now: results of the shards under these versions: of each mapped CompatSweepOperator its `output`.
        then: the same under the others.
        **kwargs: as for StepOperator.
    """

    kind = "forecast"
    template_fields: Sequence[str] = (*StepOperator.template_fields, "now", "then")

    def __init__(self, *, now: Sequence[Any] = (), then: Sequence[Any] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.now = now
        self.then = then

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the step; the log has the table."""
        self.inputs = {**_cells("now", self.now), **_cells("then", self.then)}
        answer = super().execute(context)
        if answer["metrics"]["worse"]:
            raise AirflowFailException(answer["parameters"]["forecast"])
        return answer


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
