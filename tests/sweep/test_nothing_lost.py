"""What is kept of a sweep until it is recorded, and what is recorded when; the cells and repros are made up."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from tfmot_ops.cli import sweep_command as command
from tfmot_ops.cli.app import app
from tfmot_ops.contract import CompatResult, Recipe, Stage, Status
from tfmot_ops.errors import SpecError, StepFailedError
from tfmot_ops.sweep.judge import expected
from tfmot_ops.sweep.repro import script as repro
from tfmot_ops.sweep.run import matrix
from tfmot_ops.sweep.run.limits import Ended
from tfmot_ops.system import files
from tfmot_ops.tracking import earlier_sweeps
from tfmot_ops.tracking.client import connect
from tfmot_ops.tracking.sweep_runs import log_sweep, run_address

pytestmark = pytest.mark.slow

EXPERIMENT = "sweeps"
UI = "http://mlflow.test:5000"
AWAY = ("--tracking-uri", "http://127.0.0.1:9")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Cells that need no process: those of MobileNet pass, those of VGG16 fail at export while `TEST_BREAK` is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFMOT_OPS_MLFLOW_UI", UI)
    for name in ("TFMOT_OPS_TRACKING_URI", "MLFLOW_TRACKING_URI"):  # MLflow itself sets the latter
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    path = tmp_path / "expected.yaml"
    path.write_text("VGG16: {cpu_s: 1.0, memory_gib: 1.0, passes: [wi8_ai8]}\n", encoding="utf-8")
    entry = expected.read_expected(path)
    monkeypatch.setattr("tfmot_ops.sweep.whole.read_expected", lambda: entry)
    monkeypatch.setattr(command.Sweep, "__init__", _with_expected(command.Sweep.__init__, entry))

    def cell(commands, log, *_) -> Ended:
        name, answer = commands[3], Path(commands[5])
        recipe = Recipe.model_validate_json(Path(commands[4]).read_text(encoding="utf-8")).name
        broken = name == "VGG16" and os.environ.get("TEST_BREAK")
        how = {"failed_stage": Stage.EXPORT, "error_type": "ConverterError", "message": "no"} if broken else {}
        status = Status.FAILED if broken else Status.OK
        result = CompatResult(architecture=name, recipe=recipe, status=status, **how)
        answer.write_text(result.model_dump_json(), encoding="utf-8")
        log.write_text("", encoding="utf-8")
        return Ended(0, None, 1.0, 1.0)

    def script(_, log, *__) -> Ended:
        text = os.environ["TEST_BREAK"]
        log.with_suffix(".py").write_text(text, encoding="utf-8")
        log.with_suffix(".json").write_text(json.dumps({"of": text}), encoding="utf-8")
        return Ended(0, None, 1.0, 1.0)

    monkeypatch.setattr(matrix, "run_limited", cell)
    monkeypatch.setattr(repro, "run_limited", script)
    return tmp_path


def _with_expected(init, entry):
    def __init__(self, *arguments, **fields) -> None:  # noqa: N807 - in the place of one
        init(self, *arguments, **{"expected": entry, **fields})

    return __init__


def invoke(*arguments: str, names: str = "MobileNet, VGG16,MobileNet"):
    words = ["sweep", "--architectures", names, "--recipes", "wi8_ai8", "--experiment", EXPERIMENT]
    return CliRunner().invoke(app, [*words, *arguments])


def runs(uri: str) -> dict[str, mlflow.entities.Run]:
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id])
    return {f"{each.data.tags['tfmot_ops.sweep_id']} {each.data.tags['tfmot_ops.cell']}": each for each in found}


def text_of(uri: str, run: mlflow.entities.Run, path: str) -> str:
    local = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{path}", tracking_uri=uri)
    return Path(local).read_text(encoding="utf-8")


def test_a_sweep_that_is_recorded_late_has_its_own_page_and_scripts(here, monkeypatch) -> None:
    monkeypatch.setenv("TEST_BREAK", "first")
    started = time.monotonic()
    late = invoke(*AWAY, "--json")
    assert late.exit_code == 4, late.output
    assert time.monotonic() - started < 60
    assert "reading earlier sweeps" in late.stderr
    first = json.loads(late.stdout)
    assert first["repros"] == {"VGG16/wi8_ai8": "repros/VGG16-wi8_ai8.py"}

    # The same report folder, and a script of the same name.
    monkeypatch.setenv("TEST_BREAK", "second")
    uri = f"sqlite:///{here / 'mlflow.db'}"
    second = json.loads(invoke("--tracking-uri", uri, "--json").stdout)
    found, ids = runs(uri), [first["sweep_id"], second["sweep_id"]]
    assert len(found) == 6
    for sweep_id, text in zip(ids, ("first", "second"), strict=True):
        parent, child = found[f"{sweep_id} -"], found[f"{sweep_id} VGG16/wi8_ai8"]
        assert text_of(uri, parent, "repros/VGG16-wi8_ai8.py") == text
        assert text_of(uri, child, "VGG16-wi8_ai8.py") == text
        assert json.loads(text_of(uri, child, "VGG16-wi8_ai8.json")) == {"of": text}
        page = text_of(uri, parent, "index.html")
        address = f"{UI}/#/experiments/{parent.info.experiment_id}/runs"
        assert sweep_id in page
        assert f'href="{address}/{parent.info.run_id}"' in page
        assert f'href="{address}/{child.info.run_id}"' in page
        assert 'href="repros/VGG16-wi8_ai8.py"' in page
    # It ran first, whenever it was recorded.
    assert [sweep.sweep_id for sweep in earlier_sweeps(uri, EXPERIMENT)] == ids[::-1]
    assert found[f"{ids[0]} -"].info.start_time < found[f"{ids[1]} -"].info.start_time
    assert not list((here / ".sweep" / "pending").iterdir())
    # The page at hand is the recorded one, and a third one's trend leads to the sweeps before it.
    assert (here / "sweep-report" / "index.html").read_text(encoding="utf-8") == page
    third = invoke("--tracking-uri", uri)
    assert f"/runs/{found[f'{ids[0]} -'].info.run_id}" in Path("sweep-report/index.html").read_text(encoding="utf-8")
    assert "repro: sweep-report/repros/VGG16-wi8_ai8.py" in third.output


def test_a_sweep_that_another_one_recorded_meanwhile_is_recorded_once(here, monkeypatch) -> None:
    uri = f"sqlite:///{here / 'mlflow.db'}"

    real = files.lock

    @contextmanager
    def lock(path, **how):
        with real(path, **how) as held:
            if path.name == "recording.lock":
                record()
            yield held

    def record() -> None:
        (sweep,) = command.kept(Path(".sweep"))
        plan = command._Recorder(Path(".sweep"), Path("sweep-report"), (uri, EXPERIMENT), (), print)
        plan._record_all(sweep)

    monkeypatch.setattr(files, "lock", lock)
    done = invoke("--tracking-uri", uri)
    assert done.exit_code == 0, done.output
    assert "is kept in" not in done.stderr
    assert len(runs(uri)) == 3
    assert len(earlier_sweeps(uri, EXPERIMENT)) == 1


def test_what_was_not_tracked_is_never_uploaded(here) -> None:
    assert invoke().exit_code == 0
    assert not (here / ".sweep" / "pending").exists()
    uri = f"sqlite:///{here / 'mlflow.db'}"
    invoke("--tracking-uri", uri)
    assert len(earlier_sweeps(uri, EXPERIMENT)) == 1


def test_a_sweep_is_recorded_before_its_repros_are_made(here, monkeypatch) -> None:
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setenv("TEST_BREAK", "yes")
    monkeypatch.setattr(command, "write_repros", interrupted)
    uri = f"sqlite:///{here / 'mlflow.db'}"
    stopped = invoke("--tracking-uri", uri)
    assert stopped.exit_code == 130, stopped.output
    assert "stopped: the sweep is kept in .sweep" in stopped.stderr
    (recorded,) = earlier_sweeps(uri, EXPERIMENT)
    assert list(recorded.judgement.regressions) == ["VGG16/wi8_ai8"]
    assert not list((here / ".sweep" / "pending").iterdir())


@pytest.mark.usefixtures("here")
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(monkeypatch) -> None:
    real = matrix.run_limited

    def interrupted(commands, *rest) -> Ended:
        if commands[3] == "VGG16":
            raise KeyboardInterrupt
        return real(commands, *rest)

    monkeypatch.setattr(matrix, "run_limited", interrupted)
    stopped = invoke("--jobs", "1")
    assert stopped.exit_code == 130, stopped.output
    assert "stopped: 1 of 2 cells are kept in .sweep; the same command runs the rest" in stopped.stderr
    monkeypatch.setattr(matrix, "run_limited", real)
    again = json.loads(invoke("--json").stdout)
    assert [cell["cached"] for cell in again["cells"]] == [True, False]


@pytest.mark.usefixtures("here")
def test_a_server_that_is_away_is_given_up_soon(monkeypatch) -> None:
    from tfmot_ops.tracking import sweep_runs as tracked

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    seen = []

    def connect(*_):
        seen.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
        raise StepFailedError("away")

    monkeypatch.setattr(tracked, "connect", connect)
    with pytest.raises(StepFailedError):
        earlier_sweeps(AWAY[1], EXPERIMENT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    with pytest.raises(StepFailedError):
        earlier_sweeps(AWAY[1], EXPERIMENT)
    assert seen == ["2", "5"], "the user's own number wins"
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with pytest.raises(StepFailedError):
        earlier_sweeps(AWAY[1], EXPERIMENT)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.parametrize("option", ["--report", "--folder"])
def test_a_folder_that_cannot_be_written_is_refused_up_front(here, monkeypatch, option) -> None:
    (here / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(matrix, "run_limited", None)
    refused = invoke(option, "file")
    assert isinstance(refused.exception, SpecError)
    assert option in refused.exception.remedy


def test_the_hint_is_a_command_that_accepts_just_that(here, monkeypatch) -> None:
    hint = "to accept new and improved cells as expected, run: "
    out = invoke("--folder", "my cells", "--seed", "3").output
    assert (
        f"{hint}tfmot-ops sweep --architectures MobileNet,VGG16 --recipes wi8_ai8 --folder 'my cells' --seed 3 --accept"
        in out.splitlines()
    )
    assert out.count("--accept") == 1
    path = here / "expected.yaml"
    monkeypatch.setattr(expected, "PATH", path)
    accepted = invoke("--accept")
    assert accepted.exit_code == 0, accepted.output
    assert hint not in accepted.output
    assert sorted(expected.read_expected(path)) == ["MobileNet", "VGG16"]


def test_accepting_into_a_package_that_cannot_be_written(here, monkeypatch) -> None:
    (here / "file").touch()
    monkeypatch.setattr(expected, "PATH", here / "file" / "expected.yaml")
    refused = invoke("--accept")
    assert isinstance(refused.exception, StepFailedError)
    assert "in a checkout" in refused.exception.remedy
    assert not (here / ".sweep").exists(), "before anything runs"
    with pytest.raises(StepFailedError, match="cannot be saved"):
        command.accept_sweep(json_sweep())


def json_sweep():
    return command.SweepResult(sweep_id="s", started_at="2026-11-24T00:00:00Z", duration_s=1.0, cells=())


def test_an_address_is_on_the_web_and_without_a_password(monkeypatch) -> None:
    monkeypatch.delenv("TFMOT_OPS_MLFLOW_UI", raising=False)
    assert run_address("http://me:secret@host:5000/ui/", "1", "ab") == "http://host:5000/ui/#/experiments/1/runs/ab"
    assert run_address("sqlite:///mlflow.db", "1", "ab") == "runs:/ab"
    monkeypatch.setenv("TFMOT_OPS_MLFLOW_UI", UI)
    assert run_address("sqlite:///mlflow.db", "1", "ab") == f"{UI}/#/experiments/1/runs/ab"


def test_a_summarize_steps_sweep_has_a_page_that_leads_to_its_runs(here, monkeypatch) -> None:
    cell = CompatResult(architecture="VGG16", recipe="wi8_ai8", status=Status.OK)
    sweep = json_sweep().model_copy(update={"cells": (cell,), "repros": {cell.cell: "repros/VGG16.py"}})
    (here / "sweep.json").write_text(sweep.model_dump_json(), encoding="utf-8")
    (here / "repros").mkdir()
    (here / "repros" / "VGG16.py").write_text("script", encoding="utf-8")
    uri = f"sqlite:///{here / 'mlflow.db'}"
    client, experiment = connect(uri, EXPERIMENT)
    parent = client.create_run(experiment).info.run_id
    log_sweep(client, parent, here)
    found = runs(uri)
    child = found["s VGG16/wi8_ai8"]
    page = text_of(uri, found["s -"], "index.html")
    assert f'href="{UI}/#/experiments/{experiment}/runs/{parent}"' in page
    assert f'href="{UI}/#/experiments/{experiment}/runs/{child.info.run_id}"' in page
    assert text_of(uri, child, "VGG16.py") == text_of(uri, found["s -"], "repros/VGG16.py") == "script"
    # The step is tried again, and the cell comes to something else.
    failed = cell.model_copy(
        update={"status": Status.FAILED, "error_class": "conversion", "failed_stage": Stage.EXPORT}
    )
    again = sweep.model_copy(update={"cells": (failed,)})
    (here / "sweep.json").write_text(again.model_dump_json(), encoding="utf-8")
    log_sweep(client, parent, here)
    found = runs(uri)
    assert len(found) == 2
    assert found["s VGG16/wi8_ai8"].info.run_id == child.info.run_id
    assert found["s VGG16/wi8_ai8"].info.status == "FAILED"
    assert found["s VGG16/wi8_ai8"].data.tags["stage"] == "export"
    # Where there are no addresses, the step's own page says as much.
    monkeypatch.delenv("TFMOT_OPS_MLFLOW_UI")
    other = client.create_run(experiment).info.run_id
    log_sweep(client, other, here)
    assert "index.html" not in {file.path for file in client.list_artifacts(other)}


def test_names_are_stripped_and_count_once() -> None:
    assert command.names(" MobileNet, VGG16,,MobileNet ") == ("MobileNet", "VGG16")
    assert [recipe.name for recipe in command.read_recipes("wi8_ai8, wi8_ai8 ,sparse50_wi8_ai8")] == [
        "wi8_ai8",
        "sparse50_wi8_ai8",
    ]


def test_two_recipes_of_one_name_are_refused(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(Recipe(name="wi8_ai8").model_dump_json(), encoding="utf-8")
    with pytest.raises(SpecError, match="two different recipes have the name wi8_ai8"):
        command.read_recipes(f"wi8_ai8,{path}")


def test_help_tells_every_exit_code() -> None:
    told = " ".join(CliRunner().invoke(app, ["sweep", "--help"]).output.split())
    assert "Exit codes: 0 nothing got worse, 1 a bug, 2 the request is wrong, 4 a cell regressed" in told
    assert "130" in told
    options = CliRunner().invoke(app, ["forecast", "--help"]).output
    assert all(option in options for option in ("--time-limit", "--memory-limit", "--seed", "--force"))
