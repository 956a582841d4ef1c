"""What others have put into MLflow, or into a file of results, does not become a path and does not end a step."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from tfmot_ops.cli import execute
from tfmot_ops.contract import Artifact, CompatResult, Recipe, Status, StepResult, StepSpec, SweepResult
from tfmot_ops.errors import ArtifactError
from tfmot_ops.store import fetch
from tfmot_ops.sweep.run.matrix import Cell, Matrix
from tfmot_ops.tracking import StepRun, earlier_sweeps
from tfmot_ops.tracking.client import connect

pytestmark = pytest.mark.slow

EXPERIMENT = "sweeps"
GOOD = {"sweep_id": "20260101T000000-1", "started_at": "2026-01-01T00:00:00Z", "duration_s": 0.0, "cells": []}
ARTIFACT = {"uri": "none", "sha256": "0" * 64, "size_bytes": 1, "format": "json"}
CELL = {"architecture": "sound", "recipe": "wi8_ai8", "status": "ok"}
NAMES = ["../victim", "a/b", "a/../../victim", ".hidden", "..", ".", "", "a\nb", "a\\b", "it's", "a\0b", "x" * 300]


@pytest.fixture
def uri(tmp_path):
    """A SQLite store of MLflow."""
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def spec(uri, options):
    key = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": "-1"}
    tracking = {"uri": uri, "experiment": EXPERIMENT, "key": key}
    return StepSpec.model_validate({"step_id": "step", "tracking": tracking, "options": options})


def test_poisoned_sweeps_are_left_out_with_one_line_that_says_so(uri, tmp_path):
    client, experiment = connect(uri, EXPERIMENT)
    texts = [json.dumps({**GOOD, "sweep_id": name}) for name in (*NAMES, str(tmp_path / "victim"))]
    texts += ["no JSON", "[]", "null", "[" * 100_000, json.dumps({**GOOD, "repros": {"a/b": "../../victim.py"}})]
    for text in (*texts, json.dumps(GOOD)):
        run = client.create_run(experiment, tags={"tfmot_ops.kind": "sweep"}).info.run_id
        client.log_text(run, text, "sweep.json")
    before = set(tmp_path.rglob("*"))
    lines: list[str] = []
    options = {"kind": "summarize", "architectures": ["MobileNet"], "recipes": ["wi8_ai8"], "repros": False}
    result = execute.execute(spec(uri, options), lines.append)
    assert result.status is Status.OK, result.error
    told = [line for line in lines if "left out" in line]
    assert len(told) == 1
    assert f"left out {len(texts)} of {len(texts) + 1} earlier sweeps" in told[0]
    assert not [path for path in set(tmp_path.rglob("*")) - before if "victim" in path.name]
    assert GOOD["sweep_id"] in {sweep.sweep_id for sweep in earlier_sweeps(uri, EXPERIMENT)}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("kept", ["a path that leads out", "an absolute path", "no mapping", "no cell"])
def test_poisoned_cells_of_an_earlier_attempt_are_not_written(uri, tmp_path, kept):
    document = {
        "a path that leads out": {"../../victim.json": CELL},
        "an absolute path": {str(tmp_path / "victim.json"): CELL},
        "no mapping": [CELL],
        "no cell": {"cells/a.json": {"architecture": "sound"}},
    }[kept]
    options = {"kind": "compat", "architectures": ["sound"], "recipe": "wi8_ai8"}
    asked = spec(uri, options)
    run = StepRun(asked)
    run._client.log_dict(run.run_id, document, "kept_cells.json")
    lines: list[str] = []
    result = execute.execute(asked, lines.append)
    assert result.status is Status.OK, result.error
    assert result.metrics["passed"] == 1
    assert len([line for line in lines if "starts from the first cell" in line]) == 1
    assert not list(tmp_path.rglob("victim*"))


def test_a_result_of_another_cell_is_not_taken(tmp_path):
    cell = Cell("MobileNet", Recipe(name="wi8_ai8"), inputs_sha256="0" * 64)
    matrix = Matrix(tmp_path)
    right = CompatResult(architecture="MobileNet", recipe="wi8_ai8", status=Status.OK)
    matrix._path(cell).write_text(right.model_dump_json(), encoding="utf-8")
    assert matrix.found(cell) == right
    wrong = right.model_copy(update={"architecture": "../../victim"})
    matrix._path(cell).write_text(wrong.model_dump_json(), encoding="utf-8")
    assert matrix.found(cell) is None
    (known,) = matrix.run([cell], {cell.inputs_sha256: right.model_copy(update={"inputs_sha256": "0" * 64})})
    assert known.cached
    assert known.cell == "MobileNet/wi8_ai8"


@pytest.mark.parametrize("name", NAMES)
def test_names_that_become_files_are_checked_in_every_document(name):
    with pytest.raises(ValidationError):
        SweepResult.model_validate({**GOOD, "sweep_id": name})
    with pytest.raises(ValidationError):
        StepSpec.model_validate(
            {"step_id": "s", "output_uri": "/o", "inputs": {name: ARTIFACT}, "options": {"kind": "list"}}
        )
    fields = {"step_id": "s", "kind": "list", "spec_sha256": "", "status": "ok", "outputs": {name: ARTIFACT}}
    with pytest.raises(ValidationError):
        StepResult.model_validate(fields)


@pytest.mark.parametrize("path", ["../victim.py", "/victim.py", "repros/../../victim.py", ".", "repros//a.py", "a\\b"])
def test_a_repro_is_below_the_folder_of_its_page(path):
    with pytest.raises(ValidationError):
        SweepResult.model_validate({**GOOD, "repros": {"a/b": path}})
    SweepResult.model_validate({**GOOD, "repros": {"a/b": "repros/MobileNet@any-wi8 ai8.py"}})


@pytest.mark.parametrize("uri", ["/out/..", "file:///out/..", "/", "/out/."])
def test_an_artifact_without_a_file_name_is_refused(tmp_path, uri):
    with pytest.raises(ArtifactError, match="ends in no file name"):
        fetch(Artifact.model_validate({**ARTIFACT, "uri": uri}), tmp_path / "inputs")
