"""The command `tfmot-ops sweep`: run a sweep, write its page, record it in MLflow, make repros."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tfmot_ops.contract import CompatResult, Recipe, SweepResult
from tfmot_ops.errors import RecipeError, SpecError, StepFailedError
from tfmot_ops.recipes.files import is_recipe_file, read_recipe
from tfmot_ops.sweep.judge import expected
from tfmot_ops.sweep.report.page import write_page
from tfmot_ops.sweep.repro.script import BUDGET_S, REPROS, write_repros
from tfmot_ops.sweep.run.matrix import Cell, Watcher
from tfmot_ops.sweep.whole import Sweep, keep, kept, last_good, latest_by_inputs
from tfmot_ops.system import files

PAGE = "index.html"
_OTHER_FOLDER = "name another one with --report (page and repros) or --folder (finished cells)"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Reported:
    """A finished sweep, and the folder with its page, its JSON and its repros."""

    sweep: SweepResult
    folder: Path


def run_sweep(
    plan: Sweep,
    report: Path,
    tracking: tuple[str, str] | None,
    watcher: Watcher | None = None,
    say: Say = lambda text: print(text, file=sys.stderr),  # noqa: T201 - a message for people
) -> Reported:
    """Run and judge a sweep, write its page, record it in MLflow; then make and record repros of its regressions.

    If MLflow cannot be reached, the results stay on disk, and the next sweep records them.

    Args:
        plan: architectures, recipes and limits of the sweep.
        report: folder for the page, its JSON and the repros.
        tracking: (URI, experiment) of MLflow; None records nothing.
        watcher: called when a cell starts and ends.
        say: called with each message for the user.

    Raises:
        SpecError: an architecture is not in the catalogue, or a folder cannot be written.
    """
    cells = plan.cells()
    for folder in (report, plan.folder):
        files.check_writable(folder, SpecError, _OTHER_FOLDER)
    begun = time.time()
    earlier = _earlier(plan.folder, tracking, say)
    known = {} if plan.force else latest_by_inputs(earlier)
    with report_on_interrupt(say, lambda: _how_to_resume(plan, cells, begun)):
        sweep = plan.run(known, last_good(earlier, plan.seed), watcher, cells)
    recorder = _Recorder(plan.folder, report, tracking, earlier, say)
    with report_on_interrupt(say, lambda: f"stopped: the sweep is kept in {plan.folder}, its page is {report / PAGE}"):
        sweep = recorder.record(sweep)
        repros = _repros(sweep, plan, report, say)
        if repros:
            sweep = recorder.record(sweep.model_copy(update={"repros": repros}))
    return Reported(sweep, report)


@contextmanager
def report_on_interrupt(say: Say, message: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, print the message, then let typer exit with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        say(message())
        raise


def names(text: str) -> tuple[str, ...]:
    """The distinct names in a comma-separated list, in order."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


def read_recipes(text: str) -> tuple[Recipe, ...]:
    """The recipes in a comma-separated list of recipe names and recipe files.

    Raises:
        RecipeError: a recipe cannot be read, or two different recipes have the same name, and so would their cells.
    """
    from tfmot_ops import recipes

    found: dict[str, Recipe] = {}
    for name in names(text):
        recipe = read_recipe(name) if is_recipe_file(name) else recipes.decode(name)
        if found.setdefault(recipe.name, recipe) != recipe:
            raise RecipeError(
                f"two different recipes have the name {recipe.name}",
                required="recipes with distinct names, as a cell's name contains its recipe's name",
                received=text,
                remedy="change `name` in one of the files",
            )
    return tuple(found.values())


def check_acceptable() -> None:
    """Refuse --accept before the sweep runs, if expected.yaml cannot be written.

    Raises:
        StepFailedError: expected.yaml is in a read-only folder, as in a container image.
    """
    if not (expected.PATH.parent.is_dir() and os.access(expected.PATH.parent, os.W_OK)):
        raise _not_acceptable("a folder that cannot be written")


def accept_sweep(sweep: SweepResult) -> Path:
    """Save the results of a sweep as the new expected.yaml, and return its path.

    Raises:
        StepFailedError: expected.yaml cannot be written.
    """
    try:
        path = expected.PATH
        expected.write_expected(expected.accept(expected.read_expected(path), sweep.cells), path)
    except OSError as error:
        raise _not_acceptable(f"{type(error).__name__}: {error}") from error
    return expected.PATH


def _not_acceptable(received: str) -> StepFailedError:
    return StepFailedError(
        "the expected results cannot be saved",
        required=f"{expected.PATH} in a folder that can be written",
        received=received,
        remedy="use --accept in a checkout (pip install -e .), where the file is committed; here, leave it out",
    )


def accept_command(plan: Sweep, recipes: str) -> str:
    """The command that accepts the results of this sweep; it finds them on disk and runs no cell."""
    options = {
        "--architectures": ",".join(plan.architectures),
        "--recipes": recipes,
        "--folder": str(plan.folder),
        "--seed": str(plan.seed) if plan.seed else "",
    }
    given = [word for name, value in options.items() if value for word in (name, value)]
    return shlex.join(["tfmot-ops", "sweep", *given, "--accept"])


