import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools.demo.workbench import Workbench

ROOT = Path(__file__).resolve().parents[2]


def _run_python(arguments, env):
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def run_python():
    """A function that runs Python to its end and gives its output; a failure shows it."""
    return _run_python


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
    _run_python([str(folder / "scenarios.py"), str(answer)], replace(bench, dags=folder).environment())
    return json.loads(answer.read_text(encoding="utf-8"))
