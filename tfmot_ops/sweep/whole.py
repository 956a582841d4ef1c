"""A whole sweep: which cells, what is known of them already, running them, and the judgement."""

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
from tfmot_ops.sweep.plan.cells import MEMORY_SHARE, machine_bytes
from tfmot_ops.sweep.run.error_classes import is_lasting
from tfmot_ops.sweep.run.limits import Limits
from tfmot_ops.sweep.run.matrix import Cell, Matrix, Watcher
from tfmot_ops.system import files

#: Metric of each cell: results of another seed are no baseline.
_SEED = "seed"


@dataclass(frozen=True)
class Sweep:
    """What to sweep, where and how.

    Attributes:
        folder: keeps cells, logs and finished sweeps, and what could not be recorded yet.
        architectures: names (see `tfmot_ops.models.architectures.architecture`); empty for the whole catalogue.
        recipes: with a quantisation each.
        seed: decides weights and images.
        jobs: cells at once; 0 for one per core.
        limits: of each cell.
        force: run every cell, whatever is known.
        expected: what every cell should come to.
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
        """Every cell there has to be.

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
            Cell(each.name, recipe, each.family, inputs_sha256(each, recipe, self.seed), self.seed)
            for recipe in self.recipes
            for each in chosen
        ]

    def run(
        self,
        known: Mapping[str, CompatResult] | None = None,
        last_good: Mapping[str, CompatResult] | None = None,
        watcher: Watcher | None = None,
        cells: Sequence[Cell] | None = None,
    ) -> SweepResult:
        """Run what is not known, and judge the whole.

        Args:
            known: digest of a cell's inputs -> result of an earlier sweep with the same.
            last_good: see `last_good`.
            watcher: told how it goes.
            cells: what `cells` gave, when it was asked already.

        Raises:
            SpecError: as `cells`, or there is no cell: nothing to run is nothing that passes.
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
            judgement=judge(self._asked(cells), results, self.expected, last_good),
            versions=next((result.versions for result in results if result.versions), {}),
        )

    def _asked(self, cells: Sequence[Cell]) -> list[tuple[str, str]]:
        """(architecture, recipe) of what there has to be: of a whole catalogue also what has gone from it."""
        asked = dict.fromkeys((cell.architecture, cell.recipe.name) for cell in cells)
        if not self.architectures:
            asked |= dict.fromkeys((name, recipe.name) for recipe in self.recipes for name in self.expected)
        return list(asked)

    def matrix(self, python: str | None = None) -> Matrix:
        """Where and how the cells run; `python` is the interpreter of another environment."""
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
    """Digest of inputs -> the result of the latest sweep that has it; `sweeps` from the latest on.

    What a sick machine may have caused is not taken over.
    """
    known: dict[str, CompatResult] = {}
    for sweep in sweeps:
        for cell in sweep.cells:
            if cell.inputs_sha256 and is_lasting(cell):
                known.setdefault(cell.inputs_sha256, cell)
    return known


def last_good(sweeps: Iterable[SweepResult], seed: int = 0) -> dict[str, CompatResult]:
    """Cell -> its result in the latest sweep that it passed with this seed; `sweeps` from the latest on.

    By cell, as a sweep of a few architectures says nothing of the others, and a bad one something of those that passed.
    """
    good: dict[str, CompatResult] = {}
    for cell in (cell for sweep in sweeps for cell in sweep.cells):
        if cell.status is Status.OK and cell.metrics.get(_SEED, 0.0) == seed:
            good.setdefault(cell.cell, cell)
    return good


def with_seed(results: Iterable[CompatResult], seed: int) -> list[CompatResult]:
    """The results, each with the seed it was run with, which `last_good` asks for."""
    return [result.model_copy(update={"metrics": {**result.metrics, _SEED: float(seed)}}) for result in results]


def _no_cells(received: str) -> SpecError:
    return SpecError(
        "a sweep of nothing",
        required="at least one recipe and one architecture",
        received=received,
        remedy="name them, or leave the option out for all architectures or the default recipes",
    )


def keep(sweep: SweepResult, folder: Path) -> Path:
    """Write a finished sweep to `<folder>/sweeps/<id>.json`, complete or not at all."""
    path = folder / "sweeps" / f"{sweep.sweep_id}.json"
    files.write(path, sweep.model_dump_json(indent=1))
    return path


def kept(folder: Path) -> list[SweepResult]:
    """The sweeps of this folder, from the latest on."""
    return read_sweeps(folder / "sweeps")


def read_sweeps(folder: Path) -> list[SweepResult]:
    """The sweeps that are in a folder, one JSON file each, from the latest on; one that cannot be read is left out."""
    found = []
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError):
            found.append(SweepResult.model_validate_json(path.read_text(encoding="utf-8")))
    return sorted(found, key=lambda sweep: (sweep.started_at, sweep.sweep_id), reverse=True)
