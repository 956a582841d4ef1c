"""The end of a chain as `optimize_model` has it, with a FakeRunner, and a DAG that starts on a new champion."""

from airflow.sdk import DAG, Asset, Param, task

from tfmot_ops.contract import Artifact, ArtifactFormat, Status, StepResult
from tfmot_ops.operators import RegisterOperator, model_asset
from tfmot_ops.operators.approval import ApprovePromotionOperator
from tfmot_ops.operators.data import dag_on_data
from tfmot_ops.runners import FakeRunner

FILE = Artifact(uri="memory://model.tflite", sha256="0" * 64, size_bytes=1, format=ArtifactFormat.TFLITE)
MEASURED = {"metrics": {"accuracy": 0.913, "float_accuracy": 0.921, "size_bytes": 91234.0, "int8_mac_fraction": 1.0}}


def _registered(**parameters):
    done = {"step_id": "", "kind": "register", "spec_sha256": "", "status": Status.OK, "tracking_run_id": "f" * 32}
    return StepResult(**done, parameters={"registered_version": "3", **parameters})


with DAG(
    "release",
    schedule=None,
    render_template_as_native_obj=True,
    params={"register": Param("my digits", type="string"), "approval": Param(False, type="boolean")},
    default_args={
        "runner": FakeRunner(answers={"register": _registered(), "promote": _registered(replaced_version="2")})
    },
):
    release = {"name": "{{ params.register }}"}
    register = RegisterOperator(task_id="register", inputs={"tflite": FILE}, measured=MEASURED, options=release)
    approve = ApprovePromotionOperator(
        task_id="approve",
        model="{{ params.register }}",
        wanted="{{ params.approval }}",
        registered=register.output,
        measured=MEASURED,
    )
    promote = RegisterOperator(
        task_id="promote", inputs={"tflite": FILE}, measured=MEASURED, options={**release, "promote": True}
    )
    approve >> promote


@task
def extras(uri, triggering_asset_events=None):
    return [event.extra for event in triggering_asset_events[Asset(uri)]]


for dag_id, asset in {
    "deploy": model_asset("my digits"),
    "by_hand": Asset("mlflow://my%20digits/champion"),
    "try_out": model_asset("my digits", "candidate"),
    "other": model_asset("other"),
}.items():
    with DAG(dag_id, schedule=[asset]):
        extras(asset.uri)

dag_on_data("s3://bucket/digits.npz", {"dataset": "npz:s3://bucket/digits.npz"})

with DAG("optimize_model", schedule=None, params={"dataset": Param("digits", type="string")}):

    @task
    def dataset(params=None):
        return params["dataset"]

    dataset()
