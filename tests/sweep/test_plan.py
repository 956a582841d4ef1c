"""Which shards there are, what they hold, and what they take of where they run."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tfmot_ops.runners import DockerRunner, KubernetesRunner
from tfmot_ops.sweep.judge.expected import costs, read_expected
from tfmot_ops.sweep.plan.cells import MEMORY_SHARE, Cost, Weight, shards, weight

GIB = 2**30


def known(count: int = 40) -> dict[str, Cost]:
    return {f"N{i:02}": Cost(cpu_s=100 + 37 * i % 90, memory_bytes=(1 + i % 12) * GIB) for i in range(count)}


def test_shards_hold_every_cell_once_and_one_weight_class() -> None:
    dealt = shards(known(), ("r", "s"), known(), shard_s=600)
    cells = [(name, shard.recipe) for shard in dealt for name in shard.architectures]
    assert sorted(cells) == sorted((name, recipe) for name in known() for recipe in ("r", "s"))
    assert all({weight(known()[name]) for name in shard.architectures} == {shard.weight} for shard in dealt)
    assert {shard.weight for shard in dealt} == set(Weight)
    assert len({shard.label for shard in dealt}) == len(dealt)


def test_a_label_says_what_a_shard_holds() -> None:
    dealt = shards(reversed(known()), ("r",), known(), shard_s=300)
    for kind in Weight:
        group = [shard for shard in dealt if shard.weight is kind]
        assert len(group) > 1
        # One after the other in the alphabet, so that a span holds the cells of no other shard.
        assert all(one.architectures[-1] < next_.architectures[0] for one, next_ in pairwise(group))
        for number, shard in enumerate(group, 1):
            first, last = shard.architectures[0], shard.architectures[-1]
            span = first if first == last else f"{first} .. {last}"
            assert shard.label == f"r {kind.value} {number}: {span}"


def test_shards_of_a_class_cost_about_the_same() -> None:
    light = {name: Cost(cost.cpu_s, GIB) for name, cost in known().items()}
    needs = [sum(light[name].cpu_s for name in shard.architectures) for shard in shards(light, ("r",), light)]
    assert len(needs) == round(sum(needs) / 900)
    assert max(needs) - min(needs) <= 2 * max(cost.cpu_s for cost in light.values())


@pytest.mark.parametrize(
    ("needs", "parts"),
    [
        ({}, []),
        ({"a": 0.0, "b": 0.0}, [("a", "b")]),
        ({"a": 5000.0, "b": 1.0}, [("a",), ("b",)]),
        ({"a": 1.0, "b": 9000.0, "c": 1.0}, [("a",), ("b",), ("c",)]),
    ],
    ids=["nothing", "free", "dear-first", "dear-between"],
)
def test_no_shard_is_empty(needs, parts) -> None:
    light = {name: Cost(cpu_s, GIB) for name, cpu_s in needs.items()}
    assert [shard.architectures for shard in shards(light, ("r",), light)] == parts


def test_every_expected_cell_fits_the_memory_of_its_class() -> None:
    for cost in costs(read_expected()).values():
        assert cost.memory_bytes <= MEMORY_SHARE * weight(cost).memory_gib * GIB
    assert weight(Cost(memory_bytes=3.5 * GIB)) is Weight.MEDIUM, "85 % of a container of 4 GiB are 3.4"
    assert weight(Cost(memory_bytes=99 * GIB)) is Weight.HEAVY


@pytest.mark.parametrize(
    ("total", "gib", "cores", "slots"),
    [
        (128, 64, 16, {"light": 8, "medium": 16, "heavy": 44}),
        (128, 64, 2, {"light": 64, "medium": 64, "heavy": 64}),
        (128, 16, 2, {"light": 64, "medium": 64, "heavy": 128}),
        (4, 64, 16, {"light": 1, "medium": 1, "heavy": 2}),
    ],
    ids=["large", "two-cores", "small", "small-pool"],
)
def test_shards_that_share_a_machine_fit_it(total, gib, cores, slots) -> None:
    taken = {kind.value: kind.slots_of(total, memory_bytes=gib * GIB, cores=cores) for kind in Weight}
    assert taken == slots
    for kind in Weight:
        at_once = total // taken[kind.value]
        assert at_once == 1 or at_once * kind.memory_gib <= gib
        assert at_once <= cores


@pytest.mark.parametrize(
    ("runner", "pool", "slots"),
    [("local", "128", None), ("kubernetes", "128", [1, 2, 4]), ("docker", "3", [1, 2, 3])],
)
def test_no_shard_waits_for_more_slots_than_there_are(monkeypatch, tmp_path, runner, pool, slots) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT", pool)
    monkeypatch.setenv("TFMOT_OPS_RUNNER", runner)
    from tfmot_ops.operators.sweep import shard_resources

    taken = [shard_resources(kind) for kind in Weight]
    assert [each["memory_gib"] for each in taken] == [4, 8, 22]
    found = [each["pool_slots"] for each in taken]
    assert found == slots if slots else found == sorted(found)
    assert all(1 <= each <= int(pool) for each in found)


def test_a_container_gets_at_least_the_memory_of_its_shard() -> None:
    assert DockerRunner().with_memory(4).memory == "4g"
    assert DockerRunner().with_memory(22).memory == "22528m"
    assert DockerRunner(memory="32g").with_memory(22).memory == "32g"


def test_a_pod_gets_at_least_the_memory_of_its_shard() -> None:
    small = KubernetesRunner()
    assert small.with_memory(4).resources == small.resources
    assert small.with_memory(22).resources == {
        "requests": {"cpu": "1", "memory": "11264Mi"},
        "limits": {"cpu": "4", "memory": "22528Mi"},
    }
    large = KubernetesRunner(resources={"limits": {"memory": "32Gi"}})
    assert large.with_memory(22).resources == large.resources
    unbound = KubernetesRunner(resources={"requests": {"memory": "2Gi"}})
    assert unbound.with_memory(22).resources == unbound.resources
