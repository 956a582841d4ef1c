"""Runs cells in child processes with limits, in parallel as far as memory allows; reuses results on disk."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Protocol

from tfmot_ops.contract import CompatResult, Recipe, Stage, Status
from tfmot_ops.sweep.plan.cells import Cost, pick
from tfmot_ops.sweep.run.error_classes import is_lasting, reclassified
from tfmot_ops.sweep.run.limits import SCRATCH, Ended, Limits, death, run_limited
from tfmot_ops.system import files

_LOG_TAIL = 2000


@dataclass(frozen=True)
class Cell:
    """One cell to run.

    Attributes:
        architecture: name in the catalogue.
        recipe: a recipe with a quantization.
        family: module that defines the architecture.
        inputs_sha256: digest of everything that decides the result (see `tfmot_ops.sweep.plan.inputs`).
        seed: seed of weights and images.
    """

    architecture: str
    recipe: Recipe
    family: str = ""
    inputs_sha256: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """`MobileNet/wi8_ai8`."""
        return f"{self.architecture}/{self.recipe.name}"


class Watcher(Protocol):
    """Receives the progress of a sweep."""

    def started(self, cell: str) -> None:
        """Called when a cell's process was started."""

    def ended(self, result: CompatResult) -> None:
        """Called with a cell's result, new or reused."""


class _NullProgress:
    def started(self, cell: str) -> None:
        pass

    def ended(self, result: CompatResult) -> None:
        pass


