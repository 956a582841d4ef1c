"""The sweep's operators under `dag.test()`, on runners that give their worker back; and attempts that follow others.

Run as a script it is the process of the DAGs: what came of each goes to a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tfmot_ops.contract import Artifact, ArtifactFormat, Status, StepResult, StepSpec
from tfmot_ops.runners import FakeRunner, Runner

pytestmark = pytest.mark.slow

RECIPE = "wi8_ai8"
WORSE = {"regressions": {"A/wi8_ai8": "conversion at export: no"}, "improvements": {}, "new": {}, "missing": {}}
GOOD = {kind: {} for kind in WORSE}
#: What Airflow reads from its DAG folder.
DAGS = """
# DAGs of airflow
import sys
sys.path.insert(0, {folder!r})
from test_deferral import scenarios
globals().update({{name: each[0] for name, each in scenarios().items()}})
"""
ANSWER = {"step_id": "s", "kind": "s", "spec_sha256": "0" * 64, "status": "ok"}
CELLS = {"uri": "memory://cells.json", "sha256": "0" * 64, "size_bytes": 1, "format": "json"}


def answer(**fields: Any) -> StepResult:
    return StepResult.model_validate(ANSWER | fields)


@dataclass(frozen=True)
class Deferring:
    """Starts nothing and gives the worker back; the answer comes when the task is taken up again."""

    then: FakeRunner
    started: list[StepSpec] = field(default_factory=list, repr=False)

    def start(self, spec: StepSpec, *_: Any) -> Any:
        from airflow.sdk.exceptions import TaskDeferred
        from airflow.triggers.testing import SuccessTrigger

        self.started.append(spec)

        class Deferred:
            result = None

            def wait(self) -> None:
                raise TaskDeferred(trigger=SuccessTrigger(), method_name="trigger_reentry")

            def kill(self) -> None:
                pass

        return Deferred()

    def resume(self, spec: StepSpec, context: Mapping[str, Any], log: Any, _: Any) -> Any:
        return self.then.start(spec, context, log)


@dataclass(frozen=True)
class Sized:
    """A runner with a limit of memory, which it tells with each spec that it is given."""

    runner: Runner
    told: list[float] = field(default_factory=list, repr=False)
    gib: float = 4.0

    def with_memory(self, gib: float) -> Sized:
        return Sized(self.runner, self.told, max(gib, self.gib))

    def start(self, *arguments: Any) -> Any:
        self.told.append(self.gib)
        return self.runner.start(*arguments)


def sweep_of(name: str, judgement: Mapping[str, Any], answers: Mapping[str, Any], architectures: list[str]) -> Any:
    """A DAG with the operators of compat_sweep: (DAG, runners)."""
    from airflow.sdk import DAG

    from tfmot_ops.operators import CompatSweepOperator, ListOperator, SummarizeSweepOperator
    from tfmot_ops.operators.notify import LogNotifier
    from tfmot_ops.operators.sweep import PlanSweepOperator

    fake = FakeRunner(answers={"shards": answer(outputs={"cells": CELLS}), **answers})
    shards = Sized(fake)
    last = Deferring(FakeRunner(answers={"summarize": answer(parameters={"judgement": judgement})}))
    asked = {"architectures": architectures, "recipes": [RECIPE]}
    with DAG(name, schedule=None, default_args={"output_uri": "memory://out"}) as dag:
        listing = ListOperator(task_id="list", options={"what": "architectures"}, runner=fake)
        plan = PlanSweepOperator(task_id="plan", catalogue=listing.output, **asked)
        mapped = CompatSweepOperator.partial(task_id="shards", runner=shards, memory_gib=22)
        SummarizeSweepOperator(
            task_id="summarize",
            shards=[mapped.expand(options=plan.output).output],
            catalogue=listing.output,
            options=asked,
            runner=last,
            tracking_uri="sqlite:///none.db",
            trigger_rule="all_done",
            on_failure_callback=LogNotifier(),
        )
    return dag, shards, last


def forecast_of(name: str, figures: Mapping[str, float], sides: Mapping[str, Any]) -> Any:
    from airflow.sdk import DAG

    from tfmot_ops.operators import ForecastOperator

    told = answer(metrics=figures, parameters={"forecast": "the table"})
    last = Deferring(FakeRunner(answers={"forecast": told}))
    with DAG(name, schedule=None) as dag:
        ForecastOperator(
            task_id="forecast", runner=last, output_uri="memory://out", planned=[{"architectures": ["A"]}], **sides
        )
    return dag, None, last


def scenarios() -> dict[str, Any]:
    listed = answer(parameters={"list": ["A", "B"]})
    sides = {side: [{"outputs": {"cells": CELLS}}] for side in ("now", "then")}
    return {
        "worse": sweep_of("worse", WORSE, {"list": listed}, ["A"]),
        "good": sweep_of("good", GOOD, {"list": listed}, []),
        "unlisted": sweep_of("unlisted", WORSE, {"list": RuntimeError("no disk")}, []),
        "breaks": forecast_of("breaks", {"cells": 1, "worse": 1}, sides),
        "empty": forecast_of("empty", {"cells": 0, "worse": 0}, {}),
        "go": forecast_of("go", {"cells": 1, "worse": 0}, sides),
    }


def record(dag: Any, shards: Any, last: Deferring) -> dict[str, Any]:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    run = dag.test()
    with create_session() as session:
        tasks = {ti.task_id: str(ti.state) for ti in run.get_task_instances(session=session)}
        found = session.scalars(select(XComModel).where(XComModel.dag_id == dag.dag_id))
        xcoms = {f"{x.task_id}.{x.key}": XComModel.deserialize_value(x) for x in found}
    specs = [[spec.model_dump(mode="json") for spec in each] for each in (last.started, last.then.specs)]
    return {"tasks": tasks, "xcoms": xcoms, "specs": specs, "memory": shards.told if shards else []}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({name: record(*each) for name, each in scenarios().items()}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What came of each DAG, and the log of all of them."""
    from tools.demo.workbench import Workbench

    folder = tmp_path_factory.mktemp("deferral")
    bench = Workbench(home=folder / "bench", dags=folder / "dags")
    bench.dags.mkdir()
    (bench.dags / "scenarios.py").write_text(DAGS.format(folder=str(Path(__file__).parent)), encoding="utf-8")
    bench.prepare(lambda _: None)
    command = [sys.executable, __file__, str(folder / "answer.json")]
    done = subprocess.run(
        command, env=bench.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return json.loads((folder / "answer.json").read_text(encoding="utf-8")) | {"log": done.stdout}


def test_a_deferred_summary_judges(runs) -> None:
    run = runs["worse"]
    started, resumed = run["specs"]
    assert len(started) == len(resumed) == 1
    assert started == resumed, "or the answer is one to another question"
    assert started[0]["inputs"] == {"cells_0000": CELLS}
    assert run["tasks"]["summarize"] == "failed"
    assert run["xcoms"]["summarize.judgement"] == WORSE
    assert "1 cells got worse\n  A/wi8_ai8: conversion at export: no" in runs["log"]
    assert "regressions: A/wi8_ai8 conversion at export: no" in runs["log"], "the notifier reads the XCom"
    assert started[0]["tracking"]["key"]["run_after"]
    assert runs["good"]["tasks"]["summarize"] == "success"


def test_a_whole_catalogue_is_asked_with_all_that_is_expected(runs) -> None:
    from tfmot_ops.sweep.judge.expected import read_expected

    asked = runs["good"]["specs"][0][0]["options"]["architectures"]
    assert asked == sorted({"A", "B", *read_expected()})
    assert runs["worse"]["specs"][0][0]["options"]["architectures"] == ["A"]


def test_a_listing_that_failed_leaves_everything_missing(runs) -> None:
    from tfmot_ops.sweep.judge.expected import read_expected

    run = runs["unlisted"]
    assert (run["tasks"]["list"], run["tasks"]["summarize"]) == ("failed", "failed")
    assert run["specs"][0][0]["options"]["architectures"] == sorted(read_expected())
    assert run["specs"][0][0]["inputs"] == {}
    assert "the catalogue could not be listed" in runs["log"]


def test_a_shard_gets_the_memory_of_its_class(runs) -> None:
    assert runs["worse"]["memory"] == [22]


def test_a_deferred_forecast_compares(runs) -> None:
    started, resumed = runs["breaks"]["specs"]
    assert started == resumed
    assert list(started[0]["inputs"]) == ["now_0000", "then_0000"]
    states = {name: runs[name]["tasks"]["forecast"] for name in ("breaks", "empty", "go")}
    assert states == {"breaks": "failed", "empty": "failed", "go": "success"}
    assert "no forecast: 0 of 1 cells have a result" in runs["log"]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("other", [False, True], ids=["here", "another-interpreter"])
def test_a_killed_shard_runs_what_was_not_finished(tmp_path, other) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = {"kind": "compat", "architectures": ["fickle", "raises"], "recipe": RECIPE, "force": True}
    options |= {"python": str(python)} if other else {}
    document = {"step_id": "light", "output_uri": str(tmp_path / "out"), "options": options}
    (tmp_path / "spec.json").write_text(StepSpec.model_validate(document).model_dump_json())
    command = [sys.executable, "-m", "tfmot_ops.cli", "run", "--spec", "spec.json", "--result", "result.json"]
    # Both fail in their first stage, which is quick.
    environment = os.environ | {"TEST_BREAK": "yes", "TEST_STAGE": "build", "HOME": str(tmp_path / "first")}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("raises/wi8_ai8 runs" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    environment |= {"HOME": str(tmp_path / "second")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continues after 1 cells" in done.stdout
    assert "fickle/wi8_ai8 unknown at build (cached)" in done.stdout
    assert "fickle/wi8_ai8 runs" not in done.stdout
    assert "raises/wi8_ai8 runs" in done.stdout
    cells = json.loads((tmp_path / "out" / "cells.json").read_text(encoding="utf-8"))
    assert [(cell["architecture"], cell["message"]) for cell in cells] == [
        ("fickle", "planted"),
        ("raises", "planted in build"),
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cells.json"], "kept cells go in the end"


class RunStore:
    """A store of a run that a retry takes up: what is there is found again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, path: Path, name: str, artifact_format: ArtifactFormat) -> Artifact:
        from tfmot_ops.store import put

        return put(path, str(self.folder), name, artifact_format)

    def find(self, name: str, artifact_format: ArtifactFormat, folder: Path) -> Path | None:
        del folder
        path = self.folder / f"{name}.{artifact_format.value}"
        return path if path.exists() else None


def test_cells_are_kept_on_the_run_where_nothing_else_lasts(tmp_path, monkeypatch) -> None:
    from tfmot_ops.contract import CompatResult
    from tfmot_ops.steps.compat import _CellKeeper
    from tfmot_ops.steps.work import Work

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TFMOT_OPS_CHECKPOINTS", raising=False)
    options = {"kind": "compat", "architectures": ["A"], "recipe": RECIPE}
    spec = StepSpec.model_validate({"step_id": "light", "tracking": {"uri": "sqlite:///x.db"}, "options": options})
    said: list[str] = []
    cell = CompatResult(architecture="A", recipe=RECIPE, status=Status.OK)

    class Progress:
        def message(self, text: str) -> None:
            said.append(text)

    def attempt(number: int) -> tuple[_CellKeeper, Path]:
        work = Work(spec, RunStore(tmp_path / "run"), tmp_path / str(number), Progress())
        path = work.workdir / "sweep" / "cells" / "A-wi8_ai8-any-seed0.json"
        path.parent.mkdir(parents=True)
        keeper = _CellKeeper(work, work.workdir / "sweep")
        keeper.restore()
        return keeper, path

    first, path = attempt(1)
    assert said == []
    path.write_text(cell.model_dump_json())
    first.ended(cell)
    second, path = attempt(2)
    assert CompatResult.model_validate_json(path.read_text()) == cell
    second.remove()
    _, path = attempt(3)
    assert not path.exists()
    assert said == ["A/wi8_ai8 ok", "continues after 1 cells of an earlier attempt"]
    assert not (tmp_path / "home").exists()


def test_a_retried_summary_takes_up_its_runs(tmp_path) -> None:
    import mlflow

    from tfmot_ops.cli.execute import execute
    from tfmot_ops.contract import CompatResult
    from tfmot_ops.steps.compat import as_json
    from tfmot_ops.store import describe
    from tfmot_ops.tracking import earlier_sweeps

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    path = tmp_path / "cells.json"
    path.write_bytes(as_json([CompatResult(architecture="A", recipe=RECIPE, status=Status.OK)]))
    key = {"dag_id": "d", "run_id": "r", "task_id": "summarize", "run_after": "2026-11-24T02:00:00+00:00"}
    document = {
        "step_id": "summarize",
        "inputs": {"cells_0000": describe(path, str(path), ArtifactFormat.JSON)},
        "tracking": {"uri": uri, "experiment": "e", "key": key},
        "options": {"kind": "summarize", "architectures": ["A", "B"], "recipes": [RECIPE]},
    }
    spec = StepSpec.model_validate(document)
    results = [execute(spec, lambda _: None) for _ in range(2)]
    assert [result.status for result in results] == [Status.OK, Status.OK], results
    assert results[1].parameters["judgement"] == results[0].parameters["judgement"], "not judged by itself"
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert sorted(run.data.tags["tfmot_ops.kind"] for run in runs) == ["cell", "sweep"]
    (sweep,) = earlier_sweeps(uri, "e")
    assert sweep.sweep_id.startswith("20261124T020000-")
    assert list(sweep.judgement.missing) == ["B/wi8_ai8"]