def _how_to_resume(plan: Sweep, cells: Sequence[Cell], begun: float) -> str:
    matrix = plan.matrix()
    done = sum(matrix.found(cell, begun if plan.force else 0.0) is not None for cell in cells)
    again = "the same command without --force" if plan.force else "the same command"
    return f"stopped: {done} of {len(cells)} cells are kept in {plan.folder}; {again} runs the rest"


def _repros(sweep: SweepResult, plan: Sweep, report: Path, say: Say) -> dict[str, str]:
    failed = [cell for cell in sweep.cells if cell.cell in sweep.judgement.regressions or _is_new_failure(sweep, cell)]
    if not failed:
        return {}
    say(f"making repros of {len(failed)} failed cells, {BUDGET_S / 60:.0f} min at most; the sweep itself is kept")
    own = {recipe.name: recipe for recipe in plan.recipes if not _is_named(recipe)}
    repros = write_repros(failed, report, seed=plan.seed, recipes=own, say=say)
    if without := [cell.cell for cell in failed if cell.cell not in repros]:
        say(f"no repro of {', '.join(without)}: the logs in {report / REPROS} say why")
    return repros


def _is_named(recipe: Recipe) -> bool:
    """Whether decoding the recipe's name gives the same recipe, so that a repro can refer to it by name."""
    from tfmot_ops import recipes

    try:
        return recipes.decode(recipe.name) == recipe
    except RecipeError:
        return False


def _is_new_failure(sweep: SweepResult, cell: CompatResult) -> bool:
    return cell.error_class is not None and cell.cell in sweep.judgement.new


def _earlier(folder: Path, tracking: tuple[str, str] | None, say: Say) -> list[SweepResult]:
    local = kept(folder)
    recorded: list[SweepResult] = []
    if tracking is not None:
        from tfmot_ops.tracking import earlier_sweeps

        say(f"reading earlier sweeps of {tracking[1]} from MLflow")
        try:
            recorded = earlier_sweeps(*tracking, say=say)
        except StepFailedError as error:
            say(f"MLflow cannot be read, so only the earlier results in {folder} are used: {error}")
    by_id = {sweep.sweep_id: sweep for sweep in (*local, *recorded)}
    return [by_id[name] for name in sorted(by_id, reverse=True)]


@dataclass(frozen=True)
class _Recorder:
    """Keeps a sweep on disk and records it in MLflow.

    A sweep that MLflow did not take stays in `<folder>/pending/<id>` with all its files until a later sweep records it.
    """

    folder: Path
    report: Path
    tracking: tuple[str, str] | None
    earlier: Sequence[SweepResult]
    say: Say

    def record(self, sweep: SweepResult) -> SweepResult:
        """Keep a sweep, write its page, record it and all pending sweeps; return it with the URL of its run."""
        keep(sweep, self.folder)
        write_page(self.report / PAGE, sweep, self.earlier)
        if self.tracking is None:
            return sweep
        self._wait(sweep)
        self.say(f"recording in MLflow, experiment {self.tracking[1]}")
        # Without the lock, two processes would each record the same pending sweep.
        with files.lock(self.folder / "recording.lock", wait=True):
            self._wait(sweep)  # again: the previous holder of the lock may have recorded this sweep and removed it
            return self._record_all(sweep)

    def _wait(self, sweep: SweepResult) -> None:
        """Copy the sweep's files to its pending folder: the next sweep overwrites the report folder."""
        from tfmot_ops.tracking.sweep_runs import repro_files

        for name, path in repro_files(sweep, self.report).items():
            files.copy(path, self._pending(sweep.sweep_id) / name)
        self._pending(sweep.sweep_id).mkdir(parents=True, exist_ok=True)

    def _pending(self, sweep_id: str) -> Path:
        return self.folder / "pending" / sweep_id

    def _record_all(self, sweep: SweepResult) -> SweepResult:
        recorded = self._record_one(sweep, self.report / PAGE)
        if recorded is None:
            return sweep
        waiting = {path.name for path in (self.folder / "pending").iterdir()}
        for old in reversed(kept(self.folder)):
            if old.sweep_id in waiting:
                self._record_one(old)
        return recorded

    def _record_one(self, sweep: SweepResult, page: Path | None = None) -> SweepResult | None:
        from tfmot_ops.tracking import record_sweep

        try:
            recorded = record_sweep(sweep, self._files, *(self.tracking or ("", "")))
        except StepFailedError as error:
            self.say(f"sweep {sweep.sweep_id} stays in {self.folder}, and the next sweep records it: {error}")
            return None
        keep(recorded, self.folder)
        if page is not None:
            files.copy(self._pending(sweep.sweep_id) / PAGE, page)
        shutil.rmtree(self._pending(sweep.sweep_id))
        return recorded

    def _files(self, sweep: SweepResult, runs: Mapping[str, str]) -> dict[str, Path]:
        """Artifact path -> local file, for the sweep's MLflow run; its page links to the runs of the cells."""
        from tfmot_ops.tracking.sweep_runs import repro_files

        folder = self._pending(sweep.sweep_id)
        before = [other for other in self.earlier if other.sweep_id < sweep.sweep_id]
        page = write_page(folder / PAGE, sweep, before, runs)
        return {PAGE: page, **repro_files(sweep, folder)}
