"""The terminal's side of a sweep: the listing, and the live line."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from tfmot_ops.contract import CompatResult, Judgement, Stage, Status, SweepResult
from tfmot_ops.sweep.report.listing import print_listing
from tfmot_ops.sweep.report.progress import SweepProgress

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BOXES = set("\u2500\u2502\u250f\u2501\u2503\u2513\u2521\u2514\u2518\u253c")


def a_cell(name: str, failed: Stage | None = None, message: str = "", **changes) -> CompatResult:
    metrics = {f"{stage}_s": 3.0 for stage in Stage} | {"peak_memory_bytes": 1.5 * 2**30}
    if failed is None:
        metrics |= {"int8_mac_fraction": 1.0, "sqnr_db": 22.4, "ptq_sqnr_db": 24.9, "size_bytes": 2_632_104.0}
    return CompatResult(
        architecture=name,
        recipe="wi8_ai8",
        status=Status.FAILED if failed else Status.OK,
        failed_stage=failed,
        error_class="conversion" if failed else None,
        message=message,
        metrics=metrics,
        **changes,
    )


SWEEP = SweepResult(
    sweep_id="20261124T010000-7",
    started_at=datetime(2026, 11, 24, 1, tzinfo=UTC),
    duration_s=3725.0,
    cells=(
        a_cell("MobileNetV2"),
        a_cell("ResNet50", cached=True),
        a_cell("DenseNet121", Stage.EXPORT, "[bold]no markup[/bold] \x1b[31mred\x1b[0m\nsecond line"),
    ),
    judgement=Judgement(
        regressions={"DenseNet121/wi8_ai8": "conversion at export: [/oops] no markup"},
        improvements={"ResNet50/wi8_ai8": "expected: fails with timeout; now: passes"},
        missing={"VGG16/wi8_ai8": "has no result"},
    ),
)


def printed(sweep: SweepResult, folder: Path | None = None, accept: str = "", **options) -> str:
    out = io.StringIO()
    print_listing(Console(file=out, **options), sweep, folder=folder, accept=accept)
    return out.getvalue()


def test_a_log_gets_plain_text_a_line_a_cell():
    text = printed(SWEEP)
    assert "\x1b" not in text
    assert not BOXES & set(text)
    lines = text.splitlines()
    assert lines[0] == ("ok   MobileNetV2/wi8_ai8  int8 100 %, SQNR 22.4 dB (PTQ 24.9), 2.63 MB, 30 CPU-s, 1.5 GiB")
    assert lines[1].endswith("cached")
    assert lines[2] == "FAIL DenseNet121/wi8_ai8  export: conversion, [bold]no markup[/bold] red (30 CPU-s, 1.5 GiB)"
    assert lines[3].startswith("MISS VGG16/wi8_ai8")


def test_a_terminal_gets_the_same_in_colour():
    text = printed(SWEEP, force_terminal=True, color_system="standard", width=120)
    assert "\x1b[32mok" in text
    assert "\x1b[1;31mFAIL" in text
    assert BOXES & set(text)
    assert ANSI.sub("", text).splitlines()[:4] == printed(SWEEP).splitlines()[:4]


def test_counts_extremes_and_effort():
    text = printed(SWEEP)
    assert re.search(r"^export +2 +1 *$", text, re.MULTILINE)
    assert re.search(r"^agree +2 *$", text, re.MULTILINE)
    assert re.search(r"^conversion +1 +The TFLite converter refused", text, re.MULTILINE)
    assert re.search(r"^missing +1 +Requested", text, re.MULTILINE)
    assert "slowest ten, CPU-s: MobileNetV2/wi8_ai8 30, ResNet50" in text
    assert "largest ten, GiB: MobileNetV2/wi8_ai8 1.50" in text
    assert "below PTQ, with this one seed: MobileNetV2/wi8_ai8 -2.5" in text
    # Two cells of 30 s; the cached one cost nothing.
    assert "0.02 CPU-hours in 1 h 02 min, peak memory 1.5 GiB, 1 of 3 cells cached" in text


def test_the_verdict_comes_last():
    lines = printed(SWEEP).splitlines()
    assert lines[-1] == "sweep 20261124T010000-7: 2 of 4 cells passed, something got worse"
    at = {line: index for index, line in enumerate(lines)}
    assert at["improvements (1)"] < at["missing (1)"] < at["regressions (1)"]
    assert "  DenseNet121/wi8_ai8: conversion at export: [/oops] no markup" in lines
    good = SWEEP.model_copy(update={"cells": SWEEP.cells[:1], "judgement": Judgement()})
    assert printed(good).splitlines()[-1].endswith("1 of 1 cells passed, nothing got worse")


def test_a_repro_is_told_with_its_whole_path():
    sweep = SWEEP.model_copy(update={"repros": {"DenseNet121/wi8_ai8": "repros/DenseNet121-wi8_ai8.py"}})
    lines = printed(sweep, Path("a report")).splitlines()
    at = lines.index("  DenseNet121/wi8_ai8: conversion at export: [/oops] no markup")
    assert lines[at + 1] == "    repro: a report/repros/DenseNet121-wi8_ai8.py"


def test_the_hint_to_accept_is_the_command_that_is_given_and_none_without():
    assert "to accept new and improved cells as expected, run: do this" in printed(SWEEP, accept="do this").splitlines()
    assert "accept" not in printed(SWEEP)
    same = SWEEP.model_copy(update={"judgement": Judgement(regressions=SWEEP.judgement.regressions)})
    assert "do this" not in printed(same, accept="do this")


def test_nothing_at_all_can_be_listed():
    assert "0 of 0 cells passed" in printed(SWEEP.model_copy(update={"cells": (), "judgement": Judgement()}))


def test_progress_in_a_log_is_one_line_a_finished_cell():
    out = io.StringIO()
    with SweepProgress(Console(file=out), 3) as progress:
        for cell in SWEEP.cells:
            progress.started(cell.cell)
            progress.ended(cell)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert [line[:10] for line in lines] == ["[1/3] ok  ", "[2/3] ok  ", "[3/3] FAIL"]


def test_progress_on_a_terminal_is_live_and_goes_away():
    out = io.StringIO()
    with SweepProgress(Console(file=out, force_terminal=True, width=140), 4) as progress:
        progress.ended(SWEEP.cells[1])
        assert progress.eta_s is None, "a cached cell says nothing about the others"
        progress.started("MobileNetV2/wi8_ai8")
        progress.started("DenseNet121/wi8_ai8")
        progress.ended(SWEEP.cells[2])
        progress._bar.refresh()
        assert progress.eta_s is not None
    text = ANSI.sub("", out.getvalue())
    assert "2/4 done, 1 failed, 0:00 left; running: MobileNetV2/wi8_ai8" in text
    assert "[2/4] FAIL DenseNet121/wi8_ai8" in text, "what is wrong is said at once"
    assert "ok   ResNet50" not in text, "the rest is for the listing"
    assert out.getvalue().rstrip().endswith("\x1b[2K"), "its line is wiped"
    assert "\x1b[?25h" in out.getvalue(), "the cursor is back"


def test_the_cursor_comes_back_after_ctrl_c():
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), SweepProgress(Console(file=out, force_terminal=True), 4):
        raise KeyboardInterrupt
    assert "\x1b[?25h" in out.getvalue()


def test_cells_may_end_in_any_thread():
    out = io.StringIO()
    cells = [a_cell(f"A{number}") for number in range(40)]
    with SweepProgress(Console(file=out), len(cells)) as progress:
        threads = [Thread(target=progress.ended, args=(cell,)) for cell in cells]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = [line.partition("]")[0] for line in out.getvalue().splitlines()]
    assert counts == [f"[{number}/40" for number in range(1, 41)]
