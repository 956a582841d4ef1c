"""The glue, installed on a real API server: who may do what, and a step launched by the one who may."""

from __future__ import annotations

import base64
import gc
import json
import os
import shutil
import time
from dataclasses import dataclass
from types import SimpleNamespace
from uuid import uuid4

import helm_python
import pytest
import yaml
from kubernetes import client, config
from rendering import CHART, GLUE, SPEC, deployed_runner, merged, render

from tfmot_ops.contract import Status

LAUNCHER, STEP = "tfmot-ops-launcher", "tfmot-ops-step"
WAIT_S = 120
#: An image that docker/Dockerfile made, which the cluster is then given, for a step that does its work.
IMAGE_VARIABLE = "TFMOT_OPS_IMAGE"
# The first of them may find no cluster yet and wait for packages, an image and eight daemons.
pytestmark = [
    pytest.mark.timeout(1500),
    # The provider leaves its connections to the collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"),
]


@dataclass(frozen=True)
class Installed:
    """A release, and clients of the administrator and of the launcher."""

    namespace: str
    jobs: str
    values: dict
    helm: helm_python.Config
    admin: client.ApiClient
    launcher: client.ApiClient
    image: str


@pytest.fixture(scope="module")
def chart_folder(tmp_path_factory):
    """The chart without its list of dependencies: Helm installs none that has not downloaded even what is off."""
    folder = tmp_path_factory.mktemp("chart") / "tfmot-ops"
    shutil.copytree(CHART, folder, ignore=shutil.ignore_patterns("charts"))
    metadata = yaml.safe_load((folder / "Chart.yaml").read_text(encoding="utf-8"))
    del metadata["dependencies"]
    (folder / "Chart.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    assert render(GLUE, folder) == render(GLUE)
    return folder


@pytest.fixture(scope="module")
def installed(cluster, chart_folder):
    namespace = f"helm-{uuid4().hex[:8]}"
    jobs = f"{namespace}-jobs"
    values = merged(GLUE, {"jobs": {"namespace": jobs, "quota": {"pods": "1"}}, "runner": {"image": cluster.image}})
    admin = config.new_client_from_config(cluster.kubeconfig)
    core = client.CoreV1Api(admin)
    try:
        with helm_python.Config(kubeconfig_path=cluster.kubeconfig, namespace=namespace) as helm:
            with helm_python.Chart.load(chart_folder) as chart:
                helm.install(chart, "tfmot-ops", values, wait="watcher", timeout=WAIT_S, create_namespace=True)
            launcher = _as_account(admin, namespace, LAUNCHER)
            yield Installed(namespace, jobs, values, helm, admin, launcher, cluster.image)
    finally:
        gc.collect()  # here, where it is said what may turn up
        for name in (jobs, namespace):
            _ignore_absent(lambda name=name: core.delete_namespace(name))


RIGHTS = {
    "create": ("create", "pods", ""),
    "watch": ("watch", "pods", ""),
    "label": ("patch", "pods", ""),
    "delete": ("delete", "pods", ""),
    "read the log": ("get", "pods", "log"),
    "read the result": ("create", "pods", "exec"),
    "read the reason": ("list", "events", ""),
}
NO_RIGHTS = {
    "secrets": ("get", "secrets", ""),
    "config maps": ("get", "configmaps", ""),
    "rights": ("create", "rolebindings", ""),
    "service accounts": ("create", "serviceaccounts", "token"),
    "quota": ("delete", "resourcequotas", ""),
}


@pytest.mark.parametrize("right", RIGHTS.values(), ids=RIGHTS)
def test_the_launcher_may_in_the_jobs_namespace_and_nowhere_else(installed, right):
    assert _can(installed, LAUNCHER, installed.jobs, *right)
    for elsewhere in (installed.namespace, "default", "kube-system", ""):  # "" is all of them
        assert not _can(installed, LAUNCHER, elsewhere, *right), elsewhere


@pytest.mark.parametrize("right", NO_RIGHTS.values(), ids=NO_RIGHTS)
def test_the_launcher_may_nothing_else_there(installed, right):
    assert not _can(installed, LAUNCHER, installed.jobs, *right)


@pytest.mark.parametrize("right", [*RIGHTS.values(), *NO_RIGHTS.values()])
def test_a_step_may_nothing(installed, right):
    assert not _can(installed, STEP, installed.jobs, *right, account_namespace=installed.jobs)


def test_the_launcher_runs_a_step(installed):
    core = client.CoreV1Api(installed.launcher)
    core.create_namespaced_pod(installed.jobs, _pod(installed, "step"))
    try:
        pod = _ended(core, installed.jobs, "step")
        assert pod.status.phase == "Succeeded"
        # As bytes: the client's own decoding of them has changed from release to release.
        log = core.read_namespaced_pod_log("step", installed.jobs, _preload_content=False).data
        assert log == b"uid 10001, no token\n"
        assert pod.spec.service_account_name == STEP
        assert pod.metadata.annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        # The container named neither: the LimitRange did.
        limits = pod.spec.containers[0].resources.limits
        assert limits == {"cpu": "1", "memory": "1Gi"}
    finally:
        core.delete_namespaced_pod("step", installed.jobs, grace_period_seconds=0)


def test_the_quota_stops_a_pod_too_many(installed):
    core = client.CoreV1Api(installed.launcher)
    sleeping = _pod(installed, "first", "sleep 60")
    core.create_namespaced_pod(installed.jobs, sleeping)
    try:
        with pytest.raises(client.ApiException) as refused:
            core.create_namespaced_pod(installed.jobs, _pod(installed, "second"))
        assert refused.value.status == 403
        assert "exceeded quota: tfmot-ops, requested: pods=1, used: pods=1, limited: pods=1" in refused.value.body
    finally:
        core.delete_namespaced_pod("first", installed.jobs, grace_period_seconds=0)


def test_the_launcher_is_refused_elsewhere(installed):
    with pytest.raises(client.ApiException) as refused:
        client.CoreV1Api(installed.launcher).create_namespaced_pod(installed.namespace, _pod(installed, "step"))
    assert refused.value.status == 403
    message = json.loads(refused.value.body)["message"]
    assert f"{installed.namespace}:{LAUNCHER}" in message
    assert f'cannot create resource "pods" in API group "" in the namespace "{installed.namespace}"' in message


def test_the_launchers_rights_are_enough_for_a_real_step(installed, cluster, tmp_path):
    """The runner's whole way, by Airflow's own operator: launch, follow, read the result, delete."""
    image = os.environ.get(IMAGE_VARIABLE)
    if not image:
        pytest.skip(f"{IMAGE_VARIABLE} names no image of docker/Dockerfile")
    cluster.load(image)
    kubeconfig = tmp_path / "launcher.yaml"
    kubeconfig.write_text(_kubeconfig(installed.launcher), encoding="utf-8")
    core, lines = client.CoreV1Api(installed.admin), []
    # What the chart asks for is more than a small cluster has.
    small = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "2Gi"}}
    outside = {"config_file": str(kubeconfig), "kubernetes_conn_id": None, "deferrable": False}
    values = {"runner": {"image": image, "resources": small, "options": outside}}
    runner, _ = deployed_runner(merged(installed.values, values))
    # What the operator labels its pod with, to find it again.
    ti = SimpleNamespace(dag_id="d", task_id="step", run_id="r", map_index=-1, try_number=1, xcom_push=lambda **_: None)
    result = runner.start(SPEC, {"ti": ti, "run_id": "r", "dag": None}, lines.append).wait()
    assert result.status is Status.OK
    assert result.spec_sha256 == SPEC.sha256()
    left = core.list_namespaced_pod(installed.jobs, label_selector="app.kubernetes.io/name=tfmot-ops").items
    assert [pod for pod in left if pod.metadata.deletion_timestamp is None] == []


