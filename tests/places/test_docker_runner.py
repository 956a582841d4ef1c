"""DockerRunner on a real engine, with a script in the place of the step: what it may, and what is told of its end."""

import gc
import json
import os
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace

import docker
import pytest
import requests
from airflow.sdk.exceptions import AirflowTaskTimeout

from tfmot_ops.contract import Device, StepSpec
from tfmot_ops.errors import StepFailedError, TfmotOpsError
from tfmot_ops.runners import DockerRunner
from tfmot_ops.runners.base import fake_result
from tfmot_ops.runners.docker import STEP_LABEL
from tfmot_ops.runners.image import RESULT_FILE

pytestmark = pytest.mark.timeout(300)

OPTIONS = {"kind": "train", "model": "resnet8", "dataset": "digits"}
SPEC = StepSpec.model_validate({"step_id": "docker_runner", "output_uri": "/data", "options": OPTIONS})
ANSWERS = f'printf %s "$ANSWER" > {RESULT_FILE}'
WAITS = "trap 'echo told; exit 143' TERM; touch /out/up; sleep 200 & wait"
DEAF = "trap '' TERM; while true; do sleep 0.2; done"
CONTEXT = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1)}
#: As Docker answers to the start of a container that asks for a GPU, where there is no driver for one.
NO_DRIVER = 'could not select device driver "" with capabilities: [[gpu]]'


@pytest.fixture(autouse=True)
def no_stream_is_left():
    """Collect what the provider leaves (see conftest.py) while it is not an error yet, as it is at the suite's end."""
    yield
    gc.collect()


@pytest.fixture
def out(tmp_path):
    """A folder of this machine, `/out` in the container."""
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def runner(engine, image, tmp_path, out):  # noqa: ARG001 - the engine has to be there
    """A function that makes a runner whose steps are a shell script: (script, what else)."""

    def make(script, **more):
        file = tmp_path / "tfmot-ops"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        mounts = [
            {"target": "/usr/local/bin/tfmot-ops", "source": str(file), "type": "bind", "read_only": True},
            {"target": "/out", "source": str(out), "type": "bind"},
        ]
        more = {"image": image, "network": "none", "mounts": mounts, **more}
        return DockerRunner(env={"ANSWER": fake_result(SPEC).model_dump_json()}, **more)

    return make


@pytest.fixture
def log():
    """Takes the lines of the runner."""
    return []


@pytest.fixture
def mine(engine):
    """A function that lists the containers of this file's step; in the end none may be left."""

    def listed():
        found = engine.api.containers(all=True, filters={"label": f"{STEP_LABEL}={SPEC.step_id}"})
        return [container["Id"] for container in found]

    yield listed
    left = listed()
    for identity in left:
        engine.api.remove_container(identity, force=True, v=True)
    assert left == []


@pytest.fixture
def running(engine, mine, out, until, log):
    """A function that lets a runner's step run in a thread: the step, what comes of `wait`, and its container."""
    steps = []
    with ThreadPoolExecutor(1) as pool:

        def start(runner, context=None):
            step = runner.start(SPEC, context, log.append)
            steps.append(step)
            waiting = pool.submit(step.wait)
            until(lambda: (out / "up").exists() or waiting.done(), 60, "the step runs")
            (identity,) = mine()
            return step, waiting, engine.api.inspect_container(identity)

        yield start
        for step in steps:
            step.kill()


@pytest.fixture
def idle_image(engine, image):
    """An image whose containers can be made and not started: its path leads to no `tini`."""
    name = "localhost/tfmot-ops-test:idle"
    engine.images.build(fileobj=BytesIO(f"FROM {image}\nENV PATH=/nowhere\n".encode()), tag=name)
    yield name
    engine.images.remove(name, force=True)


@pytest.fixture
def own_engine(engine, tmp_path, until):  # noqa: ARG001 - its storage and settings are taken
    """An engine to stop and start again, with the storage of the lab's."""
    if not os.environ.get("TFMOT_OPS_LAB") or shutil.which("podman") is None:
        pytest.skip("needs an engine that may be stopped: the lab's podman")
    url = f"unix://{tmp_path / 'own.sock'}"
    started = []

    def answers():
        try:
            with docker.APIClient(url) as client:
                return client.ping()
        except docker.errors.DockerException:
            return False

    def start():
        started.append(subprocess.Popen(["podman", "system", "service", "--time", "0", url]))
        until(answers, 30, "the engine answers")

    def stop():
        started[-1].kill()
        started[-1].wait()

    start()
    yield SimpleNamespace(url=url, start=start, stop=stop)
    stop()


