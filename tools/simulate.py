"""Simulates a sweep of many cells on many workers: the real planning with recorded durations, in virtual time.

`python -m tools.simulate [--recorded FOLDER]`: what 1,000 architectures x 5 recipes take on 1, 8 and 64
workers, and whether their report can be made.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tfmot_ops.contract import CompatResult, SweepResult
from tfmot_ops.errors import SpecError
from tfmot_ops.sweep.judge.expected import costs, cpu_seconds, judge, read_expected
from tfmot_ops.sweep.plan.cells import Cost, by_cost, pick, shards
from tfmot_ops.sweep.report.page import write_page

_GIB = 2.0**30
RECIPES = ("wi8_ai8", "sparse50_wi8_ai8", "sparse80_wi8_ai8", "sparse2of4_wi8_ai8", "wi8_afp32")
#: Memory per worker: common machines have 8 GiB per core.
WORKER_BYTES = 8 * _GIB
#: What a pool slot stands for, see `Weight.pool_slots`.
_SLOT_BYTES = 4 * _GIB
#: Spread of the random factor between the cost of a generated architecture and that of a recorded architecture.
_SPREAD = (0.8, 1.25)
#: Airflow's `core.max_map_length`: entries that one mapped task may expand to.
MAX_MAP_LENGTH = 1024


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation.

    Attributes:
        makespan_s: from the first start to the last end.
        bound_s: no schedule is shorter: all work shared evenly, or the longest single piece.
        most_at_once: pieces that ran at the same time, at most.
        peak_bytes: memory that was taken at the same time, at most.
    """

    makespan_s: float
    bound_s: float
    most_at_once: int
    peak_bytes: float


def makespan(work: Sequence[Cost], *, workers: int, memory_bytes: float) -> Outcome:
    """Run pieces of work as the sweep does, in virtual time.

    Args:
        work: what each needs, in the order in which they wait.
        workers: pieces at once, at most.
        memory_bytes: what all that run may take.
    """
    waiting = list(work)
    running: list[tuple[float, int, Cost]] = []
    clock = peak = 0.0
    most = number = 0
    while waiting or running:
        taken = [cost for _, _, cost in running]
        index = pick(waiting, taken, jobs=workers, memory_bytes=memory_bytes)
        if index is None:
            clock, _, _ = heapq.heappop(running)
            continue
        cost = waiting.pop(index)
        number += 1
        heapq.heappush(running, (clock + cost.cpu_s, number, cost))
        most = max(most, len(running))
        peak = max(peak, sum(each.memory_bytes for _, _, each in running))
    bound = max(sum(each.cpu_s for each in work) / workers, max((each.cpu_s for each in work), default=0.0))
    return Outcome(clock, bound, most, peak)


def shard_makespan(
    architectures: Sequence[str], recipes: Sequence[str], known: Mapping[str, Cost], *, workers: int, start_s: float
) -> tuple[Outcome, int]:
    """The same through a DAG's shards, each of which takes its class's pool slots.

    Args:
        architectures: names.
        recipes: names.
        known: architecture -> what its cells need.
        workers: shards at once; each brings slots for its memory.
        start_s: what a shard's process or pod needs before its first cell.

    Returns:
        The outcome, and the entries of the largest mapped group.
    """
    dealt = shards(architectures, recipes, known)
    work = [
        Cost(start_s + sum(known[name].cpu_s for name in shard.architectures), shard.weight.pool_slots * _SLOT_BYTES)
        for shard in dealt
    ]
    groups = Counter((shard.recipe, shard.weight) for shard in dealt)
    return makespan(work, workers=workers, memory_bytes=workers * WORKER_BYTES), max(groups.values())


def made_up(recorded: Sequence[Cost], count: int, seed: int = 0) -> dict[str, Cost]:
    """Name -> cost of so many architectures, each drawn around a recorded one."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    made = {}
    for index in range(count):
        like = recorded[index % len(recorded)]
        made[f"Architecture{index:04}"] = Cost(
            like.cpu_s * draw.uniform(*_SPREAD), like.memory_bytes * draw.uniform(*_SPREAD)
        )
    return made


def read_recorded(folder: Path | None) -> list[CompatResult]:
    """The results of cells that ran, one JSON file each, anywhere below a folder."""
    if folder is None:
        return []
    return [CompatResult.model_validate_json(path.read_text("utf-8")) for path in sorted(folder.rglob("*.json"))]


def fake_results(known: Mapping[str, Cost], recipes: Iterable[str], like: CompatResult) -> list[CompatResult]:
    """What the fake runner gives for each cell: a recorded result with the cell's own cost."""
    return [
        like.model_copy(
            update={
                "architecture": name,
                "recipe": recipe,
                "family": f"family{index // 10:03}",
                "metrics": {**like.metrics, "peak_memory_bytes": cost.memory_bytes, "wall_s": cost.cpu_s},
            }
        )
        for recipe in recipes
        for index, (name, cost) in enumerate(known.items())
    ]


