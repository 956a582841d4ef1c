"""The pods that the Kubernetes runner makes, with the sidecar of Airflow's operator, against current schemas."""

import json

import kubernetes_validate
import pytest

pytestmark = pytest.mark.airflow

VERSIONS = ("1.36", "1.37")

# In a process of its own: Airflow makes its home where its environment says at import.
_PODS = """
import json
from kubernetes.client import ApiClient
from tfmot_ops.contract import StepSpec
from tfmot_ops.errors import SpecError
from tfmot_ops.runners import KubernetesRunner

def spec(uri, device="cpu"):
    options = {"kind": "train", "model": "resnet8", "dataset": "digits"}
    return StepSpec.model_validate({"step_id": "train", "device": device, "tracking": {"uri": uri}, "options": options})

def pod(spec, falls_back=False, **options):
    runner = KubernetesRunner(kubernetes_conn_id=None, **options)
    step = (runner.on_cpu() if falls_back else runner).start(spec, None, print)
    return ApiClient().sanitize_for_serialization(step._operator.build_pod_request_obj(dry_run=True))

plain = spec("http://mlflow:5000")
pool = {
    "device": "gpu", "tolerations": [{"key": "steps", "operator": "Exists"}],
    "gpu_tolerations": [{"key": "pool", "operator": "Equal", "value": "gpu"}],
    "resources": {"limits": {"cpu": "1", "nvidia.com/gpu": "4"}},
}
try:
    refused = pod(spec("http://me:s3cr3t@mlflow:5000"))
except SpecError as error:
    refused = str(error)
print("answer " + json.dumps({"refused": refused, "pods": {
    "cpu": pod(plain),
    "gpu": pod(spec("http://mlflow:5000", "gpu"), gpus=2),
    "pool": pod(plain, **pool),
    "fallback": pod(plain, falls_back=True, **pool),
    "all": pod(
        plain, namespace="jobs", service_account="step", sidecar_image="busybox:1.37", node_selector={"pool": "steps"},
        tolerations=[{"key": "steps", "operator": "Exists"}], env={"A": "{{ b }}"}, image_pull_secrets=["registry"],
        env_from=[{"secretRef": {"name": "mlflow-credentials"}}, {"configMapRef": {"name": "settings"}}],
        volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        volume_mounts=[{"name": "data", "mountPath": "/data", "readOnly": True}],
    ),
}}))
"""


@pytest.fixture(scope="module")
def answer(bench, run_python):
    return json.loads(run_python(["-c", _PODS], bench.environment()).split("answer ", 1)[1])


@pytest.fixture(scope="module")
def pods(answer):
    return answer["pods"]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["cpu", "gpu", "pool", "fallback", "all"])
def test_strictly_valid(pods, name, version):
    kubernetes_validate.validate(pods[name], version, strict=True)


@pytest.mark.slow
def test_what_is_not_in_the_schema_is_refused(pods):
    wrong = pods["cpu"] | {"spec": pods["cpu"]["spec"] | {"nodeSelektor": {}}}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelektor"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", ["cpu", "gpu", "all"])
def test_every_container_is_hardened(pods, name):
    spec = pods[name]["spec"]
    assert [container["name"] for container in spec["containers"]] == ["base", "airflow-xcom-sidecar"]
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["runAsNonRoot"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"limits", "requests"} <= set(container["resources"])
    assert spec["securityContext"]["runAsUser"] == 10001
    assert not spec["automountServiceAccountToken"]
    assert spec["activeDeadlineSeconds"] == 86400
    assert spec["terminationGracePeriodSeconds"] < 10


def test_a_gpu_step_finds_its_pool(pods):
    spec = pods["gpu"]["spec"]
    step = spec["containers"][0]
    assert step["image"].endswith("-gpu")
    assert step["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert {"name": "TF_FORCE_GPU_ALLOW_GROWTH", "value": "true"} in step["env"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "nvidia.com/gpu" not in json.dumps(pods["cpu"])


def test_only_gpu_steps_tolerate_the_pools_own_taint(pods):
    steps, taint = {"key": "steps", "operator": "Exists"}, {"key": "pool", "operator": "Equal", "value": "gpu"}
    assert pods["pool"]["spec"]["tolerations"] == [steps, taint, *pods["gpu"]["spec"]["tolerations"]]
    assert pods["fallback"]["spec"]["tolerations"] == [steps]
    assert pods["fallback"]["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "1"}}
    assert "nvidia.com/gpu" not in json.dumps(pods["fallback"])


def test_arguments_arrive_as_they_are(pods):
    spec = pods["all"]["spec"]
    step, sidecar = spec["containers"]
    assert {"name": "A", "value": "{{ b }}"} in step["env"]  # no template: the spec in a variable may hold braces too
    assert step["envFrom"] == [
        {"secretRef": {"name": "mlflow-credentials"}},
        {"configMapRef": {"name": "settings"}},
    ]
    assert {"name": "data", "mountPath": "/data", "readOnly": True} in step["volumeMounts"]
    assert sidecar["image"] == "busybox:1.37"
    assert pods["cpu"]["spec"]["containers"][1]["image"] == pods["cpu"]["spec"]["containers"][0]["image"]
    assert spec["serviceAccountName"] == "step"
    assert pods["all"]["metadata"]["namespace"] == "jobs"


def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated(answer):
    assert "tracking_uri contains a secret" in answer["refused"]
    assert "s3cr3t" not in answer["refused"]
