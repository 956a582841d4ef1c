"""The steps of a sweep: `compat` runs a shard of cells, `summarize` judges all of them and makes the page."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

from tfmot_ops.contract import ArtifactFormat, CompatResult, Status, SweepResult
from tfmot_ops.steps.resume import checkpoint_uri
from tfmot_ops.steps.work import Work
from tfmot_ops.store import KeptFile

#: Folder in the work folder with the sweeps that MLflow has, one JSON file each; whoever runs the step puts them there.
EARLIER = "earlier"


def earlier(work: Work) -> list[SweepResult]:
    """Sweeps before this one, from the latest on; none where nobody knows of any."""
    paths = sorted((work.workdir / EARLIER).glob("*.json"), reverse=True)
    return [SweepResult.model_validate_json(path.read_text(encoding="utf-8")) for path in paths]


class _Keeper:
    """Keeps each cell as it ends, so that the next attempt at the shard runs only those that are missing."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._path = work.workdir / "kept_cells.json"
        self._kept = KeptFile(checkpoint_uri(work.spec).removesuffix(".npz") + ".json")
        self.cells: list[CompatResult] = []

    def fetch(self) -> dict[str, CompatResult]:
        """Digest of inputs -> what an earlier attempt left."""
        with contextlib.suppress(OSError, ValueError, ImportError):
            if self._kept.fetch(self._path):
                self.cells = read_cells(self._path)
        return {cell.inputs_sha256: cell for cell in self.cells}

    def started(self, cell: str) -> None:
        """See `tfmot_ops.sweep.matrix.Watcher`."""
        self._work.progress.message(f"{cell} runs")

    def ended(self, result: CompatResult) -> None:
        """See `tfmot_ops.sweep.matrix.Watcher`."""
        how = "ok" if result.status is Status.OK else f"{result.error_class} at {result.failed_stage}"
        self._work.progress.message(f"{result.cell} {how}{' (cached)' if result.cached else ''}")
        self.cells = [cell for cell in self.cells if cell.cell != result.cell] + [result]
        self._path.write_bytes(as_json(self.cells))
        # What cannot be kept is run again; that must not fail the shard.
        with contextlib.suppress(OSError, ValueError, ImportError):
            self._kept.keep(self._path)

    def remove(self) -> None:
        """The shard is done."""
        with contextlib.suppress(OSError, ValueError, ImportError):
            self._kept.remove()


def compat(work: Work) -> None:
    """Run the cells of a shard, one after the other, each in its own process."""
    from tfmot_ops.sweep.forecast import run_with
    from tfmot_ops.sweep.limits import Limits
    from tfmot_ops.sweep.run import Sweep, latest_by_inputs

    options = work.options
    plan = Sweep(
        folder=work.workdir / "sweep",
        architectures=options.architectures,
        recipes=(work.recipe,),
        seed=work.spec.seed,
        jobs=1,
        limits=Limits(options.time_limit_s, options.memory_limit_gib * 2**30),
    )
    keeper = _Keeper(work)
    known = keeper.fetch()
    if not options.force:
        known = latest_by_inputs(earlier(work)) | known
    if options.python is None:
        results = plan.matrix().run(plan.cells(), known, keeper)
    else:
        results = list(run_with(plan, options.python, keeper).cells)
    work.put_bytes(as_json(results), "cells", ArtifactFormat.JSON)
    keeper.remove()
    passed = sum(result.status is Status.OK for result in results)
    work.measure({"cells": len(results), "passed": passed, "failed": len(results) - passed})
    work.parameters["cells"] = {result.cell: result.status.value for result in results}


def summarize(work: Work) -> None:
    """Judge all cells, make the page, and say what got worse; that is a figure here, not a failure."""
    from tfmot_ops.sweep.expected import judge, read_expected
    from tfmot_ops.sweep.page import write_page
    from tfmot_ops.sweep.repro import write_repros
    from tfmot_ops.sweep.run import last_good

    options, before = work.options, earlier(work)
    cells = [cell for name in sorted(work.spec.inputs) for cell in read_cells(work.path(name))]
    asked = [(name, recipe) for recipe in options.recipes for name in options.architectures]
    judgement = judge(asked, cells, read_expected(), last_good(before))
    started = datetime.now(UTC)
    sweep = SweepResult(
        sweep_id=f"{started:%Y%m%dT%H%M%S}-{work.spec.sha256()[:8]}",
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


def forecast(work: Work) -> None:
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
