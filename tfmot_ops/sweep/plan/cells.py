"""Costs of cells, weight classes, shards, and the order in which cells run. Loads no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

DEFAULT_RECIPES = ("wi8_ai8", "sparse50_wi8_ai8")
#: Share of a machine's or container's memory that cells may use together; the rest is for the process that runs them.
MEMORY_SHARE = 0.85
_GIB = 2.0**30


@dataclass(frozen=True)
class Cost:
    """CPU time and memory that a cell needs; the defaults are for a cell that never ran.

    Attributes:
        cpu_s: CPU seconds.
        memory_bytes: peak resident memory.
    """

    cpu_s: float = 90.0
    memory_bytes: float = 4 * _GIB


class Weight(StrEnum):
    """Class of cells by memory; in a DAG each class is one mapped task with its own pool slots and memory."""

    LIGHT = "light"
    MEDIUM = "medium"
    HEAVY = "heavy"

    @property
    def memory_gib(self) -> int:
        """Memory in GiB that a container or pod needs for any shard of this class.

        The largest cell, ConvNeXtXLarge, used 17.0 GiB; its default limit is 18 GiB, which is MEMORY_SHARE of 21.2.
        """
        return {Weight.LIGHT: 4, Weight.MEDIUM: 8, Weight.HEAVY: 22}[self]

    @property
    def pool_slots(self) -> int:
        """Pool slots of a shard of this class, if one slot stands for 4 GiB or more, as in the Helm chart."""
        return {Weight.LIGHT: 1, Weight.MEDIUM: 2, Weight.HEAVY: 4}[self]

    def slots_of(self, total: int, *, memory_bytes: float, cores: int) -> int:
        """Pool slots of a shard of this class, if all shards run on one machine.

        Concurrent shards of all classes then fit the machine's memory, and there are at most as many as cores: with
        more, cells would run into their time limit.

        Args:
            total: number of slots of the pool.
            memory_bytes: memory of the machine in bytes.
            cores: number of cores of the machine.
        """
        share = max(self.memory_gib * _GIB / memory_bytes, 1.0 / cores)
        return min(total, math.ceil(total * share))


def weight(cost: Cost) -> Weight:
    """The smallest class with enough memory for a cell of this cost; the largest class if none has enough."""
    fitting = (kind for kind in Weight if cost.memory_bytes <= MEMORY_SHARE * kind.memory_gib * _GIB)
    return next(fitting, Weight.HEAVY)


@dataclass(frozen=True)
class Shard:
    """A group of cells of one recipe and weight class that one task runs, one after the other.

    Attributes:
        label: name in Airflow's UI, with the first and last architecture of the shard in alphabetical order:
            `wi8_ai8 light 1: DenseNet121 .. MobileNet`.
        weight: weight class of the cells.
        recipe: name of the recipe.
        architectures: names of the architectures.
    """

    label: str
    weight: Weight
    recipe: str
    architectures: tuple[str, ...]


def by_cost(names: Iterable[str], costs: Mapping[str, Cost]) -> list[str]:
    """Names sorted by descending CPU time: a slow cell that starts last would prolong the sweep."""
    return sorted(names, key=lambda name: (-costs.get(name, Cost()).cpu_s, name))


def shards(
    architectures: Iterable[str], recipes: Iterable[str], costs: Mapping[str, Cost], *, shard_s: float = 900.0
) -> list[Shard]:
    """Distribute cells to shards: the sorted names of each recipe and class are cut into parts of about equal cost.

    Args:
        architectures: names.
        recipes: names.
        costs: architecture -> CPU time and memory of its cells.
        shard_s: approximate CPU seconds per shard. Each shard pays for one pod's start and one import of TensorFlow; an
            evicted pod loses only the running cell.
    """
    members: dict[Weight, list[str]] = {kind: [] for kind in Weight}
    for name in sorted(set(architectures)):
        members[weight(costs.get(name, Cost()))].append(name)
    parts = {kind: _cut(names, costs, shard_s) for kind, names in members.items()}
    return [
        Shard(f"{recipe} {kind.value} {number}: {_span(part)}", kind, recipe, part)
        for recipe in recipes
        for kind in Weight
        for number, part in enumerate(parts[kind], 1)
    ]


def _cut(names: Sequence[str], costs: Mapping[str, Cost], shard_s: float) -> list[tuple[str, ...]]:
    """Cut the names, in their order, into non-empty parts of about equal cost."""
    needs = [costs.get(name, Cost()).cpu_s for name in names]
    total = sum(needs) or 1.0
    count = max(1, min(len(names), round(total / shard_s)))
    part_of, before = {}, 0.0
    for name, need in zip(names, needs, strict=True):
        # By the middle of the cell's cost interval, so that a cell goes to the part that contains more of it.
        part_of[name] = int((before + need / 2) / total * count)
        before += need
    return [tuple(part) for _, part in groupby(names, part_of.__getitem__)]


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"


def pick(waiting: Sequence[Cost], running: Sequence[Cost], *, jobs: int, memory_bytes: float) -> int | None:
    """Index of the waiting cell to start next; None means to wait until a running cell ends.

    Picks the first cell that fits into the free memory, with at most `jobs` cells at once. A cell that needs more than
    the whole memory runs alone.
    """
    if not waiting or len(running) >= jobs:
        return None
    left = memory_bytes - sum(cost.memory_bytes for cost in running)
    fitting = next((index for index, cost in enumerate(waiting) if cost.memory_bytes <= left), None)
    if fitting is None and not running:
        return 0
    return fitting
