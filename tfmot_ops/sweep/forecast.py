"""Forecast: run a sweep with another environment's interpreter, and show which cells break as a go / no-go table."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from tfmot_ops.contract import CompatResult, Stage, Status, SweepResult
from tfmot_ops.errors import SpecError
from tfmot_ops.sweep.run.matrix import Watcher
from tfmot_ops.sweep.whole import Sweep

_ORDER = list(Stage)
#: Script that prints an interpreter's packages. If sys.path has a package twice, the first one counts, as for imports.
_ASK = """
import importlib.metadata as metadata, json, platform, re
import tfmot_ops
found = {"python": platform.python_version()}
for package in metadata.distributions():
    name = package.metadata["Name"]
    if name:
        found.setdefault(re.sub("[-_.]+", "-", name).lower(), package.version)
print(json.dumps(found))
"""
_ASK_LIMIT_S = 120.0
#: Number of characters that an error quotes of unexpected output.
_MOST_QUOTED = 80


class Verdict(StrEnum):
    """How a cell's result changes under the other versions."""

    SAME = "same"
    BREAKS = "breaks"
    EARLIER = "fails earlier"
    MISSING = "missing"
    LATER = "fails later"
    MENDED = "mended"
    NEW = "new"

    @property
    def is_worse(self) -> bool:
        """Whether one cell with this verdict makes the forecast a no-go."""
        return self in {Verdict.BREAKS, Verdict.EARLIER, Verdict.MISSING}


@dataclass(frozen=True)
class ComparedCell:
    """One cell under both sets of versions.

    Attributes:
        cell: `MobileNet/wi8_ai8`.
        now, then: `ok` or the failure, under the current and the other versions; empty without a result.
        verdict: comparison of `now` and `then`.
    """

    cell: str
    now: str
    then: str
    verdict: Verdict


@dataclass(frozen=True)
class Forecast:
    """The table of a forecast.

    Attributes:
        rows: sorted by verdict, the worst first, then by cell.
        versions: package -> (version now, version then), for packages that differ; empty for a missing package.
    """

    rows: tuple[ComparedCell, ...]
    versions: dict[str, tuple[str, str]]

    @property
    def worse(self) -> int:
        """Number of cells that get worse."""
        return sum(row.verdict.is_worse for row in self.rows)

    @property
    def is_go(self) -> bool:
        """Whether no cell gets worse."""
        return not self.worse

    def as_json(self) -> str:
        """The table with its verdict, for programs."""
        return json.dumps({"is_go": self.is_go, **asdict(self)}, indent=1)

    def text(self) -> str:
        """The table for a terminal or a log, with the verdict as its last line."""
        changes = [f"{name}: {now or 'none'} -> {then or 'none'}" for name, (now, then) in self.versions.items()]
        lines = ["versions: " + (", ".join(changes) or "the same")]
        lines += _aligned(
            [("cell", "now", "then", "verdict"), *((r.cell, r.now, r.then, r.verdict) for r in self.rows)]
        )
        lines.append(f"{'go' if self.is_go else 'no-go'}: {self.worse} of {len(self.rows)} cells get worse")
        return "\n".join(lines)


def forecast(current: SweepResult, other: SweepResult) -> Forecast:
    """Compare a sweep with the same sweep under other versions."""
    now, then = ({cell.cell: cell for cell in sweep.cells} for sweep in (current, other))
    rows = [_row(name, now.get(name), then.get(name)) for name in dict.fromkeys((*now, *then))]
    worst_first = [Verdict.BREAKS, Verdict.EARLIER, Verdict.MISSING, Verdict.LATER, Verdict.MENDED, Verdict.NEW]
    order = {verdict: place for place, verdict in enumerate([*worst_first, Verdict.SAME])}
    rows.sort(key=lambda row: (order[row.verdict], row.cell))
    names = sorted({*current.versions, *other.versions})
    pairs = {name: (current.versions.get(name, ""), other.versions.get(name, "")) for name in names}
    return Forecast(tuple(rows), {name: pair for name, pair in pairs.items() if pair[0] != pair[1]})


def _row(name: str, now: CompatResult | None, then: CompatResult | None) -> ComparedCell:
    return ComparedCell(name, _outcome(now), _outcome(then), _verdict(now, then))


def _outcome(result: CompatResult | None) -> str:
    if result is None:
        return ""
    if result.status is Status.OK:
        return "ok"
    stage = result.failed_stage.value if result.failed_stage else "?"
    return f"{stage}: {result.error_class or 'unknown'} ({result.error_type or 'died'})"


def _verdict(now: CompatResult | None, then: CompatResult | None) -> Verdict:
    if now is None or then is None:
        return Verdict.NEW if now is None else Verdict.MISSING
    if now.status is not then.status:
        return Verdict.BREAKS if then.status is Status.FAILED else Verdict.MENDED
    before, after = _reached(now), _reached(then)
    if before == after:
        return Verdict.SAME
    return Verdict.EARLIER if after < before else Verdict.LATER


def _reached(result: CompatResult) -> int:
    """Number of stages that a cell passed; 0 for a cell whose process died before it logged a stage."""
    if result.status is Status.OK:
        return len(_ORDER)
    return _ORDER.index(result.failed_stage) if result.failed_stage else 0


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def packages(python: str) -> dict[str, str]:
    """Name -> version of every package in an interpreter's environment, and of Python itself.

    Raises:
        SpecError: the interpreter cannot be started, or its environment lacks this package.
    """
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=_ASK_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _refuse(python, str(error)) from error
    if done.returncode:
        raise _refuse(python, done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}")
    output = done.stdout.strip().rpartition("\n")[2]
    try:
        found = json.loads(output)
    except ValueError:
        found = None
    # Another program than Python may exit with 0 too.
    if not isinstance(found, dict):
        raise _refuse(python, f"`{python} -c ...` wrote {output[:_MOST_QUOTED]!r} instead of its versions")
    return {str(name): str(number) for name, number in found.items()}


def _refuse(python: str, received: str) -> SpecError:
    return SpecError(
        f"{python} cannot run cells",
        required="the interpreter of an environment that has tfmot-ops and its worker packages",
        received=received,
        remedy=f"run {python} -m pip install 'tfmot-ops[worker]', then install the versions to test",
    )


def run_with(sweep: Sweep, python: str, watcher: Watcher | None = None) -> SweepResult:
    """Run the cells of a sweep with another environment's interpreter.

    The results are kept in a separate folder per set of installed versions; they are not judged, and no sweep of this
    environment reuses them.

    Raises:
        SpecError: the interpreter cannot run cells, or an architecture is not in the catalogue.
    """
    versions = packages(python)
    digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
    matrix = replace(sweep.matrix(python), folder=sweep.folder / f"forecast-{digest}")
    started, clock = datetime.now(UTC), time.monotonic()
    results = matrix.run(sweep.cells(), None, watcher)
    return SweepResult(
        sweep_id=f"{started:%Y%m%dT%H%M%S}-forecast",
        started_at=started,
        duration_s=time.monotonic() - clock,
        # The digest was computed with this environment's versions, so a sweep here would reuse the result.
        cells=tuple(result.model_copy(update={"inputs_sha256": ""}) for result in results),
        versions=versions,
    )


def compare(sweep: Sweep, python: str, watcher: Watcher | None = None) -> Forecast:
    """Run a sweep under this interpreter, then under another (they share the cores), and compare the results."""
    return forecast(run_with(sweep, sys.executable, watcher), run_with(sweep, python, watcher))
