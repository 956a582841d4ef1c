"""compose.yaml through Docker Compose itself: what it says, and the whole server with a model optimised on it.

Where no registry can be reached (TFMOT_OPS_LAB), PostgreSQL and Airflow are stand-ins made from the distribution's and
the Python packages (`stand_ins`); MLflow, the step and what is added to Airflow come from the real Dockerfile.
"""

import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from tfmot_ops import __version__

pytestmark = pytest.mark.timeout(3000)

ROOT = Path(__file__).resolve().parents[2]
LAB = os.environ.get("TFMOT_OPS_LAB")
FILE = ROOT / "docker" / "compose.yaml"
STAND_INS = Path(__file__).parent / "stand_ins"
BASE = "localhost/python:3.11-slim-bookworm"
AIRFLOW_IMAGE, POSTGRES_IMAGE = "apache/airflow:3.3.2-python3.11", "postgres:17-bookworm"
RUNNING = {"postgres", "mlflow", "airflow", "scheduler", "dag-processor", "triggerer"}
CONF = {"limit": 200, "epochs": 1, "fine_tune_epochs": 1, "qat_epochs": 0}
SECRETS = ("POSTGRES_PASSWORD", "FERNET_KEY", "API_SECRET", "JWT_SECRET")


def run(*command, **more):
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, **more)


@pytest.fixture(scope="module")
def compose():
    """A function that runs `docker compose` on the file: (exit code, standard output, errors)."""
    if run("docker", "compose", "version").returncode:
        pytest.skip("no Docker Compose here")

    def compose(*arguments, env=None):
        done = run("docker", "compose", "-f", FILE, *arguments, env={**os.environ, **(env or {})})
        return done.returncode, done.stdout, done.stderr

    return compose


def test_a_missing_secret_is_named_with_its_remedy(compose, tmp_path):
    (tmp_path / "none").touch()
    code, _, errors = compose("--env-file", tmp_path / "none", "config", "--quiet")
    assert code != 0
    assert "run sh docker/secrets.sh" in errors


def test_the_file_is_valid_and_only_this_host_is_served(compose):
    env = dict.fromkeys(SECRETS, "x") | {"DOCKER_GID": "0"}
    code, output, errors = compose("config", "--format", "json", env=env)
    assert code == 0, errors
    services = json.loads(output)["services"]
    assert services.keys() == RUNNING | {"migrate", "doctor"}
    assert {port["host_ip"] for service in services.values() for port in service.get("ports", [])} == {"127.0.0.1"}
    # Who may speak to the engine may do anything on this host.
    sockets = {name for name, one in services.items() if "docker.sock" in json.dumps(one.get("volumes", []))}
    assert sockets == {name for name, one in services.items() if "group_add" in one} == {"scheduler"}


def test_other_hosts_are_served_where_an_env_file_says_so(compose):
    env = dict.fromkeys(SECRETS, "x") | {"DOCKER_GID": "0", "BIND": "192.0.2.7", "MLFLOW_HOSTS": "ml.example:5000"}
    code, output, errors = compose("config", "--format", "json", env=env)
    assert code == 0, errors
    services = json.loads(output)["services"]
    assert {port["host_ip"] for service in services.values() for port in service.get("ports", [])} == {"192.0.2.7"}
    assert "mlflow:5000,localhost:*,127.0.0.1:*,ml.example:5000" in services["mlflow"]["command"]