def test_an_upgrade_changes_what_airflow_is_told(installed, chart_folder):
    core = client.CoreV1Api(installed.admin)
    with helm_python.Chart.load(chart_folder) as chart:
        installed.helm.upgrade(chart, "tfmot-ops", merged(installed.values, {"runner": {"image": "other:2"}}))
    data = core.read_namespaced_config_map("tfmot-ops-defaults", installed.namespace).data
    assert json.loads(data["TFMOT_OPS_RUNNER_OPTIONS"])["image"] == "other:2"


def test_uninstalling_leaves_the_jobs_namespace_alone(installed):
    """Last in this file."""
    installed.helm.uninstall("tfmot-ops", timeout=WAIT_S, wait="watcher")
    core, rbac = client.CoreV1Api(installed.admin), client.RbacAuthorizationV1Api(installed.admin)
    assert core.read_namespace(installed.jobs).status.phase == "Active"
    assert rbac.list_namespaced_role_binding(installed.jobs).items == []
    assert not _can(installed, LAUNCHER, installed.jobs, *RIGHTS["create"])


def _can(installed, account, namespace, *right, account_namespace=None):
    verb, resource, subresource = right
    user = f"system:serviceaccount:{account_namespace or installed.namespace}:{account}"
    group = "rbac.authorization.k8s.io" if resource == "rolebindings" else ""
    asked = client.V1ResourceAttributes(
        namespace=namespace, verb=verb, resource=resource, subresource=subresource, group=group
    )
    review = client.V1SubjectAccessReview(spec=client.V1SubjectAccessReviewSpec(user=user, resource_attributes=asked))
    return client.AuthorizationV1Api(installed.admin).create_subject_access_review(review).status.allowed


def _as_account(admin, namespace, name):
    """A client with the account's own token, as Airflow's pods have it."""
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600))
    token = client.CoreV1Api(admin).create_namespaced_service_account_token(name, namespace, request).status.token
    # The token says whose it is; a client with the administrator's would pass every test below.
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["sub"] == f"system:serviceaccount:{namespace}:{name}"
    own = client.Configuration()
    own.host, own.ssl_ca_cert = admin.configuration.host, admin.configuration.ssl_ca_cert
    own.api_key = {"authorization": f"Bearer {token}"}
    return client.ApiClient(own)


def _kubeconfig(api):
    """What a program outside the cluster needs to be the account that this client is."""
    own = api.configuration
    cluster = {"server": own.host, "certificate-authority": own.ssl_ca_cert}
    user = {"token": own.api_key["authorization"].removeprefix("Bearer ")}
    context = {"cluster": "it", "user": "it"}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": user}],
            "contexts": [{"name": "it", "context": context}],
            "current-context": "it",
        }
    )


def _pod(installed, name, command='test ! -e /var/run/secrets/kubernetes.io && echo "uid $(id -u), no token"'):
    """The pod of the deployed runner, with another command and no resources of its own."""
    runner, _ = deployed_runner(installed.values)
    pod = runner.pod(SPEC)
    (container,) = pod["spec"]["containers"]
    container["command"] = ["sh", "-c", command]
    del container["args"], container["resources"]
    return {**pod, "metadata": {**pod["metadata"], "namespace": None, "name": name}}


def _ended(core, namespace, name):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        pod = core.read_namespaced_pod(name, namespace)
        if pod.status.phase in ("Succeeded", "Failed"):
            return pod
        time.sleep(0.5)
    events = core.list_namespaced_event(namespace).items
    raise AssertionError(f"{name} did not end in {WAIT_S} s: {[event.message for event in events]}")


def _ignore_absent(call):
    try:
        call()
    except client.ApiException as error:
        if error.status != 404:
            raise