def report(results: Sequence[CompatResult], folder: Path) -> dict[str, float]:
    """Judge and report so many cells for real; what that took, in seconds, and how large the files are, in bytes."""
    start = time.process_time()
    judgement = judge([(each.architecture, each.recipe) for each in results], results, {})
    sweep = SweepResult(
        sweep_id="simulated", started_at=datetime.now(UTC), duration_s=0.0, cells=tuple(results), judgement=judgement
    )
    text = sweep.model_dump_json()
    read = SweepResult.model_validate_json(text)
    page = folder / "page.html"
    write_page(page, read, [])
    seconds = time.process_time() - start
    return {"cells": read.passed, "s": seconds, "json_bytes": len(text), "page_bytes": page.stat().st_size}


def main(arguments: Iterable[str]) -> int:
    """Print the makespans and what the report took."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate", description=__doc__)
    parser.add_argument("--recorded", type=Path, help="folder with results of cells; what expected.yaml says without")
    parser.add_argument("--architectures", type=int, default=1000)
    parser.add_argument("--workers", default="1,8,64", help="numbers, separated by commas")
    parser.add_argument("--start-s", type=float, default=30.0, help="what a shard needs before its first cell")
    asked = parser.parse_args(list(arguments))
    results = read_recorded(asked.recorded)
    recorded = [Cost(cpu_seconds(each), each.metrics.get("peak_memory_bytes", 0.0)) for each in results]
    recorded = recorded or list(costs(read_expected()).values())
    if not recorded:
        raise SpecError(
            "no durations to simulate with",
            required="results of cells, or an expected.yaml that has costs",
            received=f"none in {asked.recorded or 'expected.yaml'}",
            remedy="run `tfmot-ops sweep`, then give its folder as --recorded",
        )
    known = made_up(recorded, asked.architectures)
    sys.stdout.write("\n".join(_lines(asked, recorded, known)) + "\n")
    like = results[0] if results else CompatResult(architecture="a", recipe="r", status="ok")
    with tempfile.TemporaryDirectory() as folder:
        took = report(fake_results(known, RECIPES, like), Path(folder))
    sys.stdout.write(
        f"report: {took['cells']:.0f} cells judged, written and read in {took['s']:.1f} CPU-s, JSON "
        f"{took['json_bytes'] / 1e6:.1f} MB, page {took['page_bytes'] / 1e6:.1f} MB\n"
    )
    return 0


def _lines(asked: argparse.Namespace, recorded: Sequence[Cost], known: Mapping[str, Cost]) -> Iterable[str]:
    total = len(RECIPES) * sum(cost.cpu_s for cost in known.values())
    yield (
        f"{len(known)} architectures x {len(RECIPES)} recipes after {len(recorded)} recorded cells: "
        f"{total / 3600:.1f} CPU-hours"
    )
    for workers in (int(each) for each in asked.workers.split(",")):
        start = time.process_time()
        work = [known[name] for name in by_cost(known, known) for _ in RECIPES]
        local = makespan(work, workers=workers, memory_bytes=workers * WORKER_BYTES)
        planned = time.process_time() - start
        mapped, entries = shard_makespan(list(known), RECIPES, known, workers=workers, start_s=asked.start_s)
        yield (
            f"{workers} workers: {local.makespan_s / 3600:.2f} h, {local.makespan_s / local.bound_s:.3f} of the bound, "
            f"peak {local.peak_bytes / _GIB:.0f} of {workers * WORKER_BYTES / _GIB:.0f} GiB, planned in {planned:.1f} "
            f"CPU-s; as mapped shards {mapped.makespan_s / 3600:.2f} h, largest group {entries} of {MAX_MAP_LENGTH}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
