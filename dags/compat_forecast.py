"""Before an upgrade of TensorFlow, tf-keras or tfmot: runs the same cells with the new versions; go / no-go table.

The new versions are installed in an environment or an image, which the deployment lists by name in the variables
TFMOT_OPS_FORECAST_PYTHONS and TFMOT_OPS_FORECAST_IMAGES.
"""

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from tfmot_ops.contract import PRESET_RECIPES
from tfmot_ops.operators import CompatSweepOperator, ForecastOperator, ListOperator, OpenRunOperator
from tfmot_ops.operators.sweep import DEFAULT_RECIPES, PlanSweepOperator, Weight, check_forecast, shard_resources
from tfmot_ops.recipes import RECIPE_NAME
from tfmot_ops.runners import IMAGES_VARIABLE, PYTHONS_VARIABLE, RUNNERS

PARAMS = {
    "next_python": Param(
        None,
        type=["null", "string"],
        description=f"Environment with the next pins, where the cells run: a name in {PYTHONS_VARIABLE}.",
    ),
    "next_image": Param(
        None,
        type=["null", "string"],
        description=f"Image with the next pins, for the runners docker and kubernetes: a name in {IMAGES_VARIABLE}.",
    ),
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
    "runner": Param(None, type=["null", "string"], enum=[None, *RUNNERS], description="Empty: as the deployment says."),
}

with DAG(
    "compat_forecast",
    description="which cells would break under other versions",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow takes it as UTC
    catchup=False,
    max_active_runs=1,
    tags=["tfmot_ops"],
    params=PARAMS,
    render_template_as_native_obj=True,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10), "experiment": "tfmot_ops_sweep"},
) as dag:

    @task
    def check(**context: Any) -> None:
        """Refuse a run without exactly one of next_python and next_image, or with a name that is not listed."""
        check_forecast(context["params"]["next_python"], context["params"]["next_image"])

    @task
    def elsewhere(planned: Any, **context: Any) -> list[dict[str, Any]]:
        """The options of the same shards, to run with the other interpreter."""
        return [{**options, "python": context["params"]["next_python"] or None} for options in planned]

    open_run = OpenRunOperator(task_id="open_run", options={"name": "forecast", "parameters": "{{ params }}"})
    listing = ListOperator(task_id="list", options={"what": "architectures"}, parent_run=open_run.output)
    plan = PlanSweepOperator(
        task_id="plan",
        catalogue=listing.output,
        architectures="{{ params.architectures }}",
        recipes="{{ params.recipes }}",
    )
    check() >> open_run
    settings: dict[str, Any] = {
        "parent_run": open_run.output,
        "map_index_template": "{{ task.options['label'] }}",
        # Shards of all weight classes are mixed here, so each gets the resources of the largest class.
        **shard_resources(Weight.HEAVY),
    }
    now = CompatSweepOperator.partial(task_id="now", **settings).expand(options=plan.output)
    then = CompatSweepOperator.partial(task_id="then", next_image="{{ params.next_image or None }}", **settings).expand(
        options=elsewhere(plan.output)
    )
    ForecastOperator(
        task_id="forecast",
        planned=plan.output,
        now=[now.output],
        then=[then.output],
        parent_run=open_run.output,
        trigger_rule="all_done",
    )
