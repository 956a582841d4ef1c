"""`tfmot-ops sweep`: a sweep with its MLflow record around it, as a person or a nightly job runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfmot_ops.contract import CompatResult, SweepResult
from tfmot_ops.errors import StepFailedError
from tfmot_ops.sweep.expected import accept, read_expected, write_expected
from tfmot_ops.sweep.matrix import Watcher
from tfmot_ops.sweep.page import write_page
from tfmot_ops.sweep.repro import write_repros
from tfmot_ops.sweep.run import Sweep, keep, kept, last_good, latest_by_inputs

PAGE = "index.html"


@dataclass(frozen=True)
class Reported:
    """What came of a sweep: its result, and the folder of its page, its JSON and its repros."""

    sweep: SweepResult
    folder: Path


def run_sweep(
    plan: Sweep,
    report: Path,
    tracking: tuple[str, str] | None,
    watcher: Watcher | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),  # noqa: T201 - a message for people
) -> Reported:
    """Sweep, judge, write the page, record.

    MLflow may be away: results stay on disk, and the next sweep records what is not recorded yet.

    Args:
        plan: what to sweep.
        report: folder for the page and what belongs to it.
        tracking: (URI, experiment) of MLflow; None records nothing.
        watcher: told how it goes.
        say: takes what a person should know.
    """
    cells = plan.cells()
    earlier = _earlier(plan.folder, tracking, say)
    known = {} if plan.force else latest_by_inputs(earlier)
    sweep = plan.run(known, last_good(earlier), watcher, cells)
    report.mkdir(parents=True, exist_ok=True)
    failed = [cell for cell in sweep.cells if cell.cell in sweep.judgement.regressions or _is_new_failure(sweep, cell)]
    sweep = sweep.model_copy(update={"repros": write_repros(failed, report, seed=plan.seed)})
    keep(sweep, plan.folder)
    _pending(plan.folder, sweep.sweep_id).touch()
    write_page(report / PAGE, sweep, earlier)
    if tracking is not None:
        sweep = _record_all(plan.folder, report, sweep, tracking, earlier=earlier, say=say)
    return Reported(sweep, report)


def accept_sweep(sweep: SweepResult) -> Path:
    """Take what a sweep found as expected from now on."""
    from tfmot_ops.sweep import expected

    write_expected(accept(read_expected(), sweep.cells))
    return expected.PATH


def _is_new_failure(sweep: SweepResult, cell: CompatResult) -> bool:
    return cell.error_class is not None and cell.cell in sweep.judgement.new


def _earlier(folder: Path, tracking: tuple[str, str] | None, say: Callable[[str], None]) -> list[SweepResult]:
    local = kept(folder)
    recorded: list[SweepResult] = []
    if tracking is not None:
        from tfmot_ops.tracking import earlier_sweeps

        try:
            recorded = earlier_sweeps(*tracking)
        except StepFailedError as error:
            say(f"MLflow cannot be read, so only {folder} says what is known: {error}")
    by_id = {sweep.sweep_id: sweep for sweep in (*local, *recorded)}
    return [by_id[name] for name in sorted(by_id, reverse=True)]


def _pending(folder: Path, sweep_id: str) -> Path:
    path = folder / "pending" / sweep_id
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _record_all(
    folder: Path,
    report: Path,
    sweep: SweepResult,
    tracking: tuple[str, str],
    *,
    earlier: Sequence[SweepResult],
    say: Callable[[str], None],
) -> SweepResult:
    """Record this sweep and those that could not be recorded before; what fails now stays pending."""
    from tfmot_ops.tracking import record_sweep

    waiting = {path.name for path in (folder / "pending").iterdir()}
    for each in (*(old for old in reversed(kept(folder)) if old.sweep_id != sweep.sweep_id), sweep):
        if each.sweep_id not in waiting:
            continue
        files = {PAGE: report / PAGE} if each is sweep else {}
        files |= {f"repros/{name}": report / name for name in each.repros.values() if (report / name).exists()}
        try:
            recorded = record_sweep(each, files, *tracking)
        except StepFailedError as error:
            say(f"kept in {folder}, to be recorded by the next sweep: {error}")
            return sweep
        _pending(folder, each.sweep_id).unlink()
        if each is sweep:
            sweep = recorded
            write_page(report / PAGE, sweep, earlier)
    return sweep
