"""What a step survives: the end of its worker, and of the node's agent."""

import os
import signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1200)


def test_the_retry_of_a_killed_worker_takes_up_the_pod(airflow, started, pods):
    run = started("pod_durable")
    (before,) = pods()
    attempt = airflow.task("pod_durable", run)
    os.kill(attempt["pid"], signal.SIGKILL)
    assert airflow.end_of("pod_durable", run) == "success", airflow.log("pod_durable", run)[-4000:]
    assert airflow.task("pod_durable", run)["try_number"] == attempt["try_number"] + 1
    log = airflow.log("pod_durable", run)
    assert f"Reusing existing pod '{before.metadata.name}'" in log
    assert pods() == []


def test_the_retry_of_a_killed_worker_removes_the_container(airflow, started, containers):
    run = started("docker_durable")
    (before,) = containers()
    attempt = airflow.task("docker_durable", run)
    os.kill(attempt["pid"], signal.SIGKILL)
    assert airflow.end_of("docker_durable", run) == "success", airflow.log("docker_durable", run)[-4000:]
    assert airflow.task("docker_durable", run)["try_number"] == attempt["try_number"] + 1
    assert f"removing container {before[:12]} of an earlier attempt" in airflow.log("docker_durable", run)
    assert containers() == []


@pytest.mark.parametrize("place", ["pod", "deferred"])
def test_a_node_agent_that_starts_again_in_the_middle(airflow, started, restart_agent, place, pods):
    run = started(f"{place}_durable")
    restart_agent()
    assert airflow.end_of(f"{place}_durable", run) == "success", airflow.log(f"{place}_durable", run)[-4000:]
    # The provider's operator gives up on an agent that is away for 15 s, and the retry starts anew; not so its trigger.
    assert place == "pod" or airflow.task(f"{place}_durable", run)["try_number"] == 1
    assert pods() == []


@pytest.fixture
def restart_agent(lab):
    """A function that kills the kubelet and has it started again."""
    if lab is None:
        pytest.skip("needs a node agent that may be killed: TFMOT_OPS_LAB names none")

    def restart():
        state = Path(os.environ.get("LAB_STATE", "/var/tmp/lab"))  # noqa: S108 - the lab's own default
        record = state / "kube" / "run" / "kubelet.pid"
        os.kill(int(record.read_text(encoding="utf-8").split()[0]), signal.SIGKILL)
        # A process that is just ending still looks alive to the lab.
        record.unlink()
        lab("kube-up")

    return restart
