import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tfmot_ops.demo.bench import Workbench

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A workbench in a temporary folder, with Airflow's database and the real DAGs."""
    bench = Workbench(home=tmp_path_factory.mktemp("bench"), dags=ROOT / "dags")
    bench.prepare(lambda _: None)
    return bench


@pytest.fixture(scope="session")
def fake_runs(bench):
    """What came of the DAGs in fake_dags: name -> state, tasks, XComs, specs. One process runs them all."""
    folder = Path(__file__).parent / "fake_dags"
    answer = bench.home / "fake_runs.json"
    run_python([str(folder / "scenarios.py"), str(answer)], replace(bench, dags=folder).environment())
    return json.loads(answer.read_text(encoding="utf-8"))


def run_python(arguments, env):
    """Run Python to its end; its output is in the failure's message."""
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
