"""What the chart renders: golden files, strict validation, what it says to Airflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import helm_python
import kubernetes_validate
import pytest
import yaml
from rendering import CHART, GLUE, GPU_SPEC, SPEC, TRIAL, deployed_runner, merged, objects, one, render, values_of

from tfmot_ops.contract import Device
from tfmot_ops.runners import DockerRunner, KubernetesRunner
from tfmot_ops.runners.image import GPU_IMAGE, IMAGE

VERSIONS = ("1.36", "1.37")
#: Kinds whose schemas come with an operator, not with Kubernetes.
CUSTOM = {"ServiceMonitor"}
#: Kinds whose pods stay.
WORKLOADS = {"Deployment", "StatefulSet"}
DAG = "from airflow.sdk import dag\n\n\n@dag\ndef mine():\n    '''A line: with a {{ brace }}.'''\n\n\nmine()\n"
#: Every switch that the values files leave off.
EXTRAS = {
    "jobs": {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/steps"}}},
    "launcher": {"serviceAccount": {"annotations": {"team": "models"}}},
    "runner": {"secrets": ["tfmot-ops-s3"], "options": {"startup_timeout_s": 900}},
    "gpu": {"enabled": True, "fallback": "cpu"},
    "tracking": {"ui": "https://mlflow.example"},
    "networkPolicy": {
        "artifactStore": {"to": [{"ipBlock": {"cidr": "192.0.2.2/32"}}]},
        "release": {"enabled": True, "from": [{"ipBlock": {"cidr": "192.0.2.4/32"}}]},
    },
    "dags": {"files": {"mine.py": DAG}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
CASES = {
    "minimal": merged(values_of("values-minimal.yaml"), TRIAL),
    "cpu": values_of("values-cpu.yaml"),
    "gpu": values_of("values-gpu.yaml"),
    "cpu-gpu": values_of("values-cpu.yaml", "values-gpu.yaml"),
    "glue": GLUE,
    "extras": EXTRAS,
    "celery": {"airflow": {"executor": "CeleryExecutor"}},
    "kubernetes-executor": {"airflow": {"executor": "KubernetesExecutor", "allowPodLaunching": True}},
}
cases = pytest.mark.parametrize("values", CASES.values(), ids=CASES)


def test_lint():
    for values in CASES.values():
        report = helm_python.chart.lint(CHART, values, strict=True)
        # Without the downloaded charts that is what lint must say, and all it may say.
        allowed = "chart directory is missing these dependencies: airflow,mlflow"
        found = [m["error"] for m in report["messages"] if m["severity"] > 1]
        assert found in ([], [allowed]), found


@pytest.mark.parametrize("case", CASES)
def test_golden(case, golden):
    rendered = render(CASES[case])
    golden(f"helm/{case}.yaml", "".join(f"## {name}\n{rendered[name]}\n" for name in sorted(rendered)))


@pytest.mark.parametrize("version", VERSIONS)
@cases
def test_every_object_is_valid(values, version):
    _validate(objects(render(values)), version)


def test_validation_is_strict():
    account = one(render({}), "ServiceAccount", "tfmot-ops-step")
    with pytest.raises(kubernetes_validate.ValidationError, match="automountServiceAccountTokens"):
        kubernetes_validate.validate({**account, "automountServiceAccountTokens": False}, VERSIONS[0], strict=True)


@pytest.mark.parametrize("dependency", ["airflow", "mlflow"])
@cases
def test_with_the_real_dependency(with_dependency, dependency, values):
    other = {"airflow": "mlflow", "mlflow": "airflow"}[dependency]
    switched = merged(
        values,
        _without_mlflow() if other == "mlflow" else {},
        {"components": {dependency: True, other: False}},
    )
    rendered = render(switched, with_dependency(dependency))
    theirs = {name: text for name, text in rendered.items() if f"/charts/{dependency}/" in name}
    assert "Deployment" in {o["kind"] for o in objects(theirs)}
    for version in VERSIONS:
        _validate(objects(rendered), version)


def test_the_real_airflow_takes_what_is_ours(with_dependency):
    values = merged(EXTRAS, {"components": {"mlflow": False}}, _without_mlflow())
    rendered = render(values, with_dependency("airflow"))
    theirs = objects({name: text for name, text in rendered.items() if "/charts/airflow/" in name})
    pods = {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in theirs if o["kind"] in WORKLOADS}
    assert pods["demo-scheduler"]["serviceAccountName"] == "tfmot-ops-launcher"
    assert pods["demo-triggerer"]["serviceAccountName"] == "tfmot-ops-launcher"
    for name in ("scheduler", "triggerer", "dag-processor", "api-server"):
        main = next(c for c in pods[f"demo-{name}"]["containers"] if c["name"] == name)
        assert {"configMapRef": {"name": "tfmot-ops-defaults"}} in main["envFrom"]
        assert "/opt/airflow/dags/from-chart" in [mount["mountPath"] for mount in main["volumeMounts"]]
    # The right to launch in its own namespace is not given, nor is what would need it.
    assert not [o for o in theirs if o["kind"] == "Role" and "pod-launcher" in o["metadata"]["name"]]
    assert "demo-worker" not in pods
    migrations = one(rendered, "Job", "demo-run-airflow-migrations")["spec"]["template"]["spec"]["containers"][0]
    assert migrations["args"] == values_of("values.yaml")["airflow"]["migrateDatabaseJob"]["args"]
    assert {"configMapRef": {"name": "tfmot-ops-defaults"}} in migrations["envFrom"]
    monitor = one(rendered, "ServiceMonitor", "tfmot-ops-airflow")["spec"]
    statsd = one(rendered, "Service", "demo-statsd")
    assert monitor["selector"]["matchLabels"].items() <= statsd["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in statsd["spec"]["ports"]]


@pytest.mark.parametrize("case", ["celery", "kubernetes-executor"])
def test_the_workers_of_the_real_airflow_are_the_launchers(with_dependency, case):
    values = merged(CASES[case], {"components": {"mlflow": False}}, _without_mlflow())
    theirs = objects(render(values, with_dependency("airflow")))
    if case == "celery":
        (worker,) = [o for o in theirs if o["kind"] in WORKLOADS and o["metadata"]["name"] == "demo-worker"]
        pod = worker["spec"]["template"]
    else:
        (template,) = [
            o["data"]["pod_template_file.yaml"] for o in theirs if "pod_template_file.yaml" in o.get("data", {})
        ]
        pod = yaml.safe_load(template)
    assert pod["spec"]["serviceAccountName"] == "tfmot-ops-launcher"
    # Nor is there a second one of that name, which Helm would not install.
    accounts = [o["metadata"]["name"] for o in theirs if o["kind"] == "ServiceAccount"]
    assert accounts.count("tfmot-ops-launcher") == 1


def test_the_policy_opens_the_way_to_the_real_mlflow(with_dependency):
    rendered = render({"components": {"airflow": False}}, with_dependency("mlflow"))
    pod = one(rendered, "Deployment", "tfmot-ops-mlflow")["spec"]["template"]
    (rule,) = [r for r in _egress(rendered) if "podSelector" in r["to"][0] and r["ports"][0]["port"] == 5000]
    assert rule["to"][0]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert [p["containerPort"] for p in pod["spec"]["containers"][0]["ports"]] == [5000]
    service = one(rendered, "Service", "tfmot-ops-mlflow")
    assert [p["port"] for p in service["spec"]["ports"]] == [80], "TFMOT_OPS_TRACKING_URI names no port"


@pytest.mark.slow
def test_mlflow_answers_to_the_name_that_steps_use():
    allowed = values_of("values.yaml")["mlflow"]["serverAllowedHosts"]
    _, data = deployed_runner({})
    # The second is what NOTES.txt forwards.
    hosts = [urlsplit(data["TFMOT_OPS_TRACKING_URI"]).netloc, "localhost:5000", "elsewhere.example"]
    # In a process of its own: SQLAlchemy, which this imports, warns.
    program = (
        "import json, sys; from mlflow.server.security_utils import is_allowed_host_header as allows;"
        "allowed, hosts = json.loads(sys.argv[1]); print(json.dumps([allows(allowed, host) for host in hosts]))"
    )
    command = [sys.executable, "-c", program, json.dumps([allowed, hosts])]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    assert json.loads(answer) == [True, True, False]


def test_the_components_key_switches_a_dependency_off(with_dependency):
    names = render({"components": {"airflow": False, "mlflow": False}, **_without_mlflow()}, with_dependency("mlflow"))
    assert not [name for name in names if "/charts/" in name]


def test_steps_reach_dns_and_mlflow_and_what_is_named():
    assert [[p["port"] for p in rule["ports"]] for rule in _egress(render({}))] == [[53, 53], [5000]]
    named = _egress(render(EXTRAS))
    assert [[p["port"] for p in rule["ports"]] for rule in named] == [[53, 53], [5000], [443]]
    # An empty list of peers is everywhere.
    assert all(rule["to"] and all(rule["to"]) for rule in named)


def test_the_release_is_closed_to_others_when_asked():
    assert not [o for o in objects(render({})) if _is_policy(o) and o["metadata"]["namespace"] == "tfmot-ops"]
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}]
    rendered = render({"networkPolicy": {"release": {"enabled": True, "from": peers}}})
    everything = one(rendered, "NetworkPolicy", "tfmot-ops-release")["spec"]
    assert (everything["podSelector"], everything["policyTypes"]) == ({}, ["Ingress"])
    assert everything["ingress"] == [{"from": [{"podSelector": {}}, *peers]}]
    mlflow = one(rendered, "NetworkPolicy", "tfmot-ops-mlflow")
    (rule,) = mlflow["spec"]["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tfmot-ops-jobs"}}}]
    assert [port["port"] for port in rule["ports"]] == [5000]
    # The two ends of the way from steps to MLflow name the same pods.
    (out,) = [r for r in _egress(rendered) if "podSelector" in r["to"][0] and r["ports"][0]["port"] == 5000]
    assert out["to"][0]["podSelector"] == mlflow["spec"]["podSelector"]
    assert out["ports"] == rule["ports"]
    without = render(merged(GLUE, {"networkPolicy": {"release": {"enabled": True}}}))
    assert [o["metadata"]["name"] for o in objects(without) if _is_policy(o)] == ["tfmot-ops", "tfmot-ops-release"]


def _is_policy(found):
    return found["kind"] == "NetworkPolicy"


def test_images_can_be_given_by_digest():
    image = f"registry.example:5000/tfmot-ops@sha256:{'a' * 64}"
    runner, _ = deployed_runner({"runner": {"image": image}, "gpu": {"enabled": True, "image": image}})
    assert (runner.image, runner.gpu_image) == (image, image)


def test_rights_end_with_the_jobs_namespace():
    for values in CASES.values():
        rbac = [o for o in objects(render(values)) if o["apiVersion"].startswith("rbac")]
        assert {(o["kind"], o["metadata"]["namespace"]) for o in rbac} == {
            ("Role", "tfmot-ops-jobs"),
            ("RoleBinding", "tfmot-ops-jobs"),
        }


def test_airflow_is_told_the_default_runner():
    runner, data = deployed_runner(EXTRAS)
    assert isinstance(runner, KubernetesRunner)
    assert runner.namespace == "tfmot-ops-jobs"
    assert runner.service_account == "tfmot-ops-step"
    assert runner.deferrable
    assert runner.annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert list(runner.env_from) == [{"secretRef": {"name": "tfmot-ops-s3"}}]
    assert runner.startup_timeout_s == 900
    assert runner.fallback is Device.CPU
    assert data["TFMOT_OPS_TRACKING_URI"] == "http://tfmot-ops-mlflow.tfmot-ops.svc"
    assert data["TFMOT_OPS_MLFLOW_UI"] == "https://mlflow.example"


def test_the_gpu_pool_is_the_runners():
    mine = {"runner": {"nodeSelector": {"zone": "a"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}}
    runner, _ = deployed_runner(merged(values_of("values-gpu.yaml"), mine))
    pod = runner.pod(GPU_SPEC)["spec"]
    assert pod["containers"][0]["image"] == GPU_IMAGE
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"zone": "a", "pool": "gpu", "nvidia.com/gpu.present": "true"}
    assert [t["key"] for t in pod["tolerations"]] == ["spot", "pool", "nvidia.com/gpu"]
    # The device that the step asks for decides, and nothing of the pool is left on what falls back from it.
    for on_cpu in (runner.pod(SPEC)["spec"], runner.on_cpu().pod(GPU_SPEC)["spec"]):
        assert on_cpu["containers"][0]["image"] == IMAGE
        assert "nvidia.com/gpu" not in on_cpu["containers"][0]["resources"]["limits"]
        assert on_cpu["nodeSelector"] == {"zone": "a"}
        assert [t["key"] for t in on_cpu["tolerations"]] == ["spot"]


def test_a_device_of_the_deployment_wins_over_the_steps():
    runner, _ = deployed_runner(merged(values_of("values-gpu.yaml"), {"runner": {"options": {"device": "gpu"}}}))
    assert runner.pod(SPEC)["spec"]["containers"][0]["image"] == GPU_IMAGE


@pytest.mark.parametrize("version", VERSIONS)
@cases
def test_a_pod_of_the_deployed_runner_is_valid(values, version):
    runner, _ = deployed_runner(values)
    for spec in (SPEC, GPU_SPEC):
        kubernetes_validate.validate(runner.pod(spec), version, strict=True)


def test_another_runner_gets_its_own_options_only():
    runner, data = deployed_runner({"runner": {"name": "docker", "options": {"memory": "4g"}}})
    assert isinstance(runner, DockerRunner)
    assert json.loads(data["TFMOT_OPS_RUNNER_OPTIONS"]) == {"memory": "4g"}


@pytest.mark.slow
def test_airflow_finds_each_dag_of_the_config_map_once(tmp_path):
    """In the layout of a kubelet: the files are links into ..data, which is a link to a folder beside it."""
    folder = tmp_path / "from-chart"
    (folder / "..2026_11_24").mkdir(parents=True)
    (folder / "..data").symlink_to("..2026_11_24")
    for name, text in one(render(EXTRAS), "ConfigMap", "tfmot-ops-dags")["data"].items():
        (folder / "..data" / name).write_text(text, encoding="utf-8")
        (folder / name).symlink_to(Path("..data", name))
    program = (
        "import json, sys; from airflow.utils.file import list_py_file_paths;"
        "json.dump(list_py_file_paths(sys.argv[1]), open(sys.argv[2], 'w'))"
    )
    answer = tmp_path / "found.json"
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(answer)],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(answer.read_text(encoding="utf-8")) == [str(folder / "mine.py")]
    assert (folder / "mine.py").read_text(encoding="utf-8") == DAG


def _validate(found, version):
    assert found
    for document in found:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)


def _egress(rendered):
    return one(rendered, "NetworkPolicy", "tfmot-ops")["spec"]["egress"]


def _without_mlflow():
    return {"tracking": GLUE["tracking"], "networkPolicy": GLUE["networkPolicy"]}
