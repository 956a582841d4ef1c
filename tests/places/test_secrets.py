"""A secret reaches the step's environment, and no argument, spec, log, XCom or run."""

import json

import pytest
from kubernetes.client import ApiClient, V1ObjectMeta, V1Secret

pytestmark = pytest.mark.timeout(1200)


def where_it_turned_up(home, secret):
    """Files of Airflow and MLflow that hold the secret: logs, both databases with their XComs and runs, artifacts."""
    return [str(path) for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_docker_by_connection(airflow, started, engine, containers, secret):
    run = started("docker_long")
    (identity,) = containers()
    container = engine.containers.get(identity)
    assert f"MLFLOW_TRACKING_PASSWORD={secret}" in container.attrs["Config"]["Env"]
    assert secret not in json.dumps([container.attrs[part] for part in ("Path", "Args")])
    assert secret not in next(line for line in container.attrs["Config"]["Env"] if line.startswith("TFMOT_OPS_SPEC="))
    airflow.mark_failed("docker_long", run)
    airflow.end_of("docker_long", run)
    assert where_it_turned_up(airflow.home, secret) == []


@pytest.fixture
def kubernetes_secret(cluster, namespace, secret):
    """The Secret `places-secret`."""
    body = V1Secret(metadata=V1ObjectMeta(name="places-secret"), string_data={"MLFLOW_TRACKING_PASSWORD": secret})
    cluster.create_namespaced_secret(namespace, body)
    yield
    cluster.delete_namespaced_secret("places-secret", namespace)


@pytest.mark.usefixtures("kubernetes_secret")
def test_kubernetes_by_reference(airflow, started, pods, secret):
    run = started("pod_secret")
    (pod,) = pods()
    assert secret not in json.dumps(ApiClient().sanitize_for_serialization(pod))
    # A pod whose Secret is missing does not start: that it ran shows that the reference was followed.
    assert airflow.end_of("pod_secret", run) == "success"
    assert where_it_turned_up(airflow.home, secret) == []
