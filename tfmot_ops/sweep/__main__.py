"""`python -m tfmot_ops.sweep`: the compat matrix of one recipe, resumable; `make matrix` runs it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tfmot_ops.contract import CompatResult, Stage, Status
from tfmot_ops.core.catalog import catalogue
from tfmot_ops.sweep.matrix import fingerprint, run_matrix

_LISTED = 10
#: How much less a file may agree with its QAT model, in dB, than the converter's PTQ file does with the float model.
_MARGIN_DB = 1.0


def main(  # noqa: PLR0917 - typer reads one parameter an option
    architectures: Annotated[str, typer.Option(help="Names, separated by commas; all 71 without.")] = "",
    recipe: Annotated[str, typer.Option(help="A name that the recipe decoder knows.")] = "sparse50_wi8_ai8",
    folder: Annotated[Path, typer.Option(help="Results, one file a cell; finished cells are not run again.")] = Path(
        ".matrix"
    ),
    seed: Annotated[int, typer.Option(help="Decides weights and images.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes at once.")] = max(1, (os.cpu_count() or 2) // 2),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Take every architecture through the whole chain, each in its own process."""
    console = Console(stderr=as_json)
    known = catalogue()
    names = [name for name in architectures.split(",") if name] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        console.print(f"unknown architectures\n  required: names of the catalogue\n  received: {', '.join(unknown)}")
        raise typer.Exit(2)
    done = 0

    def on_result(result: CompatResult, cached: bool) -> None:
        nonlocal done
        done += 1
        console.print(f"[{done}/{len(names)}] {_line(result)}{' (from disk)' if cached else ''}", highlight=False)

    target = folder / f"{recipe}-{fingerprint()}-seed{seed}"
    results = run_matrix(names, recipe, target, seed=seed, jobs=jobs, on_result=on_result)
    if as_json:
        typer.echo(json.dumps([result.model_dump(mode="json") for result in results]))
    else:
        _print_summary(console, results)
    raise typer.Exit(0 if all(result.status is Status.OK for result in results) else 4)


def _line(result: CompatResult) -> str:
    m = result.metrics
    if result.status is not Status.OK:
        stage = result.failed_stage.value if result.failed_stage else result.error_class
        return f"[red]{result.architecture}[/red] failed at {stage}: {result.message.partition(chr(10))[0][:160]}"
    return (
        f"[green]{result.architecture}[/green] int8 {m['int8_mac_fraction']:.0%}, sparsity {m.get('sparsity', 0):.3f}, "
        f"agrees {m.get('sqnr_db', float('nan')):.1f} dB (PTQ {m.get('ptq_sqnr_db', float('nan')):.1f}), "
        f"{_seconds(result):.0f} CPU-s, {m['peak_memory_bytes'] / 2**30:.1f} GiB"
    )


def _seconds(result: CompatResult) -> float:
    return sum(result.metrics.get(f"{stage.value}_s", 0.0) for stage in Stage)


def _print_summary(console: Console, results: list[CompatResult]) -> None:
    failed = Counter(result.failed_stage for result in results if result.status is not Status.OK)
    left = len(results)
    table = Table("stage", "passed", "failed here", title=f"{len(results)} architectures")
    for stage in Stage:
        left -= failed[stage]
        table.add_row(stage.value, str(left), str(failed[stage] or ""))
    if failed[None]:
        table.add_row("no stage (died)", "", str(failed[None]))
    console.print(table)
    below = [r.architecture for r in results if _margin(r) > _MARGIN_DB]
    console.print(f"agree more than {_MARGIN_DB:g} dB less than PTQ, with this one seed: {', '.join(below) or 'none'}")
    for title, key in (("slowest, CPU-s", _seconds), ("largest, GiB", _memory)):
        ordered = sorted(results, key=key, reverse=True)[:_LISTED]
        console.print(f"{title}: " + ", ".join(f"{r.architecture} {key(r):.1f}" for r in ordered), highlight=False)


def _margin(result: CompatResult) -> float:
    """How many dB PTQ agrees better; 0 where one of the two was not measured."""
    ours, ptq = result.metrics.get("sqnr_db"), result.metrics.get("ptq_sqnr_db")
    return 0.0 if ours is None or ptq is None else ptq - ours


def _memory(result: CompatResult) -> float:
    return result.metrics.get("peak_memory_bytes", 0.0) / 2**30


if __name__ == "__main__":
    typer.run(main)
