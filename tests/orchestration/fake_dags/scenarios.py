"""DAGs whose steps a FakeRunner answers; run as a script: each through `dag.test()`, results in a file."""

import json
import sys
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from tfmot_ops.errors import StepFailedError, UnsupportedModelError
from tfmot_ops.operators import (
    CloseRunOperator,
    EvaluateOperator,
    OpenRunOperator,
    QuantizeOperator,
    RegisterOperator,
    TrainOperator,
)
from tfmot_ops.runners import FakeRunner

DATASET = {"dataset": "digits"}
RUNNERS = {
    "green": FakeRunner(),
    "flaky": FakeRunner(answers={"train": [StepFailedError("the disk was full"), None]}),
    "broken": FakeRunner(answers={"quantize": StepFailedError("no calibration data")}),
    "unsupported": FakeRunner(answers={"train": UnsupportedModelError("layer foo cannot be handled")}),
    "wrong_spec": FakeRunner(),
    "recipe_file": FakeRunner(),
    "mapped": FakeRunner(),
}


def chain(dag_id, recipe="wi8_ai8", batch_size=64):
    """open_run -> train -> quantize -> evaluate -> close_run."""
    with DAG(
        dag_id,
        schedule=None,
        params={"epochs": Param(3, type="integer", minimum=0), "limit": Param(None, type=["null", "integer"])},
        render_template_as_native_obj=True,
        default_args={"runner": RUNNERS[dag_id], "retries": 1, "retry_delay": timedelta(seconds=0)},
    ) as dag:
        open_run = OpenRunOperator(task_id="open_run", options={"parameters": "{{ params }}"})
        train = TrainOperator(
            task_id="train",
            options={"model": "resnet8", "epochs": "{{ params.epochs }}", "limit": "{{ params.limit }}", **DATASET},
            parent_run=open_run.output,
            seed=7,
        )
        quantize = QuantizeOperator(
            task_id="quantize",
            inputs={"model": train.output},
            options={"recipe": recipe, "batch_size": batch_size, **DATASET},
            parent_run=open_run.output,
        )
        evaluate = EvaluateOperator(
            task_id="evaluate",
            inputs={"tflite": quantize.output, "model": train.output},
            options=DATASET,
            parent_run=open_run.output,
        )
        RegisterOperator(
            task_id="register",
            inputs={"tflite": quantize.output},
            measured=evaluate.output,
            options={"name": "digits", "gates": {"accuracy": 0.4}},
            parent_run=open_run.output,
        )
        close_run = CloseRunOperator(
            task_id="close_run",
            steps={"train": train.output, "quantize": quantize.output, "evaluate": evaluate.output},
            parent_run=open_run.output,
        )
        close_run.as_teardown(setups=open_run)
    return dag


green = chain("green")
flaky = chain("flaky")
broken = chain("broken")
unsupported = chain("unsupported")
wrong_spec = chain("wrong_spec", batch_size="{{ 0 }}")
recipe_file = chain("recipe_file", recipe=str(Path(__file__).with_name("recipe.yaml")))
with DAG("mapped", schedule=None) as mapped:
    trained = TrainOperator.partial(
        task_id="train", runner=RUNNERS["mapped"], map_index_template="{{ task.options['model'] }}"
    ).expand(options=[{"model": model, **DATASET} for model in ("resnet8", "mobilenet_like")])
    CloseRunOperator(task_id="close_run", runner=RUNNERS["mapped"], steps={"train": trained.output}, parent_run="x")


def record(dag, conf=None):
    """Run a DAG and say what came of it."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    runner = RUNNERS[dag.dag_id]
    try:
        run = dag.test(run_conf=conf)
    except Exception as error:  # noqa: BLE001 - what a refusal looks like is what is recorded
        return {"refused": f"{type(error).__name__}: {error}", "specs": []}
    with create_session() as session:
        tasks = run.get_task_instances(session=session)
        xcoms = session.scalars(select(XComModel).where(XComModel.dag_id == dag.dag_id, XComModel.run_id == run.run_id))
        return {
            "state": str(run.state),
            "run_id": run.run_id,
            "tasks": {f"{ti.task_id}[{ti.map_index}]": [str(ti.state), ti.try_number] for ti in tasks},
            "labels": {f"{ti.task_id}[{ti.map_index}]": ti.rendered_map_index for ti in tasks},
            "xcoms": {f"{x.task_id}[{x.map_index}].{x.key}": XComModel.deserialize_value(x) for x in xcoms},
            "specs": [spec.model_dump(mode="json") for spec in runner.specs],
        }


if __name__ == "__main__":
    answers = {dag.dag_id: record(dag) for dag in (flaky, broken, unsupported, wrong_spec, recipe_file, mapped, green)}
    RUNNERS["green"].specs.clear()
    answers["refused"] = record(green, {"epochs": -1})
    Path(sys.argv[1]).write_text(json.dumps(answers, indent=1), encoding="utf-8")
