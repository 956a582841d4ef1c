"""Compares the SQNR of each TFLite file with the SQNR of the converter's PTQ file, over several seeds.

Usage: `tfmot-ops sweep --seed 0`, `--seed 1` and `--seed 2` with the same folder, then
`python -m tfmot_ops.sweep.judge.margins .sweep`. The SQNR of a model with random weights varies by several dB from seed
to seed, so the median of three seeds is compared with the limit; two seeds on one side of the limit decide.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from tfmot_ops.contract import CompatResult, Status

#: Largest allowed difference between PTQ's SQNR and the file's, in dB.
LIMIT_DB = -1.0
#: Seeds whose median is judged.
SEEDS = 3


@dataclass(frozen=True)
class Margin:
    """A cell of the matrix over its seeds.

    Attributes:
        cell: `MobileNet/wi8_ai8`.
        by_seed: seed -> SQNR of the file to its QAT model minus SQNR of PTQ's file to the float model, in dB.
    """

    cell: str
    by_seed: dict[int, float]

    @property
    def median(self) -> float:
        """Median over the seeds that were run, in dB."""
        return median(self.by_seed.values())

    @property
    def passes(self) -> bool | None:
        """Whether the median of three seeds is within the limit; None if the seeds run so far do not decide it."""
        within = sum(margin >= LIMIT_DB for margin in self.by_seed.values())
        if within > SEEDS // 2:
            return True
        return False if len(self.by_seed) - within > SEEDS // 2 else None


def margins(results: Iterable[tuple[int, CompatResult]]) -> list[Margin]:
    """Margins of passed cells, the smallest median first.

    Args:
        results: (seed, result) of each cell.
    """
    found: dict[str, dict[int, float]] = {}
    for seed, result in results:
        metrics = result.metrics
        if result.status is Status.OK and {"sqnr_db", "ptq_sqnr_db"} <= metrics.keys():
            found.setdefault(result.cell, {})[seed] = metrics["sqnr_db"] - metrics["ptq_sqnr_db"]
    return sorted((Margin(cell, by_seed) for cell, by_seed in found.items()), key=lambda each: (each.median, each.cell))


def read_cells(folder: Path) -> list[tuple[int, CompatResult]]:
    """(seed, latest result) of each cell in a sweep's folder; warns on stderr about an invalid file."""
    latest: dict[tuple[str, int], CompatResult] = {}
    for path in sorted((folder / "cells").glob("*-seed*.json"), key=lambda path: path.stat().st_mtime):
        try:
            result = CompatResult.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            sys.stderr.write(f"{path} is ignored, as it is not a valid result: {error.errors()[0]['msg']}\n")
            continue
        latest[result.cell, int(path.stem.rpartition("-seed")[2])] = result
    return [(seed, result) for (_, seed), result in latest.items()]


def main(arguments: list[str]) -> int:
    """Print one line per cell, then the counts; return exit code 4 if a median is beyond the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path(".sweep"), help="folder in which the sweeps kept their cells"
    )
    rows = margins(read_cells(parser.parse_args(arguments).folder))
    verdicts = {True: "within", False: "BEHIND", None: "open"}
    for row in rows:
        seeds = "  ".join(f"{seed}: {row.by_seed[seed]:+6.1f}" for seed in sorted(row.by_seed))
        sys.stdout.write(f"{verdicts[row.passes]:<7} {row.median:+6.1f} dB  {row.cell:<42} {seeds}\n")
    counts = {title: sum(row.passes is verdict for row in rows) for verdict, title in verdicts.items()}
    sys.stdout.write(f"{', '.join(f'{count} {title}' for title, count in counts.items())}, limit {LIMIT_DB:g} dB\n")
    return 4 if counts["BEHIND"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
