"""The expected result of each cell, stored in `expected.yaml`, and the comparison of a sweep with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from tfmot_ops.contract import CompatResult, Judgement, Stage, Status
from tfmot_ops.contract.document import Document
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.recipes.files import read_mapping
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
        stage: the stage that fails; None if the cell's process dies before it logs a stage.
        error_class: see `tfmot_ops.sweep.run.error_classes`.
        reason: why the cell fails, in one sentence.
    """

    stage: Stage | None = None
    error_class: str
    reason: str


class Expectation(Document):
    """The expected results of one architecture, and the resources that its cells need.

    Attributes:
        cpu_s: CPU time in seconds of the slowest cell.
        memory_gib: largest peak of resident memory of a cell, in GiB.
        passes: recipes whose cells pass.
        fails: recipe -> how its cell fails.
    """

    cpu_s: float = Field(ge=0.0)
    memory_gib: float = Field(ge=0.0)
    passes: tuple[str, ...] = ()
    fails: dict[str, Failure] = Field(default_factory=dict)


Expected = dict[str, Expectation]
_ENTRIES: TypeAdapter[Expected] = TypeAdapter(Expected)


def read_expected(path: Path = PATH) -> Expected:
    """Read expected.yaml: architecture -> its expected results; empty without a file.

    Raises:
        SpecError: the file cannot be read, or holds something else.
    """
    if not path.exists():
        return {}
    remedy = "write the file again with `tfmot-ops sweep --accept`"
    try:
        return _ENTRIES.validate_python(read_mapping(path, "expected results", remedy))
    except ValidationError as error:
        raise refusal(str(path), error, remedy) from error


def write_expected(expected: Expected, path: Path = PATH) -> None:
    """Write expected.yaml atomically."""
    document = {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in sorted(expected.items())}
    files.write(path, _HEADER + yaml.safe_dump(document, sort_keys=False, width=120))


def costs(expected: Expected) -> dict[str, Cost]:
    """Architecture -> CPU time and memory that its cells need."""
    return {name: Cost(entry.cpu_s, entry.memory_gib * 2**30) for name, entry in expected.items()}


def accept(expected: Expected, results: Iterable[CompatResult]) -> Expected:
    """The new expected results, if `results` are accepted; cells without a result keep their expected result.

    The costs of an architecture are those of its slowest cell: among `results` if these contain every known recipe,
    else among `results` and the earlier costs.
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
    requested: Iterable[tuple[str, str]],
    results: Iterable[CompatResult],
    expected: Expected,
    last_good: Mapping[str, CompatResult] | None = None,
) -> Judgement:
    """Compare the results of a sweep with the expected results or, for a cell without one, with earlier sweeps.

    A cell with an expected failure is a regression if it fails at an earlier stage or with another error class, and
    new if it fails at a later stage.

    Args:
        requested: (architecture, recipe) of every cell that must have a result.
        results: results of the sweep.
        expected: see `read_expected`. An expected failure is no regression, even if the cell passed before.
        last_good: cell -> its result in the latest sweep in which it passed, see `tfmot_ops.sweep.whole.last_good`.
    """
    found = {result.cell: result for result in results}
    judged: dict[str, dict[str, str]] = {"regressions": {}, "improvements": {}, "new": {}, "missing": {}}
    for architecture, recipe in requested:
        cell = f"{architecture}/{recipe}"
        if cell not in found:
            judged["missing"][cell] = "has no result"
            continue
        verdict = _verdict(found[cell], expected.get(architecture), (last_good or {}).get(cell))
        if verdict is not None:
            judged[verdict[0]][cell] = verdict[1]
    return Judgement(**judged)


def _verdict(result: CompatResult, expected: Expectation | None, before: CompatResult | None) -> tuple[str, str] | None:
    """(kind of judgement, sentence) of a cell; None if the result is as expected."""
    failure = expected.fails.get(result.recipe) if expected else None
    passes = expected is not None and result.recipe in expected.passes
    passes = passes or (before is not None and before.status is Status.OK)
    if result.status is Status.OK:
        if failure is not None:
            return "improvements", f"expected: fails with {failure.error_class}; now: passes"
        return None if passes else ("new", "passes")
    now = _failure(result.failed_stage, result.error_class or "unknown") + f": {_first_line(result)}"
    if failure is not None:
        return _other_failure(result, failure, now)
    return ("regressions", f"expected: passes; now: {now}") if passes else ("new", now)


def _other_failure(result: CompatResult, failure: Failure, now: str) -> tuple[str, str] | None:
    """(kind of judgement, sentence) of a failed cell that is expected to fail; None for the expected failure."""
    stage, known = _index(result.failed_stage), _index(failure.stage)
    sentence = f"expected: {_failure(failure.stage, failure.error_class)}; now: {now}"
    if stage > known:
        return "new", sentence
    if stage < known or (result.error_class or "unknown") != failure.error_class:
        return "regressions", sentence
    return None


def _failure(stage: Stage | None, error_class: str) -> str:
    return f"fails at {stage or 'no stage'} with {error_class}"


def _index(stage: Stage | None) -> int:
    return -1 if stage is None else _ORDER.index(stage)


def _first_line(result: CompatResult) -> str:
    return result.message.partition("\n")[0][:160]