@pytest.fixture(scope="module")
def images(engine, image, lab, tmp_path_factory):  # noqa: ARG001 - the step's image has to be there
    """Every image that the file names, built from the Dockerfile; the two of others made where there is no pull."""
    if not LAB:
        return
    airflow = tmp_path_factory.mktemp("airflow")
    lock = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    locked = re.findall(r"^([\w.-]+==[^\\]+?) \\$", lock, re.MULTILINE)
    (airflow / "constraints.txt").write_text("\n".join(locked), encoding="utf-8")
    dockerfile, with_base = ROOT / "docker" / "Dockerfile", ("--build-arg", f"BASE_IMAGE={BASE}")
    builds = [
        (POSTGRES_IMAGE, STAND_INS / "postgres.Dockerfile", STAND_INS, with_base),
        (AIRFLOW_IMAGE, STAND_INS / "airflow.Dockerfile", airflow, with_base),
        (f"tfmot-ops:{__version__}-mlflow", dockerfile, ".", ("--target", "mlflow", *with_base)),
        (
            f"tfmot-ops:{__version__}-airflow",
            dockerfile,
            ".",
            ("--target", "airflow", *with_base, "--build-arg", f"AIRFLOW_IMAGE=localhost/{AIRFLOW_IMAGE}"),
        ),
    ]
    for name, file, context, options in builds:
        lab("image-build", "-f", str(file), "-t", f"localhost/{name}", *options, str(context))
        engine.images.get(f"localhost/{name}").tag(*name.rsplit(":", 1))


@pytest.fixture(scope="module")
def server(compose, images, engine, tmp_path_factory):  # noqa: ARG001 - the images have to be there
    """The file's services, up and healthy; a function that gives the output of `docker compose` on them."""
    folder = tmp_path_factory.mktemp("compose")
    socket = Path("/var/run/docker.sock")
    linked = LAB and not socket.exists()
    if LAB:
        # Writable for the group, as Docker's socket is, and found where Docker has it.
        engine_socket = Path(os.environ["DOCKER_HOST"].removeprefix("unix://"))
        engine_socket.chmod(0o660)
        if linked:
            socket.unlink(missing_ok=True)  # what a run that was killed left
            socket.symlink_to(engine_socket)
    # As docker/secrets.sh writes it, but not into the checkout.
    script = folder / "secrets.sh"
    script.write_bytes((ROOT / "docker" / "secrets.sh").read_bytes())
    assert run("sh", script).returncode == 0
    env_file = ("--env-file", folder / ".env")
    done = threading.Event()
    asker = threading.Thread(target=_ask_for_health, args=(done,))
    asker.start()
    try:
        build = ("--no-build", "--pull", "never") if LAB else ("--build",)
        code, output, errors = compose(*env_file, "up", "--detach", "--wait", "--wait-timeout", "900", *build)
        assert code == 0, (output + errors)[-4000:] + compose(*env_file, "logs", "--tail", "40")[1][-8000:]
        yield lambda *arguments: compose(*env_file, *arguments)[1]
    finally:
        done.set()
        asker.join()
        compose(*env_file, "down", "--volumes", "--timeout", "5")
        # A step that was still running is a container of its own; the tests of other places count these.
        for container in engine.containers.list(all=True, filters={"label": "tfmot-ops.step"}):
            container.remove(force=True)
        if linked:
            socket.unlink()


def _ask_for_health(done):
    """Podman leaves the asking to systemd's timers, which the lab has not."""
    while LAB and not done.wait(5):
        for name in run("podman", "ps", "--quiet", "--filter", "label=com.docker.compose.project").stdout.split():
            run("podman", "healthcheck", "run", name)


def test_every_service_runs_and_a_model_is_optimised(server, until, airflow_at):
    states = [json.loads(line) for line in server("ps", "--all", "--format", "json").splitlines()]
    assert {one["Service"] for one in states if one["State"] == "running"} == RUNNING
    assert "ok   tracking" in server("logs", "doctor")
    heavy = "import importlib.util as u; print([u.find_spec(n) for n in ('tensorflow', 'tf_keras')])"
    assert server("exec", "-T", "scheduler", "python", "-c", heavy).strip() == "[None, None]"
    password = re.search(r"assword.*?admin\W+(\w+)", server("logs", "airflow"))[1]
    airflow = airflow_at(None, 8080, "http://127.0.0.1:5000", {"username": "admin", "password": password})
    until(lambda: airflow.knows("optimize_model"), 120, "the DAG is known")
    airflow.call("PATCH", "/optimize_model", {"is_paused": False})
    state = airflow.end_of("optimize_model", airflow.trigger("optimize_model", CONF))
    assert state == "success", server("logs", "scheduler")[-6000:]
    assert "train epoch 1/1" in server("exec", "-T", "scheduler", "sh", "-c", "cat $(find logs -name 'attempt=*')")
