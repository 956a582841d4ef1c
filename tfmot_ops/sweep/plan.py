"""Which cells there are, what they need, and in which order and company they run. Loads no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

DEFAULT_RECIPES = ("wi8_ai8", "sparse50_wi8_ai8")
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
    """Weight class of a cell: in a DAG each is a mapped group of its own, with its own pool slots."""

    LIGHT = "light"
    MEDIUM = "medium"
    HEAVY = "heavy"

    @property
    def pool_slots(self) -> int:
        """Slots that a shard of this class takes; a slot stands for some 4 GiB."""
        return {Weight.LIGHT: 1, Weight.MEDIUM: 2, Weight.HEAVY: 4}[self]


def weight(cost: Cost) -> Weight:
    """The class of a cell that needs so much memory: up to 4 GiB, up to 8, more."""
    if cost.memory_bytes <= 4 * _GIB:
        return Weight.LIGHT
    return Weight.MEDIUM if cost.memory_bytes <= 8 * _GIB else Weight.HEAVY


@dataclass(frozen=True)
class Shard:
    """Cells of one recipe that one task runs, one after the other.

    Attributes:
        label: names it in the UI: `wi8_ai8 light 1: MobileNet .. VGG16`.
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
    """Deal cells into shards.

    Args:
        architectures: names.
        recipes: names.
        costs: architecture -> what its cells need.
        shard_s: CPU seconds that a shard holds, about; a pod's start and TensorFlow's import are paid once a shard,
            and what an evicted pod loses is no more than the cell it was at.
    """
    names = list(architectures)
    result = []
    for recipe in recipes:
        for kind in Weight:
            members = by_cost((n for n in names if weight(costs.get(n, Cost())) is kind), costs)
            total = sum(costs.get(name, Cost()).cpu_s for name in members)
            count = min(len(members), max(1, round(total / shard_s))) if members else 0
            # Dealt in turns, so that each shard gets long and short ones.
            for index in range(count):
                dealt = tuple(members[index::count])
                span = dealt[0] if len(dealt) == 1 else f"{min(dealt)} .. {max(dealt)}"
                result.append(Shard(f"{recipe} {kind.value} {index + 1}: {span}", kind, recipe, dealt))
    return result


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
