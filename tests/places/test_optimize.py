"""The optimize DAG with a runner that is chosen in its form: under a real scheduler, in containers and in pods."""

import json
import os
import urllib.request

import pytest

from tfmot_ops.contract import StepSpec
from tfmot_ops.runners import KubernetesRunner

pytestmark = pytest.mark.timeout(2400)

STEPS = {"train", "prune", "fine_tune", "strip", "quantize", "evaluate"}
CONF = {"limit": 200, "epochs": 1, "fine_tune_epochs": 1, "qat_epochs": 0}


def mlflow(airflow, path, body=None):
    request = urllib.request.Request(  # noqa: S310 - http to loopback
        f"{airflow.mlflow_uri}/api/2.0/mlflow/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http to loopback
        return json.loads(response.read())


# Pods that a DAG's form asks for are tested by the sweep; here they are the deployment's default.
@pytest.mark.parametrize("runner", ["docker", None], ids=["docker", "kubernetes-by-default-deferred"])
def test_green_recorded_and_nothing_left(airflow, runner, containers, pods):
    run = airflow.trigger("optimize_model", {**CONF, **({"runner": runner} if runner else {})})
    state = airflow.end_of("optimize_model", run, 1500)
    logs = {step: airflow.log("optimize_model", run, step) for step in STEPS}
    assert state == "success", "\n".join(logs.values())[-6000:]
    opened = airflow.call("GET", f"/optimize_model/dagRuns/{run}/taskInstances/open_run/xcomEntries/return_value")
    parent = json.loads(opened["value"]) if isinstance(opened["value"], str) else opened["value"]
    experiment = mlflow(airflow, f"runs/get?run_id={parent['tracking_run_id']}")["run"]["info"]["experiment_id"]
    search = {"experiment_ids": [experiment], "filter": f"tags.mlflow.parentRunId = '{parent['tracking_run_id']}'"}
    children = [child["info"] for child in mlflow(airflow, "runs/search", search)["runs"]]
    assert {(child["run_name"], child["status"]) for child in children} == {(step, "FINISHED") for step in STEPS}
    # What the step prints is in the task's log; in a deferral the triggerer passes it on.
    assert "tfmot-ops: train epoch 1/1" in logs["train"]
    assert ("Starting docker container" in logs["train"]) == (runner == "docker")
    assert (containers(), pods()) == ([], [])


def test_a_step_in_a_pod_without_airflow(image, cluster, pods, namespace):  # noqa: ARG001 - the cluster has to be there
    resources = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "3Gi"}}
    runner = KubernetesRunner(
        image=image,
        namespace=namespace,
        resources=resources,
        kubernetes_conn_id=None,
        config_file=os.environ.get("KUBECONFIG"),
    )
    options = {"kind": "train", "model": "resnet8", "dataset": "digits", "limit": 200, "epochs": 1}
    spec = StepSpec.model_validate({"step_id": "train", "output_uri": "/tmp/train", "options": options})  # noqa: S108 - of the pod
    result = runner.start(spec, None, print).wait()
    assert 0 < result.metrics["accuracy"] <= 1
    assert pods() == []
