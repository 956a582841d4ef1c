"""What would break under other versions."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from tfmot_ops import recipes
from tfmot_ops.cli.app import app
from tfmot_ops.contract import CompatResult, Stage, Status, SweepResult
from tfmot_ops.errors import SpecError
from tfmot_ops.sweep.forecast import Verdict, forecast, packages, run_with
from tfmot_ops.sweep.run.limits import Limits
from tfmot_ops.sweep.whole import Sweep


def cell(name, stage=None, error_class=None):
    status = Status.OK if stage is None else Status.FAILED
    error = None if stage is None else "ValueError"
    return CompatResult(
        architecture=name,
        recipe="wi8_ai8",
        status=status,
        failed_stage=stage,
        error_class=error_class,
        error_type=error,
    )


def sweep(*cells, **versions):
    return SweepResult(
        sweep_id="s",
        started_at=datetime(2026, 11, 24, tzinfo=UTC),
        duration_s=1.0,
        cells=cells,
        versions={name.replace("_", "-"): number for name, number in versions.items()},
    )


def test_each_verdict() -> None:
    now = sweep(
        cell("Same"), cell("Breaks"), cell("Mended", Stage.TRAIN), cell("Earlier", Stage.EXPORT),
        cell("Later", Stage.TRAIN), cell("Missing"), cell("StillFails", Stage.TRAIN),
        tf_keras="2.21.0", tensorflow_model_optimization="0.8.1",
    )  # fmt: skip
    then = sweep(
        cell("Same"), cell("Breaks", Stage.QUANTIZE, "rank_mismatch"), cell("Mended"), cell("Earlier", Stage.TRAIN),
        cell("Later", Stage.EXPORT), cell("New"), cell("StillFails", Stage.TRAIN),
        tf_keras="2.21.0", tensorflow_model_optimization="0.8.0",
    )  # fmt: skip
    table = forecast(now, then)
    assert [(row.cell.partition("/")[0], row.verdict) for row in table.rows] == [
        ("Breaks", Verdict.BREAKS),
        ("Earlier", Verdict.EARLIER),
        ("Missing", Verdict.MISSING),
        ("Later", Verdict.LATER),
        ("Mended", Verdict.MENDED),
        ("New", Verdict.NEW),
        ("Same", Verdict.SAME),
        ("StillFails", Verdict.SAME),
    ]
    assert not table.is_go
    assert table.versions == {"tensorflow-model-optimization": ("0.8.1", "0.8.0")}
    lines = table.text().splitlines()
    assert lines[0] == "versions: tensorflow-model-optimization: 0.8.1 -> 0.8.0"
    assert lines[2].split() == ["Breaks/wi8_ai8", "ok", "quantize:", "rank_mismatch", "(ValueError)", "breaks"]
    assert lines[-1] == "no-go: 3 of 8 cells get worse"


def test_go_when_nothing_gets_worse() -> None:
    table = forecast(sweep(cell("A"), cell("B", Stage.TRAIN)), sweep(cell("A"), cell("B"), cell("C", Stage.BUILD)))
    assert table.is_go
    assert table.text().splitlines()[0] == "versions: the same"
    assert table.text().endswith("go: 0 of 3 cells get worse")


def test_an_interpreter_says_what_it_has(tmp_path) -> None:
    found = packages(sys.executable)
    assert {"python", "tensorflow", "tf-keras", "tensorflow-model-optimization", "tfmot-ops"} <= set(found)
    bad = tmp_path / "python"
    bad.write_text("#!/bin/sh\necho 'no module' >&2\nexit 1\n")
    bad.chmod(0o755)
    for python in (bad, tmp_path / "none"):
        with pytest.raises(SpecError, match="cannot run cells"):
            packages(str(python))


@pytest.mark.parametrize(
    ("program", "said"), [("/bin/true", "wrote ''"), ("/bin/echo", "wrote '-c"), ("/bin/false", "exit code 1")]
)
def test_a_program_that_is_no_interpreter_is_refused_with_what_it_said(program, said) -> None:
    with pytest.raises(SpecError, match="cannot run cells") as refused:
        packages(program)
    assert said in refused.value.received or "print(json.dumps(found))" in refused.value.received


def test_the_command_hands_over_its_options_and_says_what_ctrl_c_leaves(tmp_path, monkeypatch) -> None:
    asked = []

    def stopped(plan, *_):
        asked.append((plan.architectures, plan.limits, plan.seed, plan.force, [each.name for each in plan.recipes]))
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tfmot_ops.sweep.forecast.packages", lambda _: {})
    monkeypatch.setattr("tfmot_ops.sweep.forecast.compare", stopped)
    names = ["--architectures", "MobileNet, VGG16", "--recipes", "wi8_ai8, wi8_ai8"]
    limits = ["--time-limit", "7", "--memory-limit", "2", "--seed", "3", "--force"]
    done = CliRunner().invoke(app, ["forecast", "python", *names, *limits])
    assert done.exit_code == 130, done.output
    assert asked == [(("MobileNet", "VGG16"), Limits(7.0, 2.0 * 2**30), 3, True, ["wi8_ai8"])]
    assert "finished cells are kept in .sweep; the same command runs the rest" in done.stderr


@pytest.mark.usefixtures("plugin")
def test_cells_run_with_the_other_interpreter(tmp_path) -> None:
    """The other environment is an interpreter that says on the way in that it was it."""
    other = tmp_path / "python"
    trace = tmp_path / "trace"
    other.write_text(f'#!/bin/sh\necho "$@" >> {trace}\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    asked = Sweep(tmp_path / "sweep", ("sound",), (recipes.decode("wi8_ai8"),), jobs=1, expected={})
    done = run_with(asked, str(other))
    (result,) = done.cells
    assert result.status is Status.OK, result.message
    assert "-m tfmot_ops.sweep.run.cell sound" in trace.read_text()
    assert done.versions["tensorflow"]
    # Never taken for a result of this environment.
    assert result.inputs_sha256 == ""
    assert not (tmp_path / "sweep" / "cells").exists()
