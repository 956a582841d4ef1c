"""The expected outcome of each cell, kept in `expected.yaml`; a sweep is judged by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from tfmot_ops.contract import CompatResult, Judgement, Stage, Status
from tfmot_ops.contract.document import Document
from tfmot_ops.sweep.plan.cells import Cost
from tfmot_ops.system import files

PATH = Path(__file__).with_name("expected.yaml")
_HEADER = """# What every cell of the compat matrix comes to, and what it needs; `tfmot-ops sweep --accept` writes it.
# A cell that is not named here is new.
"""
_ORDER = list(Stage)


class Failure(Document):
    """A cell that is known to fail.

    Attributes:
        stage: the first that fails; None when its process ends without saying.
        error_class: see `tfmot_ops.sweep.run.error_classes`.
        reason: why it is so, in a sentence.
    """

    stage: Stage | None = None
    error_class: str
    reason: str


class Expectation(Document):
    """What is expected of one architecture.

    Attributes:
        cpu_s: CPU seconds of its dearest cell.
        memory_gib: its largest peak of resident memory.
        passes: recipes whose cells pass.
        fails: recipe -> how its cell fails.
    """

    cpu_s: float = Field(ge=0.0)
    memory_gib: float = Field(ge=0.0)
    passes: tuple[str, ...] = ()
    fails: dict[str, Failure] = Field(default_factory=dict)


Expected = dict[str, Expectation]


def read_expected(path: Path = PATH) -> Expected:
    """Architecture -> what is expected of it."""
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}
    return {name: Expectation.model_validate(entry) for name, entry in document.items()}


def write_expected(expected: Expected, path: Path = PATH) -> None:
    """Write the file, complete or not at all."""
    document = {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in sorted(expected.items())}
    files.write(path, _HEADER + yaml.safe_dump(document, sort_keys=False, width=120))


def costs(expected: Expected) -> dict[str, Cost]:
    """Architecture -> what its cells need."""
    return {name: Cost(entry.cpu_s, entry.memory_gib * 2**30) for name, entry in expected.items()}


def accept(expected: Expected, results: Iterable[CompatResult]) -> Expected:
    """What is expected from now on, when these results are right; what they do not speak of stays.

    Costs are those of the dearest recipe: of these results alone where they speak of every recipe that is known.
    """
    by_architecture: dict[str, list[CompatResult]] = {}
    for result in results:
        by_architecture.setdefault(result.architecture, []).append(result)
    new = dict(expected)
    for name, cells in by_architecture.items():
        old = new.get(name, Expectation(cpu_s=0.0, memory_gib=0.0))
        passes, fails = set(old.passes), dict(old.fails)
        before = [] if passes | set(fails) <= {cell.recipe for cell in cells} else [old]
        for cell in cells:
            passes.discard(cell.recipe)
            known = fails.pop(cell.recipe, None)
            if cell.status is Status.OK:
                passes.add(cell.recipe)
            else:
                reason = known.reason if known else _first_line(cell)
                fails[cell.recipe] = Failure(
                    stage=cell.failed_stage, error_class=cell.error_class or "unknown", reason=reason
                )
        new[name] = Expectation(
            cpu_s=max([each.cpu_s for each in before] + [round(cpu_seconds(cell), 1) for cell in cells]),
            memory_gib=max([each.memory_gib for each in before] + [_peak_gib(cell) for cell in cells]),
            passes=tuple(sorted(passes)),
            fails=fails,
        )
    return new


def _peak_gib(result: CompatResult) -> float:
    return round(result.metrics.get("peak_memory_bytes", 0.0) / 2**30, 2)


def cpu_seconds(result: CompatResult) -> float:
    """CPU seconds of all stages of a cell."""
    return sum(result.metrics.get(f"{stage.value}_s", 0.0) for stage in Stage)


def judge(
    asked: Iterable[tuple[str, str]],
    results: Iterable[CompatResult],
    expected: Expected,
    last_good: Mapping[str, CompatResult] | None = None,
) -> Judgement:
    """Compare a sweep with what was expected and, where nothing is, with what passed before.

    A failure that is expected may not come earlier or in another class (a regression). One that comes later is new:
    the cell got further than anybody knew.

    Args:
        asked: (architecture, recipe) of every cell there has to be.
        results: what came.
        expected: see `read_expected`. It has the last word, so that an accepted failure is none any more.
        last_good: cell -> its result in the latest sweep that it passed, see `tfmot_ops.sweep.whole.last_good`.
    """
    found = {result.cell: result for result in results}
    judged: dict[str, dict[str, str]] = {"regressions": {}, "improvements": {}, "new": {}, "missing": {}}
    for architecture, recipe in asked:
        cell = f"{architecture}/{recipe}"
        if cell not in found:
            judged["missing"][cell] = "left no result"
            continue
        verdict = _verdict(found[cell], expected.get(architecture), (last_good or {}).get(cell))
        if verdict is not None:
            judged[verdict[0]][cell] = verdict[1]
    return Judgement(**judged)


def _verdict(result: CompatResult, expected: Expectation | None, before: CompatResult | None) -> tuple[str, str] | None:
    """(kind, sentence), None for a cell that is as expected."""
    failure = expected.fails.get(result.recipe) if expected else None
    passes = expected is not None and result.recipe in expected.passes
    passes = passes or (before is not None and before.status is Status.OK)
    if result.status is Status.OK:
        if failure is not None:
            return "improvements", f"was expected to fail ({failure.error_class}) and passes"
        return None if passes else ("new", "passes")
    told = f"{result.error_class or 'unknown'} at {result.failed_stage or 'no stage'}: {_first_line(result)}"
    if failure is not None:
        return _otherwise(result, failure, told)
    return ("regressions", told) if passes else ("new", f"fails, {told}")


def _otherwise(result: CompatResult, failure: Failure, told: str) -> tuple[str, str] | None:
    """(kind, sentence) of a failure that is not the expected one; None for that one."""
    stage, known = _index(result.failed_stage), _index(failure.stage)
    expected = f"than {failure.error_class} at {failure.stage or 'no stage'}, {told}"
    if stage < known:
        return "regressions", f"fails earlier {expected}"
    if stage > known:
        return "new", f"fails later {expected}"
    if (result.error_class or "unknown") != failure.error_class:
        return "regressions", f"fails otherwise {expected}"
    return None


def _index(stage: Stage | None) -> int:
    return -1 if stage is None else _ORDER.index(stage)


def _first_line(result: CompatResult) -> str:
    return result.message.partition("\n")[0][:160]
