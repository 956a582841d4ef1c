"""A store in a SQLite file is whole, whatever was killed while it was made; what cannot be used is refused."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from tracking.kill_store import OLD_SCHEMA, RUN, make_old

from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import files
from tfmot_ops.tracking.artifacts import put_json
from tfmot_ops.tracking.client import connect, download

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("TFMOT_OPS_STORE_KILLS", "4"))


@pytest.mark.parametrize("kind", ["new", "upgrade"])
def test_a_kill_never_ruins_a_store(kind):
    script = Path(__file__).with_name("kill_store.py")
    ended = subprocess.run(
        [sys.executable, str(script), kind, str(KILLS), "3"], capture_output=True, text=True, timeout=1800, check=False
    )
    assert ended.returncode == 0, ended.stderr
    counts = json.loads(ended.stdout)
    assert counts.pop("kills") > KILLS // 2, "the work ended before the kills"
    assert counts == {"usable": KILLS, "lost": 0, "leftovers": 0}


@pytest.mark.parametrize("broken", [None, b"", b"no database", b"SQLite format 3\0"], ids=str)
def test_the_second_new_store_is_a_copy_with_a_place_for_artifacts_of_its_own(tmp_path, monkeypatch, broken):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        client, _ = connect(f"sqlite:///{tmp_path / name / 'mlflow.db'}", "mine")
        places = [client.get_experiment_by_name(each).artifact_location for each in ("Default", "mine")]
        assert all(place.startswith((tmp_path / name / "mlflow-artifacts").as_uri()) for place in places)
        (kept,) = (tmp_path / "cache" / "tfmot_ops").iterdir()
        made.append(kept.stat().st_mtime_ns)
        if broken is not None:
            kept.write_bytes(broken)
    assert (made[0] == made[1]) == (broken is None)


@pytest.fixture
def half_made(tmp_path):
    """What a kill left before stores were made beside: all migrations up to one, and a table of the next."""
    path = tmp_path / "mlflow.db"
    make_old(path)
    with sqlite3.connect(path) as records:
        records.execute("CREATE TABLE _alembic_tmp_experiments (experiment_id INTEGER)")
        records.execute("CREATE TABLE logged_models (model_id INTEGER)")
    records.close()
    return path


def test_a_half_made_store_without_records_is_made_anew(half_made, tmp_path):
    with sqlite3.connect(half_made) as records:
        records.execute("DELETE FROM runs")
        records.execute("DELETE FROM experiments")
    records.close()
    client, experiment = connect(f"sqlite:///{half_made}", "mine")
    assert client.search_runs([experiment]) == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mlflow.db"]


def test_a_half_upgraded_store_with_records_is_refused_and_stays_as_it_is(half_made):
    before = half_made.read_bytes()
    with pytest.raises(StepFailedError, match="cannot be used as MLflow's store") as refusal:
        connect(f"sqlite:///{half_made}", "mine")
    assert "move the file away" in refusal.value.remedy
    assert half_made.read_bytes() == before


def test_a_store_of_an_older_version_keeps_its_runs(tmp_path):
    path = tmp_path / "mlflow.db"
    make_old(path)
    client, _ = connect(f"sqlite:///{path}", "mine")
    assert client.get_run(RUN).info.run_name == "kept"
    assert OLD_SCHEMA not in str(sqlite3.connect(path).execute("SELECT version_num FROM alembic_version").fetchall())


def _text(path: Path) -> None:
    path.write_text("This is a letter, not a database. " * 100)


def _of_a_later_version(path: Path) -> None:
    connect(f"sqlite:///{path}", "mine")
    with sqlite3.connect(path) as records:
        records.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
        records.execute("INSERT INTO experiments (experiment_id, name) VALUES (7, 'theirs')")
    records.close()


@pytest.mark.parametrize("make", [_text, _of_a_later_version, Path.mkdir], ids=["text", "later version", "folder"])
def test_what_is_no_store_is_refused(make, tmp_path):
    make(tmp_path / "mlflow.db")
    with pytest.raises(StepFailedError, match="tracking:"):
        connect(f"sqlite:///{tmp_path / 'mlflow.db'}", "mine")


def test_an_empty_file_becomes_a_store(tmp_path):
    path = tmp_path / "mlflow.db"
    path.touch()
    assert connect(f"sqlite:///{path}", "mine")[0].get_experiment_by_name("mine") is not None


def test_a_journal_of_a_deleted_store_does_not_harm_the_new_one(tmp_path):
    path = tmp_path / "mlflow.db"
    (tmp_path / "mlflow.db-journal").write_bytes(os.urandom(4096))
    connect(f"sqlite:///{path}", "mine")
    assert mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("mine") is not None


@pytest.mark.parametrize("name", ["a%20b", "a?b"])
def test_a_folder_of_any_name_holds_its_store(name, tmp_path):
    folder = tmp_path / name
    uri = files.sqlite_uri(folder / "mlflow.db")
    client, experiment = connect(uri, "mine")
    run = client.create_run(experiment).info.run_id
    put_json(client, run, {}, "a.json")
    assert download(f"runs:/{run}/a.json", tmp_path / name / "copy", uri).read_text() == "{}"
    assert sorted(each.name for each in folder.iterdir()) == ["copy", "mlflow-artifacts", "mlflow.db"]
    assert list(tmp_path.iterdir()) == [folder]
