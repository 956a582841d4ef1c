"""Every script in `examples/` runs as it is; the DAG among them is loaded by Airflow."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from doc_blocks import ROOT

from tfmot_ops.core import keras

SCRIPTS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}


def _printed(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    registered = keras.utils.get_custom_objects()
    before = dict(registered)
    runpy.run_path(str(SCRIPTS[name]), run_name="__main__")
    registered.clear()  # a later test must not find the script's classes
    registered.update(before)
    return capfd.readouterr().out


@pytest.mark.slow
def test_qat_of_your_model(monkeypatch, tmp_path, capfd) -> None:
    out = _printed("qat_of_your_model", monkeypatch, tmp_path, capfd)
    accuracy = {name: float(value) for name, value in re.findall(r"^(\w+): accuracy ([\d.]+)%", out, re.MULTILINE)}
    assert accuracy.keys() == {"float", "PTQ", "QAT"}
    assert accuracy["QAT"] > accuracy["float"] - 3.0
    assert re.search(r"^residual\w*/conv2d", out, re.MULTILINE), "the custom layer was not opened"


@pytest.mark.slow
def test_sparse_int8(monkeypatch, tmp_path, capfd) -> None:
    out = _printed("sparse_int8", monkeypatch, tmp_path, capfd)
    gzip = {
        name: int(size.replace(",", "")) for name, size in re.findall(r"^(\w+): .* gzip ([\d,]+)", out, re.MULTILINE)
    }
    assert gzip["sparse"] < 0.5 * gzip["dense"]
    assert set(re.findall(r": (\d+)% zeros", out)) == {"80"}


@pytest.mark.slow
def test_audio_to_microcontroller(monkeypatch, tmp_path, capfd) -> None:
    out = _printed("audio_to_microcontroller", monkeypatch, tmp_path, capfd)
    assert "tflm_equal_outputs: 1\n" in out
    assert "resolver.AddDepthwiseConv2D()" in out
    assert (tmp_path / "bundle" / "model.cc").is_file()


@pytest.mark.slow
def test_search_under_a_goal(monkeypatch, tmp_path, capfd) -> None:
    out = _printed("search_under_a_goal", monkeypatch, tmp_path, capfd)
    (chosen,) = re.findall(r"^take: (\w+)$", out, re.MULTILINE)
    assert f"{chosen}\n  max_drop: required drop at most 1.0 points" in out
    assert (tmp_path / "search" / "search.html").is_file()


def test_release_with_approval(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    dag = runpy.run_path(str(SCRIPTS["release_with_approval"]))["dag"]
    dag.validate()
    order = [task.task_id for task in dag.topological_sort()]
    assert order == ["open_run", "train", "quantize", "evaluate", "register", "approve", "promote", "close_run"]
    assert dag.get_task("approve").downstream_task_ids == {"promote"}


def test_every_script_has_a_test_and_fits_a_screen() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(SCRIPTS) <= tests
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 60 for path in SCRIPTS.values())
