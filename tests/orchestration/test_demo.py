"""`make demo` as a user runs it: the real DAG, real steps, MLflow on SQLite; small, and in a temporary folder."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "tools.demo"]


def demo(bench, *arguments):
    return subprocess.run(
        [*COMMAND, "--home", str(bench.home), *arguments], capture_output=True, text=True, check=False, env=os.environ
    )


@pytest.fixture(scope="module")
def shown(bench):
    done = demo(bench, "--limit", "300", "--epochs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_last_line_is_the_int8_file(shown):
    path = Path(shown[-1].removeprefix("TFLite: "))
    assert path.is_absolute()
    assert path.read_bytes()[4:8] == b"TFL3"


def test_the_table_has_a_row_a_step(shown):
    rows = [line.split("│")[1].strip() for line in shown if line.startswith("│")]
    assert rows == ["train", "prune", "fine_tune", "strip", "quantize", "evaluate"]
    assert any("int8 MACs" in line for line in shown)


def test_progress_and_not_pages_of_log(shown):
    assert any(line.startswith("fine_tune epoch 4/4") for line in shown)
    assert len(shown) < 60
    (log,) = {line.removeprefix("Full log: ") for line in shown if line.startswith("Full log: ")}
    assert len(Path(log).read_text(encoding="utf-8").splitlines()) > 100


def test_a_task_that_is_skipped_is_not_called_done(shown):
    ends = {line.split()[0]: line.split()[1] for line in shown if " after " in line and line.split()[1:2] != ["epoch"]}
    assert ends["evaluate"] == "done"
    # No registered model is named, so nothing is registered, and nobody is asked.
    assert ends["register"] == "skipped"


def test_how_to_see_more(shown):
    assert any("make ui" in line for line in shown)
    (folder,) = [line.removeprefix("Artifacts: ") for line in shown if line.startswith("Artifacts: ")]
    assert Path(folder).is_dir()


def test_the_sparsity_reaches_the_int8_file(bench, shown):
    assert shown
    results = json.loads((bench.home / "demo.json").read_text(encoding="utf-8"))["results"]
    assert results["quantize"]["metrics"]["sparsity"] >= 0.49
    assert results["evaluate"]["metrics"]["int8_mac_fraction"] == 1.0


def test_the_drop_is_against_the_trained_model(bench, shown):
    results = json.loads((bench.home / "demo.json").read_text(encoding="utf-8"))["results"]
    metrics = results["evaluate"]["metrics"]
    assert metrics["float_accuracy"] == results["train"]["metrics"]["accuracy"]
    assert metrics["pruned_accuracy"] == results["strip"]["metrics"]["accuracy"]
    assert metrics["accuracy_drop"] == pytest.approx(metrics["float_accuracy"] - metrics["accuracy"])
    assert any("TFLite file against the trained float model" in line for line in shown)


def test_a_failed_step_is_told_with_its_reason(bench):
    done = demo(bench, "--dataset", "npz:/nowhere/images.npz")
    assert done.returncode == 2
    assert "train: " in done.stdout
    assert "/nowhere/images.npz" in done.stdout
    assert "Full log: " in done.stdout.splitlines()[-1]


def test_a_wrong_parameter_is_told(bench):
    done = demo(bench, "--recipe", "no_such_recipe")
    assert done.returncode == 2
    assert "no_such_recipe" in done.stdout
    assert "sparse50_wi8_ai8" in done.stdout


def test_ctrl_c_leaves_nothing_behind(bench):
    command = [*COMMAND, "--home", str(bench.home), "--epochs", "500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        for line in process.stdout:
            if line.startswith("train epoch 2/"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "Stopped." in rest
    assert processes_of(bench) == []


def processes_of(bench):
    """Processes that have the bench in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(bench.home).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
