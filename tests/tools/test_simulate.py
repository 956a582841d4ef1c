"""The planning of many cells, with recorded durations instead of cells."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tfmot_ops import recipes
from tfmot_ops.contract import CompatResult, Status
from tfmot_ops.sweep.plan.cells import Cost
from tfmot_ops.sweep.run import matrix
from tfmot_ops.sweep.run.limits import Ended
from tools.simulate import (
    MAX_MAP_LENGTH,
    RECIPES,
    WORKER_BYTES,
    fake_results,
    made_up,
    main,
    makespan,
    report,
    shard_makespan,
)

GIB = 2**30
# CPU seconds and peaks of cells as a matrix of sparse50_wi8_ai8 recorded them.
RECORDED = [Cost(30.0, 1.0 * GIB), Cost(50.0, 1.1 * GIB), Cost(120.0, 2.1 * GIB), Cost(180.0, 5.5 * GIB)]


def test_pieces_are_packed() -> None:
    work = [Cost(10, 6), Cost(10, 6), Cost(5, 2), Cost(5, 2)]
    two = makespan(work, workers=2, memory_bytes=8)
    # A large one has a small one beside it, never another large one.
    assert (two.makespan_s, two.bound_s, two.most_at_once, two.peak_bytes) == (20, 15, 2, 8)
    assert makespan(work, workers=1, memory_bytes=8).makespan_s == 30
    assert makespan([Cost(3, 100)], workers=4, memory_bytes=8).makespan_s == 3
    assert makespan([], workers=4, memory_bytes=8).makespan_s == 0


@pytest.mark.parametrize("workers", [1, 8, 64])
def test_a_thousand_architectures_by_five_recipes(workers) -> None:
    known = made_up(RECORDED, 1000)
    work = sorted((cost for cost in known.values() for _ in RECIPES), key=lambda cost: -cost.cpu_s)
    outcome = makespan(work, workers=workers, memory_bytes=workers * WORKER_BYTES)
    assert len(work) == 5000
    assert outcome.most_at_once <= workers
    assert outcome.peak_bytes <= workers * WORKER_BYTES
    assert outcome.makespan_s <= 1.05 * outcome.bound_s
    mapped, entries = shard_makespan(list(known), RECIPES, known, workers=workers, start_s=30)
    assert entries <= MAX_MAP_LENGTH
    assert outcome.makespan_s < mapped.makespan_s < 1.6 * outcome.makespan_s


def test_their_report_is_made(tmp_path) -> None:
    like = CompatResult(architecture="a", recipe="r", status=Status.OK, metrics={"sqnr_db": 20.0, "build_s": 1.0})
    took = report(fake_results(made_up(RECORDED, 1000), RECIPES, like), tmp_path)
    assert took["cells"] == 5000
    assert took["page_bytes"] < 10e6


def test_the_scheduler_itself_gets_through_many(tmp_path, monkeypatch) -> None:
    known = made_up(RECORDED, 60)
    lock, memory = threading.Lock(), {"taken": 0.0, "most": 0.0}

    def fake(command, *_):
        name, answer = command[3], Path(command[5])
        with lock:
            memory["taken"] += known[name].memory_bytes
            memory["most"] = max(memory.values())
        recipe = recipes.Recipe.model_validate_json(Path(command[4]).read_text()).name
        answer.write_text(CompatResult(architecture=name, recipe=recipe, status=Status.OK).model_dump_json())
        with lock:
            memory["taken"] -= known[name].memory_bytes
        return Ended(0, None, known[name].memory_bytes, known[name].cpu_s)

    monkeypatch.setattr(matrix, "run_limited", fake)
    cells = [matrix.Cell(name, recipes.decode(recipe)) for recipe in RECIPES for name in known]
    runner = matrix.Matrix(tmp_path, jobs=8, memory_bytes=8 * WORKER_BYTES, costs=known)
    results = runner.run(cells)
    assert [result.cell for result in results] == [cell.name for cell in cells]
    assert all(result.status is Status.OK for result in results)
    assert memory["most"] <= 8 * WORKER_BYTES
    again = runner.run(cells)
    assert all(result.cached for result in again)


def test_the_command(tmp_path, capsys) -> None:
    cell = CompatResult(
        architecture="MobileNet",
        recipe="wi8_ai8",
        status=Status.OK,
        metrics={"build_s": 30.0, "peak_memory_bytes": 1.0 * GIB},
    )
    (tmp_path / "MobileNet.json").write_text(cell.model_dump_json())
    assert main(["--recorded", str(tmp_path), "--architectures", "20", "--workers", "1,4"]) == 0
    text = capsys.readouterr().out
    assert "20 architectures x 5 recipes after 1 recorded cells" in text
    assert "\n4 workers: " in text
    assert "report: 100 cells" in text
