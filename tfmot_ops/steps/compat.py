"""The steps of a sweep: `compat` runs a shard of cells, `summarize` judges all of them and makes the page."""

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

#: Folder in the work folder with the sweeps that MLflow has, one JSON file each; whoever runs the step puts them there.
EARLIER = "earlier"
#: Kept cells: path below the folder of the matrix -> result. Whoever may write to the place they are kept in may have
#: put others there.
_KEPT = TypeAdapter(dict[PathBelow, CompatResult])
#: So many characters of what is wrong with them are told.
_SAID = 100
#: In a tracking key: when the DAG run was due.
_DUE = "run_after"
#: What a place for kept cells raises that cannot be reached.
_UNREACHABLE = (OSError, ValueError, ImportError, ArtifactError)


def earlier(work: Work[Any]) -> list[SweepResult]:
    """Sweeps before this one, from the latest on; none where nobody knows of any."""
    from tfmot_ops.sweep.whole import read_sweeps

    return read_sweeps(work.workdir / EARLIER)


@runtime_checkable
class _Finding(Protocol):
    """A store that outlives the attempt: that of an MLflow run, which a retry takes up."""

    def find(self, name: str, artifact_format: ArtifactFormat, folder: Path) -> Path | None:
        """A local copy of what an earlier attempt put there last; None when it put nothing."""


class _OnTheRun:
    """A `KeptFile` among the artifacts of the step's run. They cannot be deleted: an empty one says that it is gone."""

    def __init__(self, work: Work[Any], store: _Finding) -> None:
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


class _Keeper:
    """Keeps each cell that has ended, so that the next attempt at the shard runs only those that are missing.

    They are kept as the files that the matrix finds its results in, and put back there: under the digest of what
    decided them, those of another interpreter in the folder of its versions.

    Beside the outputs of the step or in the folder that TFMOT_OPS_CHECKPOINTS names, as the checkpoints of a training;
    else on the step's MLflow run, and in the user's cache where that cannot be read back.

    Args:
        work: the step.
        folder: what the matrix writes its results below.
    """

    def __init__(self, work: Work[Any], folder: Path) -> None:
        self._work = work
        self._folder = folder
        self._path = work.workdir / "kept_cells.json"
        self._kept: KeptFile | _OnTheRun = KeptFile(checkpoint_uri(work.spec).removesuffix(".npz") + ".cells.json")
        named = work.spec.output_uri or CHECKPOINTS.get()
        if not named and isinstance(work.store, _Finding):
            self._kept = _OnTheRun(work, work.store)

    def restore(self) -> None:
        """Put back what an earlier attempt left; nothing of a shard that ended."""
        try:
            if not self._kept.fetch(self._path):
                return
            cells = _KEPT.validate_json(self._path.read_text(encoding="utf-8"))
        except ValidationError as error:
            wrong = ".".join(map(str, error.errors()[0]["loc"]))[:_SAID]
            self._tell(f"starts from the first cell: {self._kept.uri} holds no valid cells: {wrong!r}")
            return
        except _UNREACHABLE as error:
            self._tell(f"starts from the first cell: cannot read {self._kept.uri}: {error}")
            return
        for name, cell in cells.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(cell.model_dump_json(indent=1), encoding="utf-8")
        if cells:
            self._tell(f"continues after {len(cells)} cells of an attempt before")

    def started(self, cell: str) -> None:
        """See `tfmot_ops.sweep.run.matrix.Watcher`."""
        self._tell(f"{cell} runs")

    def ended(self, result: CompatResult) -> None:
        """See `tfmot_ops.sweep.run.matrix.Watcher`."""
        how = "ok" if result.status is Status.OK else f"{result.error_class} at {result.failed_stage}"
        self._tell(f"{result.cell} {how}{' (cached)' if result.cached else ''}")
        files = {path.relative_to(self._folder).as_posix(): path for path in self._folder.glob("*/*.json")}
        kept = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in sorted(files.items())}
        self._path.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        try:
            self._kept.keep(self._path)
        except _UNREACHABLE as error:
            # What cannot be kept is run again; that must not fail the shard.
            self._tell(f"cannot keep finished cells in {self._kept.uri}: {error}")

    def remove(self) -> None:
        """The shard is done."""
        try:
            self._kept.remove()
        except _UNREACHABLE as error:
            self._tell(f"cannot remove {self._kept.uri}: {error}")

    def _tell(self, text: str) -> None:
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
    keeper = _Keeper(work, plan.folder)
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
    """Judge all cells, make the page, and say what got worse; that is a figure here, not a failure."""
    from tfmot_ops.sweep.judge.expected import judge, read_expected
    from tfmot_ops.sweep.report.page import write_page
    from tfmot_ops.sweep.repro.script import write_repros
    from tfmot_ops.sweep.whole import last_good

    options, started = work.options, datetime.now(UTC)
    sweep_id = _sweep_id(work.spec, started)
    # An attempt before may have recorded this very sweep.
    before = [sweep for sweep in earlier(work) if sweep.sweep_id != sweep_id]
    cells = [cell for name in sorted(work.spec.inputs) for cell in read_cells(work.path(name))]
    asked = [(name, recipe) for recipe in options.recipes for name in options.architectures]
    judgement = judge(asked, cells, read_expected(), last_good(before, work.spec.seed))
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
    work.progress.message(f"{sweep.passed} of {len(asked)} cells pass; {counts}")


def _sweep_id(spec: StepSpec, started: datetime) -> str:
    """The same at each attempt, so that a retry takes up the sweep's runs in MLflow; by the clock without a key."""
    key = spec.tracking.key if spec.tracking is not None else {}
    if _DUE not in key:
        return f"{started:%Y%m%dT%H%M%S}-{spec.sha256()[:8]}"
    due = datetime.fromisoformat(key[_DUE]).astimezone(UTC)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{due:%Y%m%dT%H%M%S}-{digest[:8]}"


def forecast(work: Work[ForecastOptions]) -> None:
    """Say which cells would break under other versions; that is a figure here, not a failure."""
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
    """The cells as a sweep under the versions that they say."""
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
    """The form `read_cells` reads."""
    return json.dumps([cell.model_dump(mode="json") for cell in cells], indent=1).encode()
