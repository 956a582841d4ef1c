"""The listing of a sweep for a terminal or a log: all cells, counts, slowest and largest cells, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tfmot_ops.contract import CompatResult, Status
from tfmot_ops.contract.compat import SweepResult
from tfmot_ops.sweep.judge.expected import cpu_seconds
from tfmot_ops.sweep.report import figures

_MESSAGE_LENGTH = 160
#: Kinds of the judgement and the style of their titles; kinds that need action come last, near the prompt.
_JUDGED = (("new", "cyan"), ("improvements", "green"), ("missing", "bold red"), ("regressions", "bold red"))


def print_listing(console: Console, sweep: SweepResult, *, folder: Path | None = None, accept: str = "") -> None:
    """Print the sweep; without colours and boxes if the console is not a terminal.

    The verdict is printed last, so that it is visible just above the next prompt.

    Args:
        console: where to print.
        sweep: the sweep to print.
        folder: folder of the sweep's repros, used to print their paths.
        accept: command that accepts new and improved cells as expected; empty prints no command.
    """
    names = [cell.cell for cell in sweep.cells] + figures.absent(sweep)
    width = max(map(len, names), default=0)
    for cell in sweep.cells:
        _say(console, cell_line(cell, width))
    for name in figures.absent(sweep):
        _say(console, Text.assemble(("MISS", "bold red"), f" {name.ljust(width)}  has no result"))
    console.print()
    _print_table(console, _stages(console, sweep))
    if figures.class_counts(sweep):
        _print_table(console, _classes(console, sweep))
    _print_extremes(console, sweep)
    _print_verdict(console, sweep, folder or Path(), accept)


def cell_line(cell: CompatResult, width: int = 0) -> Text:
    """One line for a cell: its figures in green, or its failed stage and error class in red; `width` pads the name."""
    name = cell.cell.ljust(width)
    end = _joined(_effort(cell))
    if cell.status is Status.OK:
        return Text.assemble(("ok  ", "green"), f" {name}  ", _joined([*_figures(cell), *_effort(cell)]))
    where = f"{cell.failed_stage or 'no stage'}: {figures.error_class(cell)}"
    said = figures.printable(cell.message).strip().partition("\n")[0][:_MESSAGE_LENGTH]
    return Text.assemble(("FAIL", "bold red"), f" {name}  ", (where, "red"), f", {said}" if said else "", f" ({end})")


def _figures(cell: CompatResult) -> list[str]:
    m = cell.metrics
    ptq = f" (PTQ {m['ptq_sqnr_db']:.1f})" if "ptq_sqnr_db" in m else ""
    known: dict[str, Callable[[float], str]] = {
        "int8_mac_fraction": lambda value: f"int8 {figures.share(value)}",
        "sparsity": lambda value: f"sparsity {value:.3f}",
        "sqnr_db": lambda value: f"SQNR {value:.1f} dB{ptq}",
        "size_bytes": lambda value: f"{value / 1e6:.2f} MB",
    }
    return [write(m[metric]) for metric, write in known.items() if metric in m]


def _effort(cell: CompatResult) -> list[str]:
    parts = [f"{cpu_seconds(cell):.0f} CPU-s", f"{figures.peak_gib(cell):.1f} GiB"]
    return [*parts, "cached"] if cell.cached else parts


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(parts)


def _say(console: Console, text: Text | str) -> None:
    # Without wrapping: logs are searched with grep, and a terminal wraps lines itself.
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _table(console: Console, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    if not console.is_terminal:
        table.box = None
        table.pad_edge = False
    return table


def _print_table(console: Console, table: Table) -> None:
    console.print(table, highlight=False)
    console.print()


def _stages(console: Console, sweep: SweepResult) -> Table:
    table = _table(console, f"{figures.requested(sweep)} cells by stage")
    table.add_column("stage")
    table.add_column("passed", justify="right", style="green")
    table.add_column("failed here", justify="right", style="red")
    for each in figures.stage_counts(sweep.cells):
        table.add_row(each.stage.value, str(each.passed), str(each.failed or ""))
    if gone := figures.without_stage(sweep.cells):
        table.add_row("no stage", "", str(gone))
    return table


def _classes(console: Console, sweep: SweepResult) -> Table:
    table = _table(console, "failed cells by error class")
    table.add_column("class", no_wrap=True)
    table.add_column("cells", justify="right", style="red")
    table.add_column("what it means")
    for name, count in figures.class_counts(sweep):
        # As Text, so that brackets in an installed package's text are not read as rich markup.
        table.add_row(Text(name), str(count), Text(figures.explained(name)))
    return table


def _print_extremes(console: Console, sweep: SweepResult) -> None:
    kinds: tuple[tuple[str, Callable[[CompatResult], float], str], ...] = (
        ("slowest ten, CPU-s", cpu_seconds, ".0f"),
        ("largest ten, GiB", figures.peak_gib, ".2f"),
    )
    for title, figure, form in kinds:
        ordered = figures.top(sweep.cells, figure)
        listed = _joined([f"{cell.cell} {format(figure(cell), form)}" for cell in ordered])
        _say(console, Text.assemble((f"{title}: ", "bold"), listed or "nothing was measured"))
    below = [f"{cell.cell} {figures.against_ptq(cell):+.1f}" for cell in figures.below_ptq(sweep.cells)]
    title = f"SQNR more than {figures.MARGIN_DB:g} dB below PTQ, with this one seed: "
    _say(console, Text.assemble((title, "bold"), _joined(below) or "none"))
    peak = max(map(figures.peak_gib, sweep.cells), default=0.0)
    cached = sum(cell.cached for cell in sweep.cells)
    spent = f"{figures.cpu_hours(sweep.cells):.2f} CPU-hours in {figures.wall(sweep.duration_s)}"
    _say(console, f"{spent}, peak memory {peak:.1f} GiB, {cached} of {len(sweep.cells)} cells cached")


def _print_verdict(console: Console, sweep: SweepResult, folder: Path, accept: str) -> None:
    console.print()
    for kind, style in _JUDGED:
        sentences: dict[str, str] = getattr(sweep.judgement, kind)
        if not sentences:
            continue
        _say(console, Text(f"{kind} ({len(sentences)})", style))
        for cell, sentence in sorted(sentences.items()):
            _say(console, f"  {cell}: {figures.printable(sentence)}")
            if cell in sweep.repros:
                _say(console, f"    repro: {folder / sweep.repros[cell]}")
    if accept and (sweep.judgement.improvements or sweep.judgement.new):
        _say(console, f"to accept new and improved cells as expected, run: {accept}")
    counts = f"{sweep.passed} of {figures.requested(sweep)} cells passed"
    good = sweep.judgement.is_good
    word = ("nothing got worse", "bold green") if good else ("something got worse", "bold red")
    _say(console, Text.assemble(f"sweep {sweep.sweep_id}: {counts}, ", word))
