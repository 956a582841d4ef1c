"""Ways to fail, in each place: the right state, a reason that a person understands, and nothing left over."""

import json
import time
from datetime import UTC, datetime

import pytest

pytestmark = pytest.mark.timeout(1800)

#: Case -> what its log has to say, in one of the places' words.
REASONS = {
    "image": ("no-such-image:1",),
    "command": ("options.model: unknown model name",),
    "memory": ("OOMKilled", "out of memory"),  # the second where the engine does not tell
    "deadline": ("DeadlineExceeded", "ran longer than the runner's deadline_s"),
    "timeout": ("AirflowTaskTimeout", "execution_timeout deadline"),
    "gpu": ("Insufficient nvidia.com/gpu",),
}
CASES = [
    *(f"docker_{case}" for case in ("image", "command", "memory", "deadline", "timeout")),
    *(f"{place}_{case}" for place in ("pod", "deferred") for case in REASONS),
]
# Seconds from the order to end a step until its container or pod is gone, and until Airflow gives that order: at the
# next heartbeat, which is late where everything is.
GONE_S, NOTICE_S = 10.0, 30.0


@pytest.fixture(scope="module")
def runs(airflow):
    """Run of each case; all are started at once, as most of their time is waiting."""
    return {case: airflow.trigger(case) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_it_fails_for_the_reason_it_says(airflow, runs, case):
    assert airflow.end_of(case, runs[case]) == "failed"
    log = airflow.log(case, runs[case])
    assert any(reason in log for reason in REASONS[case.partition("_")[2]]), log[-4000:]
    # An exit code 2 is not retried.
    assert airflow.task(case, runs[case])["try_number"] == 1


def test_nothing_is_left_of_them(airflow, runs, containers, pods):
    for case, run in runs.items():
        airflow.end_of(case, run)
    assert (containers(), pods()) == ([], [])


@pytest.mark.parametrize("place", ["pod", "deferred"])
def test_a_gpu_that_no_node_offers_falls_back_where_the_runner_says_so(airflow, place, pods):
    run = airflow.trigger(f"{place}_fallback")
    assert airflow.end_of(f"{place}_fallback", run) == "success", airflow.log(f"{place}_fallback", run)[-4000:]
    log = airflow.log(f"{place}_fallback", run)
    assert "Insufficient nvidia.com/gpu" in log
    assert "falls back to the CPU" in log
    assert pods() == []


def gone_within(listed, seconds):
    began = time.monotonic()
    while listed():
        assert time.monotonic() - began < seconds, f"still there after {seconds:.0f} s: {listed()}"
        time.sleep(0.2)


@pytest.mark.parametrize("place", ["docker", "pod", "deferred"])
def test_a_task_marked_failed_takes_its_step_along(airflow, started, place, containers, pods, processes):  # noqa: PLR0917 - pytest gives fixtures by name
    run = started(f"{place}_long")
    airflow.mark_failed(f"{place}_long", run)
    gone_within(containers if place == "docker" else pods, NOTICE_S + GONE_S)
    # A pod is only asked to go by then.
    gone_within(processes, GONE_S)
    gone = datetime.now(UTC)
    assert airflow.end_of(f"{place}_long", run) == "failed"
    log = airflow.log(f"{place}_long", run).splitlines()
    orders = [json.loads(line)["timestamp"] for line in log if "Terminating process" in line]
    # A deferred task has no process to be told; there the triggerer deletes the pod.
    assert bool(orders) == (place != "deferred")
    assert all((gone - datetime.fromisoformat(order)).total_seconds() < GONE_S for order in orders)


@pytest.fixture
def delete(engine, cluster, containers, pods):
    """A function that deletes the one step that runs in a place, as somebody would who does not know Airflow."""

    def delete(place):
        if place == "docker":
            (container,) = containers()
            engine.api.remove_container(container, force=True, v=True)
        else:
            (pod,) = pods()
            cluster.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0)

    return delete


@pytest.mark.parametrize("place", ["docker", "pod", "deferred"])
def test_a_step_that_somebody_else_deleted(airflow, started, delete, place, containers, pods):  # noqa: PLR0917 - pytest gives fixtures by name
    run = started(f"{place}_long")
    delete(place)
    assert airflow.end_of(f"{place}_long", run) == "failed"
    log = airflow.log(f"{place}_long", run)
    assert "is gone" in log or "was killed by SIGKILL" in log, log[-4000:]
    assert (containers(), pods()) == ([], [])
