"""An installed package with models, for the processes of the cells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.demo.workbench import Workbench

ROOT = Path(__file__).resolve().parents[2]

#: Name of an architecture -> function in the package.
MODELS = {name: name for name in ("sound", "nests", "fickle", "sleeps", "allocates", "dies", "raises")}
MODELS |= {f"sound_{number}": "sound" for number in range(1, 5)}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Puts the package on the path of this process and its children."""
    folder = tmp_path / "site"
    info = folder / "sweep_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    source = Path(__file__).with_name("plugin.py").read_text(encoding="utf-8")
    (folder / "sweep_plugin.py").write_text(source, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sweep-plugin\nVersion: 1.0\n", encoding="utf-8")
    entries = "\n".join(f"{name} = sweep_plugin:{function}" for name, function in MODELS.items())
    (info / "entry_points.txt").write_text(f"[tfmot_ops.models]\n{entries}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("sweep_plugin", None)


@pytest.fixture
def bench(tmp_path):
    """A workbench in a temporary folder, with the real DAGs."""
    bench = Workbench(home=tmp_path / "bench", dags=ROOT / "dags")
    bench.prepare(lambda _: None)
    return bench


@pytest.fixture
def run_dag(bench):
    """A function that runs a DAG of the bench to its end: name, params, environment -> what came of it, the log."""

    def run(name, params, **environment):
        answer = bench.home / "answer.json"
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("run_dag.py")), name, json.dumps(params), str(answer)],
            env=bench.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return json.loads(answer.read_text(encoding="utf-8")), done.stdout

    return run
