"""A whole sweep: which cells, what is known of them already, running them, and the judgement."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tfmot_ops.contract import CompatResult, Recipe, SweepResult
from tfmot_ops.errors import SpecError
from tfmot_ops.sweep.expected import Expected, costs, judge, read_expected
from tfmot_ops.sweep.limits import Limits
from tfmot_ops.sweep.matrix import Cell, Matrix, Watcher

#: Share of the machine's memory that cells may take together.
_MEMORY_SHARE = 0.85


@dataclass(frozen=True)
class Sweep:
    """What to sweep, where and how.

    Attributes:
        folder: keeps cells, logs and finished sweeps, and what could not be recorded yet.
        architectures: names (see `tfmot_ops.core.catalog.architecture`); empty for the whole catalogue.
        recipes: with a quantisation each.
        seed: decides weights and images.
        jobs: cells at once; 0 for one a core.
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
            SpecError: an architecture is not in the catalogue.
        """
        from tfmot_ops.core.catalog import ANY_SIZE, architecture, catalogue
        from tfmot_ops.sweep.inputs import inputs_sha256

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
            last_good: cell -> its result in the last sweep in which nothing got worse.
            watcher: told how it goes.
            cells: what `cells` gave, when it was asked already.
        """
        started, clock = datetime.now(UTC), time.monotonic()
        cells = self.cells() if cells is None else cells
        results = self.matrix().run(cells, known, watcher)
        return SweepResult(
            sweep_id=f"{started:%Y%m%dT%H%M%S}-{os.getpid()}",
            started_at=started,
            duration_s=time.monotonic() - clock,
            cells=tuple(results),
            judgement=judge(
                [(cell.architecture, cell.recipe.name) for cell in cells], results, self.expected, last_good
            ),
            versions=next((result.versions for result in results if result.versions), {}),
        )

    def matrix(self, python: str | None = None) -> Matrix:
        """Where and how the cells run; `python` is the interpreter of another environment."""
        memory = _memory_bytes() * _MEMORY_SHARE
        matrix = Matrix(
            folder=self.folder / "cells",
            jobs=self.jobs or os.cpu_count() or 1,
            memory_bytes=memory,
            limits=replace(self.limits, memory_bytes=min(self.limits.memory_bytes, memory)),
            costs=costs(self.expected),
            force=self.force,
        )
        return matrix if python is None else replace(matrix, python=python, folder=self.folder / "forecast")


def _memory_bytes() -> float:
    """Memory of this machine, or of the container it is in."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, float(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # not there, or `max`
            continue
    return total


def latest_by_inputs(sweeps: Iterable[SweepResult]) -> dict[str, CompatResult]:
    """Digest of inputs -> the result of the latest sweep that has it; `sweeps` from the latest on.

    What a sick machine may have caused (a timeout, too little memory, a crash) is not taken over.
    """
    known: dict[str, CompatResult] = {}
    for sweep in sweeps:
        for cell in sweep.cells:
            if cell.inputs_sha256 and cell.error_class not in {"timeout", "out_of_memory", "crash"}:
                known.setdefault(cell.inputs_sha256, cell)
    return known


def last_good(sweeps: Iterable[SweepResult]) -> dict[str, CompatResult]:
    """Cell -> its result in the latest sweep in which nothing got worse; `sweeps` from the latest on."""
    good = next((sweep for sweep in sweeps if sweep.judgement.is_good), None)
    return {} if good is None else {cell.cell: cell for cell in good.cells}


def keep(sweep: SweepResult, folder: Path) -> Path:
    """Write a finished sweep to `<folder>/sweeps/<id>.json`, complete or not at all."""
    path = folder / "sweeps" / f"{sweep.sweep_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(sweep.model_dump_json(indent=1), encoding="utf-8")
    part.replace(path)
    return path


def kept(folder: Path) -> list[SweepResult]:
    """The sweeps of this folder, from the latest on."""
    paths = sorted((folder / "sweeps").glob("*.json"), reverse=True)
    return [SweepResult.model_validate_json(path.read_text(encoding="utf-8")) for path in paths]
