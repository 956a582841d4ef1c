"""The steps of a sweep: `compat` runs a shard of cells, `summarize` judges all cells and makes the page."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from tfmot_ops.contract import (
    ArtifactFormat,
    CompatOptions,
    CompatResult,
    ForecastOptions,
    Status,
    StepSpec,
    SummarizeOptions,
    SweepResult,
)
from tfmot_ops.contract.document import PathBelow
from tfmot_ops.errors import ArtifactError
from tfmot_ops.steps.resume import checkpoint_uri
from tfmot_ops.steps.work import Work
from tfmot_ops.store import KeptFile
from tfmot_ops.system.environment import CHECKPOINTS

#: Sub-folder of the work folder with earlier sweeps, one JSON file each; `cli.execute` downloads them from MLflow.
EARLIER = "earlier"
#: Kept cells: path below the folder of the matrix -> result. The file is validated when read, as other users may be
#: able to write to the place where it is kept.
_KEPT = TypeAdapter(dict[PathBelow, CompatResult])
#: Longest field name that is shown of an invalid file, in characters.
_MOST_SHOWN = 100
#: Entry of a tracking key: the time at which the DAG run was due.
_DUE = "run_after"
#: Exceptions for a store that cannot be reached.
_UNREACHABLE = (OSError, ValueError, ImportError, ArtifactError)


def earlier(work: Work[Any]) -> list[SweepResult]:
    """The sweeps before this one, latest first; empty without tracking."""
    from tfmot_ops.sweep.whole import read_sweeps

    return read_sweeps(work.workdir / EARLIER)


@runtime_checkable
class _SearchableStore(Protocol):
    """A store in which a retry finds the files of an earlier attempt: the artifacts of the step's MLflow run."""

    def find(self, name: str, artifact_format: ArtifactFormat, folder: Path) -> Path | None:
        """A local copy of the file that an earlier attempt stored last; None when there is no such file."""


class _KeptOnRun:
    """A `KeptFile` that is an artifact of the step's run. MLflow cannot delete it, so `remove` writes `{}` over it."""

    def __init__(self, work: Work[Any], store: _SearchableStore) -> None:
        self._work, self._store = work, store
        self.uri = "the step's run"

    def fetch(self, path: Path) -> bool:
        found = self._store.find(path.stem, ArtifactFormat.JSON, path.parent / "found")
        if found is None:
            return False
        path.write_bytes(found.read_bytes())
        return True

    def keep(self, path: Path) -> None:
        self._work.store.put(path, path.stem, ArtifactFormat.JSON)

    def remove(self) -> None:
        path = self._work.workdir / "kept_cells.json"
        path.write_text("{}", encoding="utf-8")
        self.keep(path)


class _CellKeeper:
    """Keeps the results of finished cells, so that a retry of the shard runs only the remaining cells.

    Saves all result files that the matrix wrote as one JSON document (path -> result), and writes them back to the
    same paths in a retry. A path holds the digest of the cell's inputs, so a retry with other inputs ignores the file.

    The document is kept, like a training checkpoint, beside the step's outputs or in the folder that
    TFMOT_OPS_CHECKPOINTS names; otherwise on the step's MLflow run; without both in the user's cache folder.

    Args:
        work: the step.
        folder: folder below which the matrix writes its result files.
    """

    def __init__(self, work: Work[Any], folder: Path) -> None:
        self._work = work
        self._folder = folder
        self._path = work.workdir / "kept_cells.json"
        self._kept: KeptFile | _KeptOnRun = KeptFile(checkpoint_uri(work.spec).removesuffix(".npz") + ".cells.json")
        named = work.spec.output_uri or CHECKPOINTS.get()
        if not named and isinstance(work.store, _SearchableStore):
            self._kept = _KeptOnRun(work, work.store)

    def restore(self) -> None:
        """Write back the result files that an interrupted attempt kept; a finished shard has removed its file."""
        try:
            if not self._kept.fetch(self._path):
                return
            cells = _KEPT.validate_json(self._path.read_text(encoding="utf-8"))
        except ValidationError as error:
            wrong = ".".join(map(str, error.errors()[0]["loc"]))[:_MOST_SHOWN]
            self._report(f"starts from the first cell: {self._kept.uri} holds no valid cells: {wrong!r}")
            return
        except _UNREACHABLE as error:
            self._report(f"starts from the first cell: cannot read {self._kept.uri}: {error}")
            return
        for name, cell in cells.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(cell.model_dump_json(indent=1), encoding="utf-8")
        if cells:
            self._report(f"continues after {len(cells)} cells of an earlier attempt")

    def started(self, cell: str) -> None:
        """See `tfmot_ops.sweep.run.matrix.Watcher`."""
        self._report(f"{cell} runs")

    def ended(self, result: CompatResult) -> None:
        """See `tfmot_ops.sweep.run.matrix.Watcher`."""
        how = "ok" if result.status is Status.OK else f"{result.error_class} at {result.failed_stage}"
        self._report(f"{result.cell} {how}{' (cached)' if result.cached else ''}")
        files = {path.relative_to(self._folder).as_posix(): path for path in self._folder.glob("*/*.json")}
        kept = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in sorted(files.items())}
        self._path.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        try:
            self._kept.keep(self._path)
        except _UNREACHABLE as error:
            # A retry runs the cells again; the shard itself must not fail.
            self._report(f"cannot keep finished cells in {self._kept.uri}: {error}")

    def remove(self) -> None:
        """Remove the kept results, once the shard has its output."""
        try:
            self._kept.remove()
        except _UNREACHABLE as error:
            self._report(f"cannot remove {self._kept.uri}: {error}")

    def _report(self, text: str) -> None:
        self._work.progress.message(text)


