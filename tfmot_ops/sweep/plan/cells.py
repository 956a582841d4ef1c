"""Which cells there are, what they need, and in which order and company they run. Loads no TensorFlow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path

DEFAULT_RECIPES = ("wi8_ai8", "sparse50_wi8_ai8")
#: Share of a machine's or a container's memory that cells may take together; the rest is for who runs them.
MEMORY_SHARE = 0.85
_GIB = 2.0**30


@dataclass(frozen=True)
class Cost:
    """What a cell is known to need; the defaults are for one that never ran.

    Attributes:
        cpu_s: CPU seconds.
        memory_bytes: peak resident memory.
    """

    cpu_s: float = 90.0
    memory_bytes: float = 4 * _GIB


class Weight(StrEnum):
    """Weight class of a cell: in a DAG each is a mapped group of its own, with its own pool slots and memory."""

    LIGHT = "light"
    MEDIUM = "medium"
    HEAVY = "heavy"

    @property
    def memory_gib(self) -> int:
        """GiB that a container or pod needs for any shard of this class.

        The largest cell, ConvNeXtXLarge, held 17.0 and may hold 18 by default, which is MEMORY_SHARE of 21.2.
        """
        return {Weight.LIGHT: 4, Weight.MEDIUM: 8, Weight.HEAVY: 22}[self]

    @property
    def pool_slots(self) -> int:
        """Slots that a shard of this class takes where each stands for a step of 4 GiB or more, as in the chart."""
        return {Weight.LIGHT: 1, Weight.MEDIUM: 2, Weight.HEAVY: 4}[self]

    def slots_of(self, total: int, *, memory_bytes: float, cores: int) -> int:
        """Slots of a pool that a shard takes where all shards share one machine.

        Shards of any class that hold slots at the same time then fit its memory, and are no more than it has cores:
        one thread of many would run into a cell's time limit.

        Args:
            total: slots of the pool.
            memory_bytes: of the machine.
            cores: of the machine.
        """
        share = max(self.memory_gib * _GIB / memory_bytes, 1.0 / cores)
        return min(total, math.ceil(total * share))


def weight(cost: Cost) -> Weight:
    """The smallest class whose memory has room for such a cell; the largest for one that fits none."""
    fitting = (kind for kind in Weight if cost.memory_bytes <= MEMORY_SHARE * kind.memory_gib * _GIB)
    return next(fitting, Weight.HEAVY)


def machine_bytes() -> float:
    """Memory of this machine, or of the container it is in."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, float(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # not there, or `max`
            continue
    return total


@dataclass(frozen=True)
class Shard:
    """Cells of one recipe that one task runs, one after the other.

    Attributes:
        label: names it in the UI: `wi8_ai8 light 1: DenseNet121 .. MobileNet`, the first and the last of all cells of
            this class that the alphabet has between them.
        weight: the class of all of its cells.
        recipe: its name.
        architectures: their names.
    """

    label: str
    weight: Weight
    recipe: str
    architectures: tuple[str, ...]


def by_cost(names: Iterable[str], costs: Mapping[str, Cost]) -> list[str]:
    """Longest first, so that no long one is left alone at the end."""
    return sorted(names, key=lambda name: (-costs.get(name, Cost()).cpu_s, name))


def shards(
    architectures: Iterable[str], recipes: Iterable[str], costs: Mapping[str, Cost], *, shard_s: float = 900.0
) -> list[Shard]:
    """Deal cells into shards: the alphabet of each recipe and class, cut where the parts cost about the same.

    Args:
        architectures: names.
        recipes: names.
        costs: architecture -> what its cells need.
        shard_s: CPU seconds that a shard holds, about; a pod's start and TensorFlow's import are paid once a shard,
            and what an evicted pod loses is no more than the cell it was at.
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
    """Names in their order, in parts of about equal cost; none is empty."""
    needs = [costs.get(name, Cost()).cpu_s for name in names]
    total = sum(needs) or 1.0
    count = max(1, min(len(names), round(total / shard_s)))
    part_of, before = {}, 0.0
    for name, need in zip(names, needs, strict=True):
        # By its middle, so that a cell goes to the part that has more of it.
        part_of[name] = int((before + need / 2) / total * count)
        before += need
    return [tuple(part) for _, part in groupby(names, part_of.__getitem__)]


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"


def pick(waiting: Sequence[Cost], running: Sequence[Cost], *, jobs: int, memory_bytes: float) -> int | None:
    """Index of the cell to start next, None to wait.

    The first that fits into the memory that is left, at most `jobs` at once. One that never fits runs alone.
    """
    if not waiting or len(running) >= jobs:
        return None
    left = memory_bytes - sum(cost.memory_bytes for cost in running)
    fitting = next((index for index, cost in enumerate(waiting) if cost.memory_bytes <= left), None)
    if fitting is None and not running:
        return 0
    return fitting