def gone(engine, container):
    """Whether neither the container is left nor the volume of its result."""
    (volume,) = [mount["Name"] for mount in container["Mounts"] if mount["Type"] == "volume"]
    there = [found["Name"] for found in engine.api.volumes()["Volumes"]]
    return volume not in there and container["Id"] not in [c["Id"] for c in engine.api.containers(all=True)]


def test_what_the_engine_was_told(engine, runner, running):
    step, waiting, container = running(runner(WAITS, memory="64m", cpus=0.5, tmp_size="8m"))
    host = container["HostConfig"]
    assert container["Config"]["User"] == "10001:10001"
    assert (host["ReadonlyRootfs"], host["Privileged"]) == (True, False)
    # Docker keeps the word, podman lists what it means; what comes of it is in the next test.
    dropped = {name.removeprefix("CAP_") for name in host["CapDrop"]}
    assert dropped == {"ALL"} or {"CHOWN", "NET_RAW", "SETUID"} <= dropped
    assert not host["CapAdd"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert {"rw", "nosuid", "nodev", "size=8m"} <= set(host["Tmpfs"]["/tmp"].split(","))  # noqa: S108 - the container's own
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 << 20, 64 << 20, 500_000_000)
    step.kill()
    with pytest.raises(TfmotOpsError, match="was stopped, as its task was"):
        waiting.result(30)
    assert gone(engine, container)


def test_what_the_step_finds(runner, mine, log):
    script = (
        "id -u; id -g; grep -E '^(Cap(Prm|Eff|Bnd)|NoNewPrivs)' /proc/self/status; touch /x /tmp/x; ls /tmp; exit 4"
    )
    with pytest.raises(StepFailedError, match="exit code 4") as failure:
        runner(script).start(SPEC, None, log.append).wait()
    said = [line.split() for line in str(failure.value).splitlines()]
    for words in (["10001"], ["CapPrm:", "0" * 16], ["CapEff:", "0" * 16], ["CapBnd:", "0" * 16], ["NoNewPrivs:", "1"]):
        assert words in said
    assert "touch: cannot touch '/x': Read-only file system" in str(failure.value)
    assert ["x"] in said
    assert mine() == []


def test_no_volume_is_left_of_a_step_that_went_well(engine, runner, running):
    _, waiting, container = running(runner(f"touch /out/up; sleep 2; {ANSWERS}"))
    assert waiting.result(60).spec_sha256 == SPEC.sha256()
    assert gone(engine, container)


@pytest.mark.parametrize("device", list(Device))
def test_a_container_that_is_not_started_fails_in_the_engines_words(runner, idle_image, mine, log, device):
    step = runner(ANSWERS, image=idle_image, gpu_image=idle_image, device=device).start(SPEC, None, log.append)
    with pytest.raises(StepFailedError, match="could not be started") as failure:
        step.wait()
    assert "tini" in failure.value.received
    assert ("GPU" in failure.value.required) == ("fallback" in failure.value.remedy) == (device is Device.GPU)
    assert mine() == []


def test_a_network_that_is_not_there(runner, mine, log):
    with pytest.raises(StepFailedError, match=r"could not be (created|started)") as failure:
        runner(ANSWERS, network="no-such-network").start(SPEC, None, log.append).wait()
    assert "no-such-network" in failure.value.received
    assert mine() == []


def test_a_gpu_container_that_is_not_started_falls_back(runner, idle_image, mine, log):
    chosen = runner(ANSWERS, gpu_image=idle_image, device=Device.GPU, fallback=Device.CPU)
    assert chosen.start(SPEC, None, log.append).wait().spec_sha256 == SPEC.sha256()
    (line,) = [line for line in log if "falls back to the CPU" in line]
    assert "tini" in line
    assert mine() == []


@pytest.mark.parametrize("fallback", [None, Device.CPU])
def test_a_gpu_without_a_driver(runner, image, mine, log, monkeypatch, fallback):  # noqa: PLR0917 - pytest gives fixtures by name
    start = docker.APIClient.start

    def as_docker(self, container):
        asked.append(container)
        if len(asked) > 1:
            return start(self, container)
        response = requests.Response()
        response.status_code, response._content = 500, json.dumps({"message": NO_DRIVER}).encode()
        return self._raise_for_status(response)

    asked = []
    monkeypatch.setattr(docker.APIClient, "start", as_docker)
    step = runner(ANSWERS, gpu_image=image, device=Device.GPU, fallback=fallback).start(SPEC, None, log.append)
    if fallback is None:
        with pytest.raises(StepFailedError, match="could not be started") as failure:
            step.wait()
        assert NO_DRIVER in failure.value.received
    else:
        step.wait()
        assert any(NO_DRIVER in line and "falls back to the CPU" in line for line in log)
    assert mine() == []


