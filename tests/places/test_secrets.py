"""A secret reaches the step's process, and no argument, spec, log, XCom or run."""

import gc
import json

import pytest
from kubernetes.client import ApiClient, V1ObjectMeta, V1Secret
from kubernetes.stream import stream

pytestmark = pytest.mark.timeout(1200)

#: Of the first process of a container, which has what the step's has: printed by a second one beside it.
ENVIRONMENT, ARGUMENTS = ("cat", "/proc/1/environ"), ("cat", "/proc/1/cmdline")


def where_it_turned_up(home, secret):
    """Files of Airflow and MLflow that hold the secret: logs, both databases with their XComs and runs, artifacts."""
    return [str(path) for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def look_at(environment, arguments, secret):
    """The variable is there, and neither the spec beside it nor the command line has its value."""
    variables = dict(line.split("=", 1) for line in environment.split("\0") if "=" in line)
    assert variables.pop("MLFLOW_TRACKING_PASSWORD") == secret
    assert json.loads(variables["TFMOT_OPS_SPEC"])["step_id"] == "train"
    assert secret not in json.dumps(variables)
    assert "TFMOT_OPS_SPEC" in arguments
    assert secret not in arguments


def look_for_it_afterwards(airflow, dag, run, secret):
    """The step went well, so its XComs, logs and runs are there; the secret is in none."""
    assert airflow.end_of(dag, run) == "success", airflow.log(dag, run)[-4000:]
    entries = f"/{dag}/dagRuns/{run}/taskInstances/train/xcomEntries"
    keys = [entry["key"] for entry in airflow.call("GET", entries)["xcom_entries"]]
    xcoms = {key: airflow.call("GET", f"{entries}/{key}")["value"] for key in keys}
    # As the database has it, which is JSON in some versions of Airflow.
    result = json.loads(xcoms["return_value"]) if isinstance(xcoms["return_value"], str) else xcoms["return_value"]
    assert result["status"] == "ok"
    assert secret not in json.dumps(xcoms)
    # What the step said and answered is found by the same search.
    assert "train epoch" in airflow.log(dag, run)
    places = where_it_turned_up(airflow.home, result["spec_sha256"])
    assert any("airflow.db" in place for place in places), places
    assert where_it_turned_up(airflow.home, secret) == []


def test_docker_by_connection(airflow, started, engine, containers, secret):
    run = started("docker_durable")
    (identity,) = containers()
    container = engine.containers.get(identity)
    environment, arguments = (container.exec_run(list(what)).output.decode() for what in (ENVIRONMENT, ARGUMENTS))
    look_at(environment, arguments, secret)
    assert secret not in json.dumps([container.attrs[part] for part in ("Path", "Args")])
    assert secret not in json.dumps(container.labels)
    look_for_it_afterwards(airflow, "docker_durable", run, secret)
    assert containers() == []


@pytest.fixture
def kubernetes_secret(cluster, namespace, secret):
    """The Secret `places-secret`."""
    body = V1Secret(metadata=V1ObjectMeta(name="places-secret"), string_data={"MLFLOW_TRACKING_PASSWORD": secret})
    cluster.create_namespaced_secret(namespace, body)
    yield
    cluster.delete_namespaced_secret("places-secret", namespace)


@pytest.fixture
def read(cluster, namespace):
    """A function that runs a command in the step's container of a pod, for its output."""

    def read(pod, command):
        shell = {"container": "base", "stdin": False, "stdout": True, "stderr": True, "tty": False}
        name = pod.metadata.name
        return stream(cluster.connect_get_namespaced_pod_exec, name, namespace, command=list(command), **shell)

    yield read
    # The socket of `stream`, which nobody closes, while it is not an error yet, as it is at the suite's end.
    gc.collect()


@pytest.mark.usefixtures("kubernetes_secret")
def test_kubernetes_by_reference(airflow, started, pods, read, secret):
    run = started("pod_secret")
    (pod,) = pods()
    look_at(read(pod, ENVIRONMENT), read(pod, ARGUMENTS), secret)
    assert secret not in json.dumps(ApiClient().sanitize_for_serialization(pod))
    look_for_it_afterwards(airflow, "pod_secret", run, secret)
    assert pods() == []