@dataclass(frozen=True)
class Matrix:
    """Runs cells with the settings below.

    Attributes:
        folder: folder of results and logs (`<architecture>-<recipe>-<digest>.json`). A cell with a result there is not
            run again; if another sweep is running the cell, its result is awaited.
        jobs: largest number of concurrent cells.
        memory_bytes: memory for all concurrent cells together, in bytes.
        limits: limits of each cell.
        costs: architecture -> known CPU time and memory of its cells.
        python: interpreter that runs the cells; for a forecast, that of another environment.
        force: run every cell, even if there is a result on disk.
    """

    folder: Path
    jobs: int = 1
    memory_bytes: float = 16 * 2**30
    limits: Limits = field(default_factory=Limits)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    python: str = sys.executable
    force: bool = False

    def run(
        self, cells: Iterable[Cell], known: Mapping[str, CompatResult] | None = None, watcher: Watcher | None = None
    ) -> list[CompatResult]:
        """Run the cells.

        Args:
            cells: the cells to run.
            known: digest of a cell's inputs -> result of an earlier sweep, which is reused.
            watcher: receives the progress.

        Returns:
            One result per cell, in the order of `cells`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_what_the_killed_left()
        cells, watcher, results = list(cells), watcher or _NullProgress(), {}
        for cell in cells:
            found = None if self.force else self.found(cell) or _of(cell, (known or {}).get(cell.inputs_sha256))
            if found is not None:
                results[cell.name] = reclassified(found).model_copy(update={"cached": True})
                watcher.ended(results[cell.name])
        left = [cell for cell in cells if cell.name not in results]
        results |= self._run_packed(left, watcher)
        return [results[cell.name] for cell in cells]

    def _cost(self, cell: Cell) -> Cost:
        return self.costs.get(cell.architecture, Cost())

    def _run_packed(self, cells: list[Cell], watcher: Watcher) -> dict[str, CompatResult]:
        waiting = sorted(cells, key=lambda cell: (-self._cost(cell).cpu_s, cell.name))
        needs = [self._cost(cell) for cell in waiting]
        running: dict[Future[CompatResult], Cell] = {}
        results: dict[str, CompatResult] = {}
        stop, begun = Event(), time.time()
        with ThreadPoolExecutor(max(1, self.jobs)) as pool:
            try:
                while waiting or running:
                    taken = [self._cost(cell) for cell in running.values()]
                    index = pick(needs, taken, jobs=max(1, self.jobs), memory_bytes=self.memory_bytes)
                    if index is not None:
                        cell, _ = waiting.pop(index), needs.pop(index)
                        watcher.started(cell.name)
                        running[pool.submit(self._run_cell, cell, stop, begun)] = cell
                        continue
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        results[running.pop(future).name] = result
                        watcher.ended(result)
            except BaseException:
                stop.set()  # Ctrl-C: kills the children; results of finished cells stay on disk
                raise
        return results

    def _path(self, cell: Cell) -> Path:
        name = f"{cell.architecture}-{cell.recipe.name}-{cell.inputs_sha256[:16] or 'any'}-seed{cell.seed}.json"
        return self.folder / name.replace("/", "_")

    def found(self, cell: Cell, newer_than: float = 0.0) -> CompatResult | None:
        """The cell's valid result on disk, if it is not older than `newer_than` (Unix time in seconds); else None."""
        path = self._path(cell)
        if not path.exists() or path.stat().st_mtime < newer_than:
            return None
        result = _of(cell, _read(path))
        if result is None:
            return None
        result = reclassified(result)
        return result if is_lasting(result) else None

    def _remove_what_the_killed_left(self) -> None:
        for folder in self.folder.glob(f"*{SCRATCH}"):
            with files.lock(folder.with_suffix(".lock")) as held:
                if held:
                    shutil.rmtree(folder, ignore_errors=True)

    def _run_cell(self, cell: Cell, stop: Event, begun: float) -> CompatResult:
        path = self._path(cell)
        with files.lock(path.with_suffix(".lock"), wait=True, stopped=stop.is_set) as held:
            if not held:
                raise StoppedError
            # Another sweep may have run the cell while this one waited for the lock.
            found = self.found(cell, begun if self.force else 0.0)
            if found is not None:
                return found.model_copy(update={"cached": True})
            recipe_file, answer = path.with_suffix(".recipe"), path.with_suffix(".answer")
            recipe_file.write_text(cell.recipe.model_dump_json(), encoding="utf-8")
            answer.unlink(missing_ok=True)
            command = [self.python, "-m", "tfmot_ops.sweep.run.cell", cell.architecture, str(recipe_file), str(answer)]
            ended = run_limited(
                [*command, str(cell.seed)], path.with_suffix(".log"), self.limits, self._environment(), stop
            )
            recipe_file.unlink(missing_ok=True)
            result = self._judged(cell, ended, answer, path.with_suffix(".log"))
            if ended.limit != "stopped":
                files.write(path, result.model_dump_json(indent=1))
                answer.unlink(missing_ok=True)
            return result

    def _environment(self) -> dict[str, str]:
        # One thread per cell, as concurrent cells share the cores.
        threads = str(max(1, (os.cpu_count() or 1) // max(1, self.jobs)))
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads}
        # Without oneDNN: it caches a copy of each kernel's weights for later runs, and its rounding depends on the
        # processor.
        quiet["TF_ENABLE_ONEDNN_OPTS"] = "0"
        return {**os.environ, **quiet}

    def _judged(self, cell: Cell, ended: Ended, answer: Path, log: Path) -> CompatResult:
        identity = {"family": cell.family, "inputs_sha256": cell.inputs_sha256}
        result = _read(answer) if ended.limit is None and ended.exit_code == 0 else None
        if result is not None:
            metrics = {**result.metrics, "wall_s": ended.duration_s}
            return reclassified(result.model_copy(update={**identity, "error_class": None, "metrics": metrics}))
        kinds = {"time": "timeout", "memory": "out_of_memory"}
        return CompatResult.model_validate(
            {
                **identity,
                "architecture": cell.architecture,
                "recipe": cell.recipe.name,
                "status": Status.FAILED,
                "failed_stage": _last_stage(log),
                "error_class": kinds.get(ended.limit or "", death(ended.exit_code)),
                "message": f"{_reason(ended, self.limits)}\n{_tail(log)}",
                "metrics": {"wall_s": ended.duration_s, "peak_memory_bytes": ended.peak_bytes},
            }
        )


def _of(cell: Cell, result: CompatResult | None) -> CompatResult | None:
    """The result if it names this cell, else None: the folder may be shared, so its files are not trusted."""
    return result if result is not None and result.cell == cell.name else None


def _read(path: Path) -> CompatResult | None:
    """Read a result file; None if it is missing, truncated, or written by an incompatible version of this package."""
    with suppress(OSError, ValueError):
        return CompatResult.model_validate_json(path.read_text(encoding="utf-8"))
    return None


def _reason(ended: Ended, limits: Limits) -> str:
    if ended.limit == "time":
        return f"no result within the time limit of a cell, {limits.time_s:g} s"
    if ended.limit == "memory":
        limit = f"{limits.memory_bytes / 2**30:.1f} GiB"
        return f"{ended.peak_bytes / 2**30:.1f} GiB resident memory, more than the limit of a cell, {limit}"
    if ended.limit == "stopped":
        return "killed, as the sweep was stopped"
    if death(ended.exit_code) == "out_of_memory":
        return f"killed (code {ended.exit_code}), but not by the sweep: the machine probably ran out of memory"
    return f"the process ended with code {ended.exit_code} and without a valid result"


def _last_stage(log: Path) -> Stage | None:
    """The last stage in a cell's log; a cell logs each stage when it begins."""
    stage, known = None, {f"stage: {member.value}".encode(): member for member in Stage}
    with suppress(OSError), log.open("rb") as lines:
        for line in lines:
            stage = known.get(line.strip(), stage)
    return stage


def _tail(log: Path) -> str:
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        return file.read().decode(errors="replace")
    return ""


class StoppedError(Exception):
    """Raised when the sweep is stopped while a cell waits for the lock of its result."""