def test_an_engine_that_knows_of_no_gpus_is_told(engine, runner, image, mine, log):
    if "Podman" not in engine.version()["Components"][0]["Name"]:
        pytest.skip("needs an engine that takes no notice of a request for a GPU: podman")
    runner(ANSWERS, gpu_image=image, device=Device.GPU).start(SPEC, None, log.append).wait()
    assert any("Docker ignored the request for a GPU" in line for line in log)
    assert mine() == []


def test_a_kill_while_the_container_is_made(runner, mine, log, monkeypatch):
    create = docker.APIClient.create_container

    def killed(self, *arguments, **more):
        # As Airflow's handler of SIGTERM, after which the task goes on.
        step.kill()
        return create(self, *arguments, **more)

    started = []
    monkeypatch.setattr(docker.APIClient, "create_container", killed)
    monkeypatch.setattr(docker.APIClient, "start", lambda *_: started.append(1))
    step = runner(ANSWERS).start(SPEC, None, log.append)
    with pytest.raises(TfmotOpsError, match="was stopped, as its task was"):
        step.wait()
    assert (started, mine()) == ([], [])


@pytest.fixture
def airflow_timeout(out, until):
    """Raises Airflow's time-out in the main thread, once the step is up."""

    def over(*_):
        raise AirflowTaskTimeout

    def ring():
        until((out / "up").exists, 60, "the step runs")
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, over)
    ringing = threading.Thread(target=ring)
    ringing.start()
    yield
    ringing.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("airflow_timeout")
def test_a_time_out_lets_the_step_tidy_up(runner, mine, out, log):
    script = WAITS.replace("echo told", "touch /out/told")
    with pytest.raises(AirflowTaskTimeout):
        runner(script).start(SPEC, None, log.append).wait()
    assert (out / "told").exists()
    assert mine() == []


def test_a_step_that_is_deaf_ends_at_its_deadline(runner, mine, log):
    with pytest.raises(StepFailedError, match="ran longer than the runner's deadline_s") as failure:
        runner(DEAF, deadline_s=1).start(SPEC, None, log.append).wait()
    assert "exit code 137" in failure.value.received
    assert mine() == []


def test_a_step_that_somebody_killed_did_not_end_at_its_deadline(engine, runner, running):
    _, waiting, container = running(runner(WAITS))
    engine.api.kill(container["Id"])
    with pytest.raises(TfmotOpsError, match="was killed by SIGKILL"):
        waiting.result(30)
    assert gone(engine, container)


def test_a_container_that_somebody_else_removed(engine, runner, running):
    _, waiting, container = running(runner(WAITS))
    engine.api.remove_container(container["Id"], force=True, v=True)
    # Between its end and its removal, where that is what the runner sees first.
    with pytest.raises(TfmotOpsError, match=r"is gone|was killed by SIGKILL"):
        waiting.result(30)


def test_an_engine_that_is_not_there(runner, tmp_path, log):
    url = f"unix://{tmp_path / 'none.sock'}"
    with pytest.raises(StepFailedError, match="no Docker engine answers") as failure:
        runner(ANSWERS, docker_url=url).start(SPEC, None, log.append)
    assert url in failure.value.required


def test_an_engine_that_goes_before_the_step(runner, own_engine, mine, log):
    step = runner(ANSWERS, docker_url=own_engine.url).start(SPEC, CONTEXT, log.append)
    own_engine.stop()
    with pytest.raises(StepFailedError, match="stopped answering"):
        step.wait()
    assert mine() == []


def test_an_engine_that_is_restarted(engine, runner, running, own_engine):
    _, waiting, container = running(runner(WAITS, docker_url=own_engine.url))
    own_engine.stop()
    own_engine.start()
    with pytest.raises(StepFailedError, match="stopped answering") as failure:
        waiting.result(60)
    assert "then the container was running" in failure.value.received
    assert gone(engine, container)


def test_what_an_engine_that_stays_away_leaves_is_removed_by_the_retry(engine, runner, running, own_engine, log):
    _, waiting, container = running(runner(WAITS, docker_url=own_engine.url), CONTEXT)
    own_engine.stop()
    with pytest.raises(StepFailedError, match="stopped answering"):
        waiting.result(60)
    assert not gone(engine, container)
    assert runner(ANSWERS).start(SPEC, CONTEXT, log.append).wait().spec_sha256 == SPEC.sha256()
    assert gone(engine, container)
