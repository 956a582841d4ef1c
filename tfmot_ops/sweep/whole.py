"""A whole sweep: plan its cells, reuse known results, run the other cells, judge all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tfmot_ops.contract import CompatResult, Recipe, Status, SweepResult
from tfmot_ops.errors import SpecError
from tfmot_ops.sweep.judge.expected import Expected, costs, judge, read_expected
from tfmot_ops.sweep.plan.cells import MEMORY_SHARE
from tfmot_ops.sweep.run.error_classes import is_lasting
from tfmot_ops.sweep.run.limits import Limits
from tfmot_ops.sweep.run.matrix import Cell, Matrix, Watcher
from tfmot_ops.system import files
from tfmot_ops.system.memory import machine_bytes

#: Metric with a cell's seed; only results of the same seed are compared.
_SEED = "seed"


@dataclass(frozen=True)
class Sweep:
    """The settings of a sweep.

    Attributes:
        folder: folder for cells, logs, finished sweeps, and sweeps that MLflow has not recorded yet.
        architectures: names (see `tfmot_ops.models.architectures.architecture`); empty for the whole catalogue.
        recipes: recipes, each with a quantization.
        seed: seed of weights and images.
        jobs: number of concurrent cells; 0 means one per core.
        limits: limits of each cell.
        force: run every cell, even if its result is known.
        expected: expected results, see `tfmot_ops.sweep.judge.expected`.
    """

    folder: Path
    architectures: tuple[str, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    seed: int = 0
    jobs: int = 0
    limits: Limits = field(default_factory=Limits)
    force: bool = False
    expected: Expected = field(default_factory=read_expected)

    def cells(self) -> list[Cell]:
        """All cells of the sweep.

        Raises:
            SpecError: an architecture is not in the catalogue, or there is no recipe.
        """
        from tfmot_ops.models.architectures import ANY_SIZE, architecture, catalogue
        from tfmot_ops.sweep.plan.inputs import inputs_sha256

        if not self.recipes:
            raise _no_cells("no recipe")
        known = catalogue()
        unknown = [name for name in self.architectures if name.removesuffix(ANY_SIZE) not in known]
        if unknown:
            raise SpecError(
                "no such architecture",
                required="names of the catalogue (tfmot-ops list architectures)",
                received=", ".join(unknown),
                remedy="use the constructor's own spelling, as in MobileNetV2 (MobileNetV2@any: images of any size)",
            )
        chosen = [architecture(name) for name in self.architectures] or list(known.values())
        return [
            Cell(entry.name, recipe, entry.family, inputs_sha256(entry, recipe, self.seed), self.seed)
            for recipe in self.recipes
            for entry in chosen
        ]

    def run(
        self,
        known: Mapping[str, CompatResult] | None = None,
        last_good: Mapping[str, CompatResult] | None = None,
        watcher: Watcher | None = None,
        cells: Sequence[Cell] | None = None,
    ) -> SweepResult:
        """Run the cells without a known result, and judge all cells.

        Args:
            known: digest of a cell's inputs -> result of an earlier sweep with the same digest.
            last_good: see `last_good`.
            watcher: receives the progress.
            cells: the result of `cells()`, if the caller has it already.

        Raises:
            SpecError: as `cells`, or the sweep has no cell (an empty sweep must not count as passed).
        """
        started, clock = datetime.now(UTC), time.monotonic()
        cells = self.cells() if cells is None else cells
        if not cells:
            raise _no_cells("no cell")
        results = with_seed(self.matrix().run(cells, known, watcher), self.seed)
        return SweepResult(
            sweep_id=f"{started:%Y%m%dT%H%M%S}-{os.getpid()}",
            started_at=started,
            duration_s=time.monotonic() - clock,
            cells=tuple(results),
            judgement=judge(self._requested(cells), results, self.expected, last_good),
            versions=next((result.versions for result in results if result.versions), {}),
        )

    def _requested(self, cells: Sequence[Cell]) -> list[tuple[str, str]]:
        """(architecture, recipe) of all cells; for the whole catalogue also of architectures in expected.yaml only."""
        requested = dict.fromkeys((cell.architecture, cell.recipe.name) for cell in cells)
        if not self.architectures:
            requested |= dict.fromkeys((name, recipe.name) for recipe in self.recipes for name in self.expected)
        return list(requested)

    def matrix(self, python: str | None = None) -> Matrix:
        """The matrix that runs the cells; `python` is the interpreter of another environment, for a forecast."""
        memory = machine_bytes() * MEMORY_SHARE
        matrix = Matrix(
            folder=self.folder / "cells",
            jobs=self.jobs or os.cpu_count() or 1,
            memory_bytes=memory,
            limits=replace(self.limits, memory_bytes=min(self.limits.memory_bytes, memory)),
            costs=costs(self.expected),
            force=self.force,
        )
        return matrix if python is None else replace(matrix, python=python, folder=self.folder / "forecast")


def latest_by_inputs(sweeps: Iterable[SweepResult]) -> dict[str, CompatResult]:
    """Digest of a cell's inputs -> the latest result with this digest; `sweeps` must be sorted latest first.

    Leaves out timeouts, crashes and out-of-memory failures, which the machine may have caused.
    """
    known: dict[str, CompatResult] = {}
    for sweep in sweeps:
        for cell in sweep.cells:
            if cell.inputs_sha256 and is_lasting(cell):
                known.setdefault(cell.inputs_sha256, cell)
    return known


def last_good(sweeps: Iterable[SweepResult], seed: int = 0) -> dict[str, CompatResult]:
    """Cell -> its result in the latest sweep in which it passed with this seed; `sweeps` must be sorted latest first.

    Cells come from different sweeps, as a sweep may cover only a few architectures.
    """
    good: dict[str, CompatResult] = {}
    for cell in (cell for sweep in sweeps for cell in sweep.cells):
        if cell.status is Status.OK and cell.metrics.get(_SEED, 0.0) == seed:
            good.setdefault(cell.cell, cell)
    return good


def with_seed(results: Iterable[CompatResult], seed: int) -> list[CompatResult]:
    """The results with the seed as a metric, which `last_good` reads."""
    return [result.model_copy(update={"metrics": {**result.metrics, _SEED: float(seed)}}) for result in results]


def _no_cells(received: str) -> SpecError:
    return SpecError(
        "the sweep has no cells",
        required="at least one recipe and one architecture",
        received=received,
        remedy="name architectures and recipes, or omit the options for all architectures and the default recipes",
    )


def keep(sweep: SweepResult, folder: Path) -> Path:
    """Write a finished sweep atomically to `<folder>/sweeps/<id>.json`, and return the path."""
    path = folder / "sweeps" / f"{sweep.sweep_id}.json"
    files.write(path, sweep.model_dump_json(indent=1))
    return path


def kept(folder: Path) -> list[SweepResult]:
    """The finished sweeps below `folder`, latest first."""
    return read_sweeps(folder / "sweeps")


def read_sweeps(folder: Path) -> list[SweepResult]:
    """Read the sweeps in a folder (one JSON file each), latest first; invalid files are left out."""
    found = []
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError):
            found.append(SweepResult.model_validate_json(path.read_text(encoding="utf-8")))
    return sorted(found, key=lambda sweep: (sweep.started_at, sweep.sweep_id), reverse=True)
