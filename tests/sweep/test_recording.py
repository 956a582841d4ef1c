"""The command line: what is kept while MLflow is away, what a warm repeat runs, exit codes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tfmot_ops.cli.app import app
from tfmot_ops.tracking import earlier_sweeps

pytestmark = [pytest.mark.usefixtures("plugin"), pytest.mark.slow]

EXPERIMENT = "sweeps"


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str):
        command = ["sweep", "--architectures", "sound,fickle", "--recipes", "wi8_ai8", "--jobs", "2", "--json"]
        return CliRunner().invoke(app, [*command, "--experiment", EXPERIMENT, *arguments])

    return run


def test_nothing_is_lost_while_mlflow_is_away_and_regressions_exit_4(invoke, tmp_path, monkeypatch) -> None:
    # Nothing listens there.
    away = invoke("--tracking-uri", "http://127.0.0.1:9")
    assert away.exit_code == 0, away.output
    first = json.loads(away.stdout)
    assert [cell["status"] for cell in first["cells"]] == ["ok", "ok"]
    assert "and the next sweep records it" in away.stderr
    assert [path.name for path in (tmp_path / ".sweep" / "pending").iterdir()] == [first["sweep_id"]]

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    warm = invoke("--tracking-uri", uri)
    second = json.loads(warm.stdout)
    assert warm.exit_code == 0, warm.output
    assert [cell["cached"] for cell in second["cells"]] == [True, True]
    recorded = earlier_sweeps(uri, EXPERIMENT)
    assert [sweep.sweep_id for sweep in recorded] == [second["sweep_id"], first["sweep_id"]]
    assert not list((tmp_path / ".sweep" / "pending").iterdir())

    monkeypatch.setenv("TEST_BREAK", "yes")
    broken = invoke("--tracking-uri", uri, "--force", "--report", "red")
    assert broken.exit_code == 4, broken.output
    assert list(json.loads(broken.stdout)["judgement"]["regressions"]) == ["fickle/wi8_ai8"]
    assert "fickle/wi8_ai8" in (tmp_path / "red" / "index.html").read_text(encoding="utf-8")
    assert len(earlier_sweeps(uri, EXPERIMENT)) == 3


def test_an_unknown_architecture_is_refused_before_anything_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["sweep", "--architectures", "MobilNet"])
    assert refused.exit_code != 0
    assert "MobilNet" in str(refused.exception)
    assert not list(tmp_path.glob(".sweep"))
