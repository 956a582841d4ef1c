"""Figures of a sweep for both the terminal and the page: the state of each stage, counts, slowest and largest cells."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from tfmot_ops.contract import CompatResult, Stage, Status
from tfmot_ops.contract.compat import SweepResult
from tfmot_ops.sweep.judge.expected import cpu_seconds
from tfmot_ops.sweep.run.error_classes import error_classes

GIB = 2**30
MISSING = "missing"
#: Largest difference in dB by which the SQNR of a file to its QAT model may be below that of PTQ's file to the float
#: model.
MARGIN_DB = 1.0
_EXTREMES = 10
_ORDER = {stage: index for index, stage in enumerate(Stage)}
#: Stages that not every recipe has: prune and strip need a sparsity; quantize, train and reload need QAT.
_OPTIONAL = (Stage.PRUNE, Stage.STRIP, Stage.TRAIN)
# Terminal escape sequences and control characters, which a message may contain because of a progress bar.
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class State(StrEnum):
    """Outcome of one stage of a cell."""

    PASSED = "passed"
    FAILED = "failed here"
    NOT_REACHED = "not reached"
    LEFT_OUT = "not in the recipe"


@dataclass(frozen=True)
class StageCount:
    """Number of cells for each outcome of one stage."""

    stage: Stage
    passed: int
    failed: int


def state(cell: CompatResult, stage: Stage) -> State:
    """Outcome of `stage` in a cell; if its process died without a failed stage, only timed stages have passed."""
    if cell.failed_stage is stage:
        return State.FAILED
    if cell.failed_stage is not None and _ORDER[stage] > _ORDER[cell.failed_stage]:
        return State.NOT_REACHED
    if f"{stage.value}_s" in cell.metrics:
        return State.PASSED
    if cell.status is not Status.OK and cell.failed_stage is None:
        return State.NOT_REACHED
    # A killed process reports no times, so a missing time does not mean that the recipe lacks the stage.
    timed = any(f"{candidate.value}_s" in cell.metrics for candidate in Stage)
    return State.LEFT_OUT if stage in _OPTIONAL and timed else State.PASSED


def peak_gib(cell: CompatResult) -> float:
    """Largest resident memory of the cell's process, in GiB."""
    return cell.metrics.get("peak_memory_bytes", 0.0) / GIB


def against_ptq(cell: CompatResult) -> float | None:
    """SQNR of the cell's file minus SQNR of the converter's PTQ file, in dB; None if one was not measured."""
    ours, ptq = cell.metrics.get("sqnr_db"), cell.metrics.get("ptq_sqnr_db")
    return None if ours is None or ptq is None else ours - ptq


def below_ptq(cells: Iterable[CompatResult]) -> list[CompatResult]:
    """Cells whose SQNR is more than MARGIN_DB below that of PTQ, the worst first."""
    behind = [(margin, cell) for cell in cells if (margin := against_ptq(cell)) is not None and margin < -MARGIN_DB]
    return [cell for _, cell in sorted(behind, key=lambda pair: pair[0])]


def not_int8(cells: Iterable[CompatResult]) -> list[CompatResult]:
    """Cells whose file has multiply-accumulates in float, the worst first."""
    parts = [cell for cell in cells if cell.metrics.get("int8_mac_fraction", 1.0) < 1.0]
    return sorted(parts, key=lambda cell: cell.metrics["int8_mac_fraction"])


def absent(sweep: SweepResult) -> list[str]:
    """Requested cells without a result."""
    there = {cell.cell for cell in sweep.cells}
    return sorted(name for name in sweep.judgement.missing if name not in there)


def requested(sweep: SweepResult) -> int:
    """Number of requested cells, with or without a result."""
    return len(sweep.cells) + len(absent(sweep))


def recipes(sweep: SweepResult) -> list[str]:
    """Names of the recipes, in the order of their first cells."""
    names = [cell.recipe for cell in sweep.cells] + [name.rpartition("/")[2] for name in absent(sweep)]
    return list(dict.fromkeys(names))


def passed_of(sweep: SweepResult, recipe: str) -> tuple[int, int] | None:
    """(passed cells, requested cells) of a recipe; None if no cell was requested."""
    own = [cell for cell in sweep.cells if cell.recipe == recipe]
    total = len(own) + sum(name.rpartition("/")[2] == recipe for name in absent(sweep))
    return (sum(cell.status is Status.OK for cell in own), total) if total else None


def stage_counts(cells: Sequence[CompatResult]) -> list[StageCount]:
    """One row per stage, in order."""
    rows = []
    for stage in Stage:
        states = Counter(state(cell, stage) for cell in cells)
        rows.append(StageCount(stage, states[State.PASSED], states[State.FAILED]))
    return rows


def without_stage(cells: Iterable[CompatResult]) -> int:
    """Number of failed cells without a failed stage, as their process died before it logged one."""
    return sum(cell.status is not Status.OK and cell.failed_stage is None for cell in cells)


def error_class(cell: CompatResult) -> str:
    """The class of a failed cell, empty for a passed one."""
    return "" if cell.status is Status.OK else cell.error_class or "unknown"


def class_counts(sweep: SweepResult) -> list[tuple[str, int]]:
    """(error class, number of cells), the most frequent first; cells without a result are counted separately."""
    counts = Counter(error_class(cell) for cell in sweep.cells if cell.status is not Status.OK)
    if gone := len(absent(sweep)):
        counts[MISSING] += gone
    return counts.most_common()


def top(cells: Iterable[CompatResult], figure: Callable[[CompatResult], float]) -> list[CompatResult]:
    """The ten cells with the largest figure; cells whose figure is 0 are left out."""
    return sorted((cell for cell in cells if figure(cell) > 0), key=figure, reverse=True)[:_EXTREMES]


def cpu_hours(cells: Iterable[CompatResult]) -> float:
    """CPU-hours of this sweep, without cached cells."""
    return sum(cpu_seconds(cell) for cell in cells if not cell.cached) / 3600


def middle(values: Iterable[float | None]) -> float | None:
    """Median of the values that are not None; None without such a value."""
    measured = [value for value in values if value is not None]
    return median(measured) if measured else None


def explained(name: str) -> str:
    """Cause and remedy of an error class; empty for an unknown class."""
    if name == MISSING:
        return "Requested, but without a result. Counts as failed."
    known = error_classes().get(name)
    return f"{known.cause} {known.remedy}" if known else ""


def printable(text: str) -> str:
    """A message without terminal escape sequences and control characters."""
    return _UNPRINTABLE.sub("", text.replace("\r", "\n"))


def share(value: float) -> str:
    """A share in per cent, rounded down: 99.99 % must not read as 100 %."""
    return f"{math.floor(value * 1000) / 10:.4g} %"


def wall(seconds: float) -> str:
    """A duration, as in 1 h 02 min, 3 min 07 s, 9 s."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {left:02} s" if minutes else f"{left} s"
