"""The quota of the jobs namespace, and Airflow's pool, which launches no more steps than it admits."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from kubernetes.utils.quantity import parse_quantity
from rendering import SPEC, TRIAL, merged, one, render, values_of

from tfmot_ops.sweep.plan.cells import Weight

SLOTS = "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT"
FILES = {
    "default": values_of("values.yaml"),
    "minimal": merged(values_of("values-minimal.yaml"), TRIAL),
    "cpu": values_of("values-cpu.yaml"),
    "gpu": values_of("values-gpu.yaml"),
    "cpu-gpu": values_of("values-cpu.yaml", "values-gpu.yaml"),
}
# In a process of its own: Airflow makes its home where its environment says at import.
PODS = """
import json, sys
from kubernetes.client import ApiClient
from tfmot_ops.contract import StepSpec
from tfmot_ops.runners import KubernetesRunner, choose_runner

def pod(options, spec):
    runner = KubernetesRunner(**{**options, "kubernetes_conn_id": None})
    step = runner.start(StepSpec.model_validate(spec), None, print)
    return ApiClient().sanitize_for_serialization(step._operator.build_pod_request_obj(dry_run=True))

deployed, spec = json.loads(sys.argv[1])
specs = [{**spec, "device": device} for device in ("cpu", "gpu")]
pods = {name: [pod(options, each) for each in specs] for name, options in deployed.items()}
print("answer " + json.dumps(pods))
"""
#: Values, and how many steps they admit.
ADMITTED = {
    "limits": ({"jobs": {"quota": {"limits.memory": "50Gi"}}}, 6),  # of 8 Gi and 64 Mi
    "exactly": ({"jobs": {"quota": {"requests.cpu": "5050m"}}}, 5),  # of 1 and 0.01
    "a_little_less": ({"jobs": {"quota": {"requests.cpu": "5049m"}}}, 4),
    "smaller_steps": ({"runner": {"resources": {"limits": {"memory": "12Gi"}}}}, 7),
    "an_option": ({"runner": {"options": {"resources": {"limits": {"memory": "12Gi"}}}}}, 7),
    "a_request_is_the_limit": ({"runner": {"resources": {"requests": {"memory": None}}}}, 7),  # of 8 Gi and 16 Mi
    "a_limit_of_the_range": (
        {"jobs": {"quota": {"limits.cpu": "11"}}, "runner": {"resources": {"limits": {"cpu": None}}}},
        10,  # of 1 and 0.1
    ),
    "decimal_units": ({"jobs": {"quota": {"limits.memory": "87G"}}}, 10),  # of 8.66 G
    "fractions": ({"jobs": {"quota": {"requests.cpu": "5.5"}}}, 5),
    "alias": ({"jobs": {"quota": {"memory": "33Gi"}}}, 8),
    "gpus": (merged(FILES["gpu"], {"gpu": {"count": 2}, "jobs": {"quota": {"requests.nvidia.com/gpu": "9"}}}), 4),
    "another_thing": ({"jobs": {"quota": {"services": "0"}}}, 10),
    "no_quota": ({"jobs": {"quota": None}}, 128),
    "no_pods": ({"runner": {"name": "docker"}}, 128),
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PATH": path}


@pytest.fixture(scope="module")
def pods(environment):
    """Case -> its pods as Airflow's operator makes them, sidecar included, for a CPU and for a GPU."""
    options = {name: json.loads(_told(values)["TFMOT_OPS_RUNNER_OPTIONS"]) for name, values in FILES.items()}
    command = [sys.executable, "-c", PODS, json.dumps([options, SPEC.model_dump(mode="json")])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("answer ", 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_the_numbers_of_a_values_file_agree(case, pods):
    quota = one(render(FILES[case]), "ResourceQuota", "tfmot-ops")["spec"]["hard"]
    most = Counter()
    for pod in pods[case]:
        most |= _taken(pod)
    # What is taken at once by as many pods as there may be, of each resource that is bounded.
    needed = {name: int(quota["pods"]) * amount for name, amount in most.items()}
    assert {"requests.cpu", "requests.memory", "limits.memory"} <= quota.keys() <= needed.keys()
    assert {name: need for name, need in needed.items() if name in quota and need > parse_quantity(quota[name])} == {}
    assert _told(FILES[case])[SLOTS] == quota["pods"]


@pytest.mark.parametrize(("values", "steps"), ADMITTED.values(), ids=ADMITTED)
def test_airflow_launches_what_the_quota_admits(values, steps):
    assert _told(values)[SLOTS] == str(steps)


def test_the_smallest_pool_has_room_for_the_largest_shard():
    """One that asks for more slots than there are is never launched, and nothing says so."""
    assert max(weight.pool_slots for weight in Weight) <= min(int(_told(values)[SLOTS]) for values in FILES.values())
    assert _told({"jobs": {"quota": {"pods": str(Weight.HEAVY.pool_slots)}}})[SLOTS] == str(Weight.HEAVY.pool_slots)


@pytest.mark.slow
def test_a_migration_gives_airflows_pool_its_slots(environment):
    """The job's own command, on a fresh database and, as after an upgrade of the release, on the one that is there."""
    arguments = values_of("values.yaml")["airflow"]["migrateDatabaseJob"]["args"]
    database = Path(environment["AIRFLOW_HOME"], "airflow.db")
    for pods in ("6", "8"):
        told = _told({"jobs": {"quota": {"pods": pods}}})
        done = subprocess.run(
            arguments, env={**environment, **told}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        with closing(sqlite3.connect(database)) as connection:
            found = connection.execute("SELECT slots, include_deferred FROM slot_pool WHERE pool = 'default_pool'")
            assert found.fetchall() == [(int(pods), 1)]


def test_a_migration_without_the_charts_environment_says_so(environment, tmp_path):
    arguments = values_of("values.yaml")["airflow"]["migrateDatabaseJob"]["args"]
    (tmp_path / "airflow").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "airflow").chmod(0o700)
    path = os.pathsep.join([str(tmp_path), environment["PATH"]])
    done = subprocess.run(arguments, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert f"{SLOTS}: needs airflow.migrateDatabaseJob.applyCustomEnv" in done.stderr


def _told(values):
    """What Airflow's containers are told."""
    return one(render(values), "ConfigMap", "tfmot-ops-defaults")["data"]


def _taken(pod):
    """Resource of a quota -> what a pod takes of it, as Kubernetes counts."""
    taken = Counter({"pods": 1})
    for container in pod["spec"]["containers"]:
        resources = container["resources"]
        requests = {**resources["limits"], **resources["requests"]}
        taken.update({f"requests.{name}": parse_quantity(amount) for name, amount in requests.items()})
        taken.update({f"limits.{name}": parse_quantity(amount) for name, amount in resources["limits"].items()})
    return taken
