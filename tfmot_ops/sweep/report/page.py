"""The page of a sweep: one self-contained HTML file that shows all cells and what changed since earlier sweeps."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from tfmot_ops.contract import CompatResult, Stage, Status
from tfmot_ops.contract.compat import SweepResult
from tfmot_ops.sweep.judge.expected import cpu_seconds
from tfmot_ops.sweep.report import charts, figures
from tfmot_ops.sweep.report.figures import State
from tfmot_ops.system import files

#: CPU seconds from which the square of a passed stage is one shade darker; a stage takes 0.1 s to some minutes.
_SHADES = (1.0, 3.0, 10.0, 30.0)
_LETTER = {State.FAILED: "f", State.NOT_REACHED: "n", State.LEFT_OUT: "o"}
_SIGN = {State.NOT_REACHED: "\u00b7", State.LEFT_OUT: "\u2013"}
_JUDGED = ("regressions", "missing", "improvements", "new")
#: Metrics in a cell's details: metric -> its label.
_FACTS = {
    "layers": "layers",
    "parameters": "parameters",
    "int8_mac_fraction": "int8 share of MACs",
    "float_ops": "float TFLite ops",
    "requantize_ops": "requantise ops",
    "sparsity": "smallest sparsity of a pruned kernel",
    "sqnr_db": "SQNR of the file to its model, dB",
    "ptq_sqnr_db": "SQNR of PTQ's file to the float model, dB",
    "size_bytes": "TFLite file, bytes",
    "gzip_bytes": "gzip, bytes",
    "normalize_difference": "difference after normalize, relative",
    "quantize_difference": "difference after quantize, quantisers off",
    "wall_s": "wall time, s",
}


@dataclass(frozen=True)
class CellRow:
    """One row of the page's table, as texts for the template."""

    architecture: str
    recipe: str
    family: str
    result: str  # `passed`, `export: conversion`, `missing`
    tokens: str  # words that the status filter searches, separated by spaces
    error_class: str
    stages: tuple[tuple[str, str], ...]  # CSS class and text of each stage
    values: tuple[str, ...]  # int8 share, SQNR, against PTQ, file, gzip, CPU-s, memory
    repro: str
    run: str  # URL of the cell's MLflow run; empty without a run


def render_page(sweep: SweepResult, history: Sequence[SweepResult] = (), runs: Mapping[str, str] | None = None) -> str:
    """The page as one string of HTML.

    Args:
        sweep: the sweep to show.
        history: earlier sweeps, in any order; the trend shows the last 29 of them and this sweep.
        runs: cell -> URL of its MLflow run.
    """
    script = _text("page.js")
    rows, cells = _rows(sweep, _families(sweep, history), runs or {})
    return _template().render(
        sweep=sweep,
        style=Markup(_text("page.css")),  # noqa: S704 - our own file, as is the next
        script=Markup(script),  # noqa: S704
        # Content security policy: the browser runs this script only, even if a message got past the escaping.
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        run_url=web_address(sweep.run_url),
        judged=[(kind, _judged(sweep, kind)) for kind in _JUDGED],
        recipes=figures.recipes(sweep),
        passed={recipe: figures.passed_of(sweep, recipe) for recipe in figures.recipes(sweep)},
        requested=figures.requested(sweep),
        stages=[stage.value for stage in Stage],
        rows=rows,
        families=sorted({row.family for row in rows if row.family}),
        stage_counts=figures.stage_counts(sweep.cells),
        without_stage=figures.without_stage(sweep.cells),
        classes=[(name, count, figures.explained(name)) for name, count in figures.class_counts(sweep)],
        trends=charts.trends(charts.last_sweeps(sweep, history)),
        scatter=charts.scatter(sweep.cells),
        tops=_tops(sweep.cells),
        quality=_quality(sweep.cells),
        effort=_effort(sweep),
        data=_data(cells),
    )


def write_page(
    path: Path, sweep: SweepResult, history: Sequence[SweepResult] = (), runs: Mapping[str, str] | None = None
) -> Path:
    """Write the page atomically and return `path`."""
    files.write(path, render_page(sweep, history, runs))
    return path


