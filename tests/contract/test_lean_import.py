"""What parses a DAG loads no TensorFlow and no MLflow; what reads a document loads no Airflow either."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

HEAVY = {"tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "mlflow", "ai_edge_litert"}


class Lean(NamedTuple):
    modules: str
    absent: set[str]


CASES = {
    "operators and runners": Lean("tfmot_ops.operators, tfmot_ops.runners", HEAVY | {"tfmot_ops.core"}),
    "contract": Lean("tfmot_ops.contract", HEAVY | {"tfmot_ops.core", "airflow", "numpy", "yaml"}),
    "errors": Lean("tfmot_ops.errors", HEAVY | {"tfmot_ops.core", "airflow", "pydantic"}),
    "report": Lean("tfmot_ops.cli.chain_table", HEAVY | {"tfmot_ops.core", "airflow"}),
    "the plan of a sweep": Lean(
        "tfmot_ops.sweep.plan.cells, tfmot_ops.sweep.judge.expected", HEAVY | {"tfmot_ops.core", "airflow"}
    ),
    "targets and search": Lean(
        "tfmot_ops.targets, tfmot_ops.search.front, tfmot_ops.search.ladder",
        HEAVY | {"tfmot_ops.core", "airflow", "numpy"},
    ),
    "command": Lean("tfmot_ops.cli", HEAVY | {"tfmot_ops.core", "airflow"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_import_stays_lean(case, tmp_path):
    code = f"import {case.modules}, json, sys; print(json.dumps(sorted(sys.modules)))"
    # Airflow makes its home at import.
    env = {"AIRFLOW_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded.isdisjoint(case.absent), sorted(loaded & case.absent)


def test_the_dags_import_airflow_and_what_is_made_for_them():
    allowed = {"airflow.sdk", *(f"tfmot_ops.{room}" for room in ("operators", "runners", "contract", "recipes"))}
    for path in (Path(__file__).resolve().parents[2] / "dags").glob("*.py"):
        imports = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {getattr(node, "module", None) or alias.name for node in imports for alias in node.names}
        ours = {".".join(name.split(".")[:2]) for name in names if name.startswith(("airflow", "tfmot_ops"))}
        assert ours <= allowed, path.name
