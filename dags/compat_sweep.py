"""Every night: runs each architecture of the catalogue through the whole chain, and reports what broke and why.

A shard takes slots of Airflow's default pool according to the memory of its cells, so that concurrent shards fit the
machine; see `tfmot_ops.operators.sweep.shard_resources`.
"""

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Param

from tfmot_ops.contract import PRESET_RECIPES, Device
from tfmot_ops.operators import CompatSweepOperator, ListOperator, OpenRunOperator, SummarizeSweepOperator
from tfmot_ops.operators.notify import notifiers
from tfmot_ops.operators.sweep import DEFAULT_RECIPES, PlanSweepOperator, Weight, shard_resources
from tfmot_ops.recipes import RECIPE_NAME
from tfmot_ops.runners import RUNNERS

PARAMS = {
    "architectures": Param(
        [],
        type="array",
        items={"type": "string", "minLength": 1},
        description="Names, one a line; empty for the whole catalogue.",
    ),
    "recipes": Param(
        list(DEFAULT_RECIPES),
        type="array",
        minItems=1,
        items={"type": "string", "pattern": RECIPE_NAME},
        examples=list(PRESET_RECIPES),
    ),
    "force": Param(False, type="boolean", description="Run every cell, also those whose inputs did not change."),
    "time_limit_s": Param(3600, type="number", exclusiveMinimum=0, description="Wall time that a cell may take."),
    "memory_limit_gib": Param(18, type="number", exclusiveMinimum=0, description="Memory that a cell may hold."),
    "runner": Param(
        None,
        type=["null", "string"],
        enum=[None, *RUNNERS],
        description="Where the cells run. Empty: as the deployment says, else in local processes.",
    ),
    "device": Param("cpu", type="string", enum=[device.value for device in Device]),
}

ASKED = {"architectures": "{{ params.architectures }}", "recipes": "{{ params.recipes }}"}
LIMITS = {name: f"{{{{ params.{name} }}}}" for name in ("force", "time_limit_s", "memory_limit_gib")}

with DAG(
    "compat_sweep",
    description="the compat matrix: architectures x recipes, judged against what is expected",
    doc_md=__doc__,
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow takes it as UTC
    catchup=False,
    # Paused at creation, as a sweep takes hours: a user must turn the DAG on first.
    is_paused_upon_creation=True,
    max_active_runs=1,
    tags=["tfmot_ops"],
    params=PARAMS,
    render_template_as_native_obj=True,
    default_args={
        # For failures of the infrastructure; a failed cell does not fail the task.
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
        "device": "{{ params.device }}",
        "experiment": "tfmot_ops_sweep",
    },
) as dag:
    open_run = OpenRunOperator(task_id="open_run", options={"name": "sweep", "parameters": "{{ params }}"})
    listing = ListOperator(task_id="list", options={"what": "architectures"}, parent_run=open_run.output)

    def group(weight: Weight) -> Any:
        """The mapped shards of a weight class."""
        planned = PlanSweepOperator(
            task_id=f"plan_{weight.value}", catalogue=listing.output, weight=weight.value, options=LIMITS, **ASKED
        )
        return CompatSweepOperator.partial(
            task_id=weight.value,
            parent_run=open_run.output,
            map_index_template="{{ task.options['label'] }}",
            **shard_resources(weight),
        ).expand(options=planned.output)

    groups = [group(weight) for weight in Weight]
    summarize = SummarizeSweepOperator(
        task_id="summarize",
        shards=[group.output for group in groups],
        catalogue=listing.output,
        options=ASKED,
        parent_run=open_run.output,
        # Runs even if shards failed: their cells without a result count as missing.
        trigger_rule="all_done",
        on_failure_callback=notifiers(),
    )
    groups >> summarize