def web_address(url: str) -> str:
    """`url` if its scheme is http or https, else an empty text: a `javascript:` URL must not become a link."""
    return url if urlsplit(url).scheme in {"http", "https"} else ""


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("tfmot_ops.sweep.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    environment.filters |= {"web": web_address, "relative": quote, "anchor": anchor}
    return environment.get_template("page.html.j2")


def anchor(cell: str) -> str:
    """HTML id of a cell's row, the target of links to the cell."""
    return "cell-" + quote(cell, safe="")


def _families(sweep: SweepResult, history: Sequence[SweepResult]) -> dict[str, str]:
    """Architecture -> family; for a cell without a result, taken from other cells and earlier sweeps."""
    cells = [cell for one in (*history, sweep) for cell in one.cells if cell.family]
    return {cell.architecture: cell.family for cell in cells}


def _judged(sweep: SweepResult, kind: str) -> list[tuple[str, str, str]]:
    """(cell, sentence, path of its repro) of all cells of one kind of judgement."""
    sentences: dict[str, str] = getattr(sweep.judgement, kind)
    return [(cell, figures.printable(text), sweep.repros.get(cell, "")) for cell, text in sorted(sentences.items())]


def _rows(
    sweep: SweepResult, families: dict[str, str], runs: Mapping[str, str]
) -> tuple[list[CellRow], list[CompatResult | None]]:
    """Rows sorted by recipe, family and name, each with the cell's result; None for a cell without a result."""
    results: dict[str, CompatResult | None] = dict.fromkeys(figures.absent(sweep))
    results |= {cell.cell: cell for cell in sweep.cells}
    order = {recipe: index for index, recipe in enumerate(figures.recipes(sweep))}
    rows = []
    for name, cell in results.items():
        architecture, _, recipe = name.rpartition("/")
        rows.append(
            (
                _row(sweep, name, cell, families.get(architecture, ""), web_address(runs.get(name, ""))),
                cell,
                order[recipe],
            )
        )
    rows.sort(key=lambda each: (each[2], each[0].family, each[0].architecture))
    return [row for row, _, _ in rows], [cell for _, cell, _ in rows]


def _row(sweep: SweepResult, name: str, cell: CompatResult | None, family: str, run: str) -> CellRow:
    architecture, _, recipe = name.rpartition("/")
    judged = [kind for kind in _JUDGED if name in getattr(sweep.judgement, kind)]
    repro = sweep.repros.get(name, "")
    if cell is None:
        blank = (("n", _SIGN[State.NOT_REACHED]),) * len(Stage)
        missing = figures.MISSING
        return CellRow(architecture, recipe, family, missing, " ".join(judged), missing, blank, ("",) * 7, repro, run)
    status = "passed" if cell.status is Status.OK else "failed"
    tokens = [status, *judged, *(["cached"] if cell.cached else [])]
    where = f"{cell.failed_stage or 'died'}: {figures.error_class(cell)}"
    return CellRow(
        architecture=architecture,
        recipe=recipe,
        family=family,
        result=status if cell.status is Status.OK else where,
        tokens=" ".join(tokens),
        error_class=figures.error_class(cell),
        stages=tuple(_stage(cell, stage) for stage in Stage),
        values=_values(cell),
        repro=repro,
        run=run,
    )


def _stage(cell: CompatResult, stage: Stage) -> tuple[str, str]:
    """CSS class and text of a stage's square; the text differs by state, so colour is not needed to read it."""
    state, took = figures.state(cell, stage), cell.metrics.get(f"{stage.value}_s")
    text = "" if took is None else short(took)
    if state is State.PASSED:
        return f"p{sum(took is not None and took >= shade for shade in _SHADES)}", text or "ok"
    if state is State.FAILED:
        return "f", f"\u2717 {text}".strip()
    return _LETTER[state], _SIGN[state]


def _values(cell: CompatResult) -> tuple[str, ...]:
    m, better = cell.metrics, figures.against_ptq(cell)
    return (
        _with(m.get("int8_mac_fraction"), "{}", figures.share),
        _with(m.get("sqnr_db"), "{:.1f}"),
        _with(better, "{:+.1f}"),
        _with(m.get("size_bytes"), "{}", megabytes),
        _with(m.get("gzip_bytes"), "{}", megabytes),
        _with(cpu_seconds(cell) or None, "{}", short),
        _with(figures.peak_gib(cell) or None, "{:.2f}"),
    )


def _with(value: float | None, form: str, convert: Callable[[float], object] = float) -> str:
    return "" if value is None else form.format(convert(value))


def short(value: float) -> str:
    """Seconds with at most four characters up to 9999 s: 0.3, 4.7, 31, 1204."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"  # noqa: PLR2004 - two digits either way


def megabytes(value: float) -> str:
    """Bytes as MB, two or three digits."""
    return f"{value / 1e6:.2f}" if value < 1e7 else f"{value / 1e6:.0f}"  # noqa: PLR2004 - as above


def _tops(cells: Sequence[CompatResult]) -> list[dict[str, Any]]:
    """The lists of the slowest and largest ten cells: title, unit, and for each cell its bar length and figure."""
    kinds: tuple[tuple[str, str, Callable[[CompatResult], float], str], ...] = (
        ("Slowest ten", "CPU-s, all stages", cpu_seconds, "{:.0f}"),
        ("Largest ten", "GiB resident at the peak", figures.peak_gib, "{:.2f}"),
        ("Largest files", "TFLite, MB", lambda cell: cell.metrics.get("size_bytes", 0.0) / 1e6, "{:.1f}"),
    )
    lists = []
    for title, unit, figure, form in kinds:
        ordered = figures.top(cells, figure)
        most = figure(ordered[0]) if ordered else 1.0
        entries = [(cell.cell, round(100 * figure(cell) / most, 1), form.format(figure(cell))) for cell in ordered]
        lists.append({"title": title, "unit": unit, "entries": entries})
    return lists


def _quality(cells: Sequence[CompatResult]) -> dict[str, Any]:
    """Quality of the files: int8 share of multiply-accumulates, SQNR against PTQ, sizes."""
    with_file = [cell for cell in cells if "int8_mac_fraction" in cell.metrics]
    both = [better for cell in cells if (better := figures.against_ptq(cell)) is not None]
    rest = figures.not_int8(with_file)
    return {
        "files": len(with_file),
        "int8": len(with_file) - len(rest),
        "not_int8": [(cell.cell, _values(cell)[0]) for cell in rest],
        "both": len(both),
        "margin": figures.middle(both),
        "margin_db": figures.MARGIN_DB,
        "below": [(cell.cell, _values(cell)[2]) for cell in figures.below_ptq(cells)],
        # The float model needs four bytes per weight.
        "size_share": figures.middle(_ratio(cell, "size_bytes", "parameters", 4.0) for cell in cells),
        "gzip_share": figures.middle(_ratio(cell, "gzip_bytes", "parameters", 4.0) for cell in cells),
        "size_bytes": sum(cell.metrics.get("size_bytes", 0.0) for cell in cells),
    }


def _ratio(cell: CompatResult, above: str, below: str, unit: float) -> float | None:
    value, base = cell.metrics.get(above), cell.metrics.get(below)
    return value / (base * unit) if value is not None and base else None


def _effort(sweep: SweepResult) -> dict[str, Any]:
    return {
        "wall": figures.wall(sweep.duration_s),
        "cpu_hours": figures.cpu_hours(sweep.cells),
        "cached": sum(cell.cached for cell in sweep.cells),
        "peak": max((figures.peak_gib(cell) for cell in sweep.cells), default=0.0),
    }


def _data(cells: Sequence[CompatResult | None]) -> dict[str, Any]:
    """Data for the details that the page's script shows, in the order of the rows; equal messages are stored once."""
    messages: dict[str, int] = {"": 0}
    listed = [None if cell is None else _details(cell, messages) for cell in cells]
    return {"stages": list(Stage), "facts": list(_FACTS.values()), "cells": listed, "messages": list(messages)}


def _details(cell: CompatResult, messages: dict[str, int]) -> list[Any]:
    m = cell.metrics
    return [
        [_rounded(m.get(f"{stage.value}_s")) for stage in Stage],
        [_rounded(m.get(f"{stage.value}_peak_bytes"), figures.GIB) for stage in Stage],
        messages.setdefault(figures.printable(cell.message), len(messages)),
        cell.error_type or "",
        [_rounded(m.get(name)) for name in _FACTS],
    ]


def _rounded(value: float | None, unit: float = 1.0) -> float | int | None:
    """Round to five significant digits, to keep the page small."""
    if value is None:
        return None
    number = float(f"{value / unit:.5g}") if abs(value / unit) < 1e5 else round(value / unit)  # noqa: PLR2004
    return int(number) if number == int(number) else number