def compat(work: Work[CompatOptions]) -> None:
    """Run the cells of a shard, one after the other, each in its own process."""
    from tfmot_ops.sweep.forecast import run_with
    from tfmot_ops.sweep.run.limits import Limits
    from tfmot_ops.sweep.whole import Sweep, latest_by_inputs, with_seed

    options = work.options
    plan = Sweep(
        folder=work.workdir / "sweep",
        architectures=options.architectures,
        recipes=(work.recipe,),
        seed=work.spec.seed,
        jobs=1,
        limits=Limits(options.time_limit_s, options.memory_limit_gib * 2**30),
    )
    keeper = _CellKeeper(work, plan.folder)
    keeper.restore()
    if options.python is None:
        known = {} if options.force else latest_by_inputs(earlier(work))
        results = plan.matrix().run(plan.cells(), known, keeper)
    else:
        results = list(run_with(plan, options.python, keeper).cells)
    results = with_seed(results, work.spec.seed)
    work.put_bytes(as_json(results), "cells", ArtifactFormat.JSON)
    keeper.remove()
    passed = sum(result.status is Status.OK for result in results)
    work.measure({"cells": len(results), "passed": passed, "failed": len(results) - passed})
    work.parameters["cells"] = {result.cell: result.status.value for result in results}


def summarize(work: Work[SummarizeOptions]) -> None:
    """Judge all cells and make the page; regressions become metrics and do not fail this step."""
    from tfmot_ops.sweep.judge.expected import judge, read_expected
    from tfmot_ops.sweep.report.page import write_page
    from tfmot_ops.sweep.repro.script import write_repros
    from tfmot_ops.sweep.whole import last_good

    options, started = work.options, datetime.now(UTC)
    sweep_id = _sweep_id(work.spec, started)
    # An earlier attempt at this step may have recorded this sweep already.
    before = [sweep for sweep in earlier(work) if sweep.sweep_id != sweep_id]
    cells = [cell for name in sorted(work.spec.inputs) for cell in read_cells(work.path(name))]
    requested = [(name, recipe) for recipe in options.recipes for name in options.architectures]
    judgement = judge(requested, cells, read_expected(), last_good(before, work.spec.seed))
    sweep = SweepResult(
        sweep_id=sweep_id,
        started_at=started,
        duration_s=sum(cell.metrics.get("wall_s", 0.0) for cell in cells if not cell.cached),
        cells=tuple(cells),
        judgement=judgement,
        versions=next((cell.versions for cell in cells if cell.versions), {}),
    )
    failed = [cell for cell in cells if cell.cell in judgement.regressions] if options.repros else []
    sweep = sweep.model_copy(update={"repros": write_repros(failed, work.workdir, seed=work.spec.seed)})
    page = work.workdir / "page.html"
    write_page(page, sweep, before)
    work.put_bytes(page.read_bytes(), "page", ArtifactFormat.HTML)
    work.put_bytes(sweep.model_dump_json(indent=1).encode(), "sweep", ArtifactFormat.JSON)
    counts = {name: len(getattr(judgement, name)) for name in ("regressions", "improvements", "new", "missing")}
    work.measure({"cells": len(cells), "passed": sweep.passed, **counts})
    work.parameters["judgement"] = judgement.model_dump(mode="json")
    work.progress.message(f"{sweep.passed} of {len(requested)} cells pass; {counts}")


def _sweep_id(spec: StepSpec, started: datetime) -> str:
    """Id of the sweep, the same in each attempt, so that a retry continues its MLflow runs; a new id without a key."""
    key = spec.tracking.key if spec.tracking is not None else {}
    if _DUE not in key:
        return f"{started:%Y%m%dT%H%M%S}-{spec.sha256()[:8]}"
    due = datetime.fromisoformat(key[_DUE]).astimezone(UTC)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{due:%Y%m%dT%H%M%S}-{digest[:8]}"


def forecast(work: Work[ForecastOptions]) -> None:
    """Compare cells under two sets of versions; cells that would break become a metric and do not fail this step."""
    from tfmot_ops.sweep.forecast import forecast as compared

    found: dict[str, list[CompatResult]] = {"now": [], "then": []}
    for name in sorted(work.spec.inputs):
        found[name.partition("_")[0]] += read_cells(work.path(name))
    table = compared(*(_of_versions(cells) for cells in found.values()))
    work.put_bytes(table.as_json().encode(), "forecast", ArtifactFormat.JSON)
    work.measure({"cells": len(table.rows), "worse": table.worse})
    work.parameters["forecast"] = table.text()
    work.progress.message(table.text())


def _of_versions(cells: list[CompatResult]) -> SweepResult:
    """The cells as a sweep, with the versions that the first of them recorded."""
    return SweepResult(
        sweep_id="forecast",
        started_at=datetime.now(UTC),
        duration_s=0.0,
        cells=tuple(cells),
        versions=next((cell.versions for cell in cells if cell.versions), {}),
    )


def read_cells(path: Path) -> list[CompatResult]:
    """The cells of a shard's output."""
    return [CompatResult.model_validate(cell) for cell in json.loads(path.read_text(encoding="utf-8"))]


def as_json(cells: list[CompatResult]) -> bytes:
    """The JSON that `read_cells` reads."""
    return json.dumps([cell.model_dump(mode="json") for cell in cells], indent=1).encode()
