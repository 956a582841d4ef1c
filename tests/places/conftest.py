"""The places a step runs in besides this machine's processes: a Docker engine and a cluster, both real.

`make places` runs these tests; `make test` skips them, saying so. TFMOT_OPS_LAB names a folder of scripts that start an
engine and a cluster (engine-up, base-image, image-build, kube-up, kube-load); without it, what the Docker client and
the kubeconfig of this machine lead to is used.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import docker
import kubernetes
import pytest

from tfmot_ops.runners.image import IMAGE
from tools.demo.servers import airflow_environment, airflow_is_healthy, free_port, is_ok, wait_for
from tools.demo.workbench import Workbench, group

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
LAB = os.environ.get("TFMOT_OPS_LAB")
NAME = IMAGE
#: Under which containers and pods reach this machine; of the lab's bridge, else of Docker's.
ADDRESS = os.environ.get("TFMOT_OPS_HOST_ADDRESS") or ("10.77.0.1" if LAB else "172.17.0.1")
NAMESPACE = os.environ.get("TFMOT_OPS_NAMESPACE", "tfmot-ops")
STEP_LABEL, POD_LABEL = "tfmot-ops.step", "app.kubernetes.io/name=tfmot-ops"


def pytest_collection_modifyitems(items):
    # The provider leaves the stream of a container's output to the garbage collector, which comes by in any later test.
    ignore = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(ignore)
    if os.environ.get("TFMOT_OPS_PLACES"):
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs an engine and a cluster: `make places` runs it"))


def _lab(script, *arguments):
    """Run a script of the lab; what it exports becomes part of this process's environment."""
    done = subprocess.run([Path(LAB) / script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for line in done.stdout.splitlines():
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = shlex.split(value)[0]


def _until(what, seconds, title):
    """What `what()` gives, once that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {title}"
        time.sleep(1)
    return answer


@pytest.fixture(scope="session")
def until():
    """A function that waits for an answer that is true: (question, seconds, title)."""
    return _until


@pytest.fixture(scope="session")
def lab():
    """A function that runs a script of the lab; None without one."""
    return _lab if LAB else None


@pytest.fixture(scope="session")
def engine():
    """A client of the engine."""
    if LAB:
        _lab("engine-up")
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(request):
    """The CPU image, built from the real Dockerfile; what did not change is in the engine's cache."""
    if named := os.environ.get("TFMOT_OPS_IMAGE"):
        return named
    engine = request.getfixturevalue("engine")
    if not LAB:
        build = ["docker", "build", "-f", "docker/Dockerfile", "--target", "cpu", "-t", NAME]
        subprocess.run([*build, "--build-arg", f"REVISION={_revision()}", "."], cwd=ROOT, check=True)
        return NAME
    _lab("base-image")
    what = ["-f", "docker/Dockerfile", "--target", "cpu", "-t", f"localhost/{NAME}"]
    arguments = {"BASE_IMAGE": "localhost/python:3.11-slim-bookworm", "REVISION": _revision()}
    for name, value in arguments.items():
        what += ["--build-arg", f"{name}={value}"]
    _lab("image-build", *what, ".")
    # The name that a runner without arguments asks for.
    engine.images.get(f"localhost/{NAME}").tag(*NAME.split(":"))
    return f"localhost/{NAME}"


def _revision():
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="session")
def cluster(image):
    """A client of the cluster, which has the image."""
    if LAB:
        _lab("kube-up")
        _lab("kube-load", image)
    try:
        # Named, as the library looks at the variable only when it is imported.
        kubernetes.config.load_kube_config(os.environ.get("KUBECONFIG"))
        api = kubernetes.client.CoreV1Api()
        api.list_namespaced_pod(NAMESPACE)
    except (kubernetes.config.ConfigException, kubernetes.client.ApiException, OSError) as error:
        pytest.skip(f"no cluster with a namespace {NAMESPACE} answers: {error}")
    return api


class Airflow:
    """A running Airflow with an MLflow server, through its REST API; `login` where not everybody is let in."""

    def __init__(self, home, port, mlflow, login=None):
        self.home, self.port, self.mlflow_uri = home, port, mlflow
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/auth/token",
            data=None if login is None else json.dumps(login).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - http to loopback
            self.token = json.loads(response.read())["access_token"]

    def knows(self, dag):
        try:
            return self.call("GET", f"/{dag}")
        except urllib.error.HTTPError:
            return None

    def call(self, method, path, body=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v2/dags{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
        )
        for patience in (5, 10, 20, 0):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http to loopback
                    return json.loads(response.read() or b"null")
            except urllib.error.HTTPError as error:
                # SQLite is locked at times, when everything starts at once.
                if error.code != 500 or not patience:
                    raise
            except TimeoutError:
                # A step that trains may take both cores from the server; a question can be asked again.
                if method != "GET" or not patience:
                    raise
            time.sleep(patience)
        return None

    def trigger(self, dag, conf=None):
        return self.call("POST", f"/{dag}/dagRuns", {"logical_date": None, "conf": conf or {}})["dag_run_id"]

    def task(self, dag, run, task="train"):
        return self.call("GET", f"/{dag}/dagRuns/{run}/taskInstances/{task}")

    def end_of(self, dag, run, seconds=900):
        """State of a DAG run, once it has one that lasts."""
        states = ("success", "failed")
        return _until(
            lambda: (s := self.call("GET", f"/{dag}/dagRuns/{run}")["state"]) in states and s, seconds, f"{dag} ends"
        )

    def log(self, dag, run, task="train"):
        folder = self.home / "airflow" / "logs" / f"dag_id={dag}" / f"run_id={run}" / f"task_id={task}"
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("attempt=*.log*")))

    def mark_failed(self, dag, run, task="train"):
        self.call("PATCH", f"/{dag}/dagRuns/{run}/taskInstances/{task}", {"new_state": "failed"})


