"""One DAG a way to fail, each with the one task `train`: in Docker, in a pod, and in a pod that is waited for."""

import os
from dataclasses import replace
from datetime import timedelta

from airflow.sdk import DAG

from tfmot_ops.contract import Device
from tfmot_ops.operators import TrainOperator
from tfmot_ops.runners import DockerRunner, KubernetesRunner, choose_runner

IMAGE = os.environ["PLACES_IMAGE"]
OPTIONS = {"model": "resnet8", "dataset": "digits", "limit": 100, "epochs": 1}
LONG = {**OPTIONS, "epochs": 1000}
DEFERRED = choose_runner("kubernetes")
assert isinstance(DEFERRED, KubernetesRunner)
POD = replace(DEFERRED, deferrable=False)
DOCKER = DockerRunner(image=IMAGE, env_conn_id="places_secret")


def case(dag_id, runner, options=OPTIONS, **kwargs):
    """A DAG of one step."""
    with DAG(dag_id, schedule=None) as dag:
        TrainOperator(task_id="train", runner=runner, options=options, retry_delay=timedelta(0), **kwargs)
    globals()[dag_id] = dag


MISSING = "localhost/no-such-image:1"
case("docker_image", replace(DOCKER, image=MISSING))
case("docker_memory", replace(DOCKER, memory="120m"))
case("docker_deadline", replace(DOCKER, deadline_s=20), LONG)
for place, runner in {"docker": DOCKER, "pod": POD, "deferred": DEFERRED}.items():
    case(f"{place}_command", runner, {**OPTIONS, "model": "no_such_model"}, retries=1)
    case(f"{place}_timeout", runner, LONG, execution_timeout=timedelta(seconds=25))
    case(f"{place}_long", runner, LONG)
    case(f"{place}_durable", runner, {**OPTIONS, "epochs": 200}, retries=3)
for place, pod in {"pod": POD, "deferred": DEFERRED}.items():
    small = {"requests": {"memory": "100Mi"}, "limits": {"memory": "120Mi"}}
    case(f"{place}_image", replace(pod, image=MISSING))
    case(f"{place}_memory", replace(pod, resources=small))
    case(f"{place}_deadline", replace(pod, deadline_s=20), LONG)
    gpu = replace(pod, device=Device.GPU, gpu_image=IMAGE, gpu_node_selector={}, schedule_timeout_s=5)
    case(f"{place}_gpu", gpu)
    case(f"{place}_fallback", replace(gpu, fallback=Device.CPU))
case("pod_secret", replace(POD, env_from=[{"secretRef": {"name": "places-secret"}}]), {**OPTIONS, "epochs": 200})