@pytest.fixture(scope="session")
def airflow_at():
    """The class of a running Airflow: (home, port, MLflow's URI, login)."""
    return Airflow


@pytest.fixture(autouse=True)
def _no_open_streams():
    """The provider leaves streams to the garbage collector: it comes by here, where what it finds is ignored."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _in_a_place_that_is_there(request):
    """Skips a test whose parameter starts with a place that is not there."""
    parameters = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    for place in (str(value).partition("_")[0] for value in parameters):
        if place in {"docker", "pod", "deferred"}:
            request.getfixturevalue("engine" if place == "docker" else "cluster")


@pytest.fixture(scope="session")
def has_cluster(request):
    """Whether a cluster is there; a machine may have an engine alone."""
    try:
        request.getfixturevalue("cluster")
    except pytest.skip.Exception:
        return False
    return True


@pytest.fixture(scope="session")
def airflow(tmp_path_factory, image, has_cluster):
    """Airflow with scheduler and triggerer; its default place is the cluster, deferred, where there is one."""
    home = tmp_path_factory.mktemp("places")
    dags = home / "dags"
    dags.mkdir()
    for path in (*(ROOT / "dags").glob("*.py"), *(HERE / "dags").glob("*.py")):
        # Without its night: turned on, it would begin with the whole catalogue.
        text = path.read_text(encoding="utf-8").replace('schedule="0 2 * * *"', "schedule=None")
        assert path.stem != "compat_sweep" or "schedule=None" in text
        (dags / path.name).write_text(text, encoding="utf-8")
    bench = Workbench(home=home, dags=dags)
    bench.prepare(lambda _: None)
    port, mlflow_port = free_port(), free_port()
    uri = f"http://{ADDRESS}:{mlflow_port}"
    kubernetes_options = {
        "image": image,
        "namespace": NAMESPACE,
        "deferrable": True,
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "3Gi"}},
    }
    env = airflow_environment(
        bench,
        port,
        AIRFLOW__CORE__PARALLELISM="4",
        AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL="2",
        TFMOT_OPS_TRACKING_URI=uri,
        TFMOT_OPS_RUNNER="kubernetes" if has_cluster else "docker",
        TFMOT_OPS_RUNNER_OPTIONS=json.dumps(kubernetes_options if has_cluster else {"image": image}),
        TFMOT_OPS_ALLOWED_RUNNERS="docker,kubernetes",
        TFMOT_OPS_FORECAST_IMAGES='{"next": "localhost/tfmot-ops:next-cpu"}',
        PLACES_IMAGE=image,
        # What a Docker step gets of an Airflow connection; the value must turn up nowhere.
        AIRFLOW_CONN_PLACES_SECRET=json.dumps({"conn_type": "generic", "extra": {"MLFLOW_TRACKING_PASSWORD": SECRET}}),
    )
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", bench.tracking_uri, "--workers", "1"]
    server += ["--artifacts-destination", bench.artifacts.as_uri(), "--port", str(mlflow_port)]
    server += ["--host", "0.0.0.0"]  # noqa: S104 - containers and pods have to reach it
    server += ["--allowed-hosts", f"{ADDRESS}:{mlflow_port},127.0.0.1:{mlflow_port}"]
    log, mlflow_log = bench.new_log("airflow"), bench.new_log("mlflow")
    with (
        log.open("wb") as out,
        mlflow_log.open("wb") as mlflow_out,
        group([sys.executable, "-m", "airflow", "standalone"], env, out) as standalone,
        group(server, bench.environment(), mlflow_out) as mlflow,
    ):
        servers = {"Airflow": (standalone, log), "MLflow": (mlflow, mlflow_log)}
        wait_for(lambda: airflow_is_healthy(port) and is_ok(mlflow_port, "/health"), servers)
        running = Airflow(home, port, f"http://127.0.0.1:{mlflow_port}")
        _until(lambda: running.knows("optimize_model"), 60, "the DAGs are known")
        yield running


#: Given to steps through a connection and a Secret.
SECRET = "s3cr3t-that-turns-up-nowhere"  # noqa: S105 - made up


@pytest.fixture
def started(airflow):
    """A function that starts a long case and waits until its step trains."""

    def start(dag):
        run = airflow.trigger(dag)
        _until(lambda: "train epoch" in airflow.log(dag, run), 300, f"{dag} trains")
        return run

    return start


@pytest.fixture
def secret():
    """What steps are given through a connection and a Secret."""
    return SECRET


@pytest.fixture
def namespace():
    """Where pods are made."""
    return NAMESPACE


@pytest.fixture
def containers(engine):
    """A function that lists the ids of our containers of a step, ended ones included."""
    # Not through `engine.containers`, which looks at each and stumbles over one that goes meanwhile.
    return lambda: [found["Id"] for found in engine.api.containers(all=True, filters={"label": STEP_LABEL})]


@pytest.fixture
def pods(cluster):
    """A function that lists our pods that nobody has deleted."""

    def listed():
        found = cluster.list_namespaced_pod(NAMESPACE, label_selector=POD_LABEL).items
        return [pod for pod in found if pod.metadata.deletion_timestamp is None]

    return listed


@pytest.fixture
def processes():
    """A function that lists the processes of steps in containers and pods, as far as they run on this machine."""

    def listed():
        commands = {path: _command_of(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
        return [path.parent.name for path, command in commands.items() if "env:TFMOT_OPS_SPEC" in command]

    return listed


def _command_of(path):
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended meanwhile
        return ""
