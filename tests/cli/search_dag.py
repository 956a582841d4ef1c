"""Runs the DAG `search_model`: once with real steps, then with figures that are made up.

It is a process of its own, as Airflow reads its settings from the environment. The real steps run in this process, as
each process of its own would import TensorFlow for some ten seconds:
`search_dag.py <params of the real run as JSON> <answer file>`
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

from tfmot_ops import steps
from tfmot_ops.contract import Artifact, ArtifactFormat, Headline, Status, StepResult, StepSpec
from tfmot_ops.errors import UnsupportedModelError
from tfmot_ops.runners import FakeRunner
from tfmot_ops.store import FsspecStore
from tools.demo.dag import load_dag

FILE = Artifact(uri="runs:/1/a.tflite", sha256="0" * 64, size_bytes=1, format=ArtifactFormat.TFLITE)
ASKED = {"model": "mlp", "dataset": "digits", "target": "cortex_m", "max_drop": 1.0}
#: Candidate -> drop of the accuracy, or why its step fails. No drop is within the goal.
DROPS: dict[str, Any] = {
    "wi8_ai8_ptq": 0.05,
    "wi8_ai8_ptq_aeq": UnsupportedModelError("no quantiser for this layer"),
    "wi8_ai8": 0.02,
    "wi8_ai8_distilled": 0.03,
}


class Silent:
    """Takes the progress of a step, and shows none of it."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@dataclass(frozen=True)
class InThisProcess:
    """Runs real steps in this process; spec and result go through JSON, as between processes."""

    specs: list[StepSpec] = field(default_factory=list, repr=False)

    def start(self, spec: StepSpec, context: Any, log: Any) -> Any:
        """A step that has ended."""
        self.specs.append(spec)
        return FakeRunner(answers={spec.step_id: self.answer(spec)}).start(spec, context, log)

    def answer(self, spec: StepSpec) -> Any:
        """The result of the step, the exception with which it fails, or None for a result that is made up."""
        from tfmot_ops.cli.execute import execute

        result = execute(StepSpec.model_validate_json(spec.model_dump_json()))
        return StepResult.model_validate_json(result.model_dump_json())


class MadeUpRunner(InThisProcess):
    """Answers candidates with made-up figures; the step `choose` is the real one."""

    def answer(self, spec: StepSpec) -> Any:
        """See `InThisProcess`."""
        options: Any = spec.options
        if options.kind == "choose":
            with tempfile.TemporaryDirectory() as folder:
                store = FsspecStore(str(Path(folder) / "out"))
                return steps.run_step(spec, store, Path(folder) / "work", Silent())
        if options.kind != "candidate":
            return None
        drop = DROPS[options.recipe.name]
        if isinstance(drop, Exception):
            return drop
        return StepResult(
            step_id=spec.step_id,
            kind="candidate",
            spec_sha256=spec.sha256(),
            status=Status.OK,
            outputs={"tflite": FILE},
            metrics={"accuracy": 0.9 - drop, "accuracy_drop": drop, "size_bytes": 9000.0, "gzip_bytes": 5000.0},
            parameters={"candidate": options.recipe.name, "shared": {}},
            headline=Headline(name="accuracy"),
            tracking_run_id="1" * 32,
        )


def with_runner(dag: DAG, runner: InThisProcess) -> DAG:
    """The DAG, whose steps run with a runner."""
    for task in dag.tasks:
        if hasattr(task, "partial_kwargs"):
            task.partial_kwargs["runner"] = runner
        elif hasattr(task, "_written"):
            task.runner = runner
            task._written["runner"] = runner
    return dag


def ran(dag: DAG, params: dict[str, Any]) -> dict[str, Any]:
    """How a run of the DAG ended: states by task, labels, results, and why tasks failed."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    reasons: dict[str, str] = {}

    def note(context: Any) -> None:
        reasons[context["ti"].task_id] = str(context.get("exception"))

    for task in dag.tasks:
        if not hasattr(task, "partial_kwargs"):
            task.on_failure_callback = [note]
    run = dag.test(run_conf=params)
    with create_session() as session:
        tasks = run.get_task_instances(session=session)
        rows = session.scalars(
            select(XComModel).where(XComModel.run_id == run.run_id, XComModel.key == "return_value")
        ).all()
        return {
            "state": str(run.state),
            "tasks": {f"{ti.task_id}[{ti.map_index}]": [str(ti.state), ti.try_number] for ti in tasks},
            "labels": sorted(ti.rendered_map_index for ti in tasks if ti.rendered_map_index),
            "results": {f"{row.task_id}[{row.map_index}]": XComModel.deserialize_value(row) for row in rows},
            "reasons": reasons,
        }


def refusal(dag: DAG, name: str, value: Any) -> str:
    """What the form says to a value of one of its fields; empty if it takes the value."""
    try:
        dag.params.get_param(name).resolve(value)
    except ParamValidationError as error:
        return str(error)
    return ""


def main(params: str, answer_file: str) -> None:
    """Run all, and write down what came of it."""
    dag = load_dag("search_model")
    answer: dict[str, Any] = {
        "upstream": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
        "fields": {name: dag.params.get_param(name).schema for name in dag.params},
        "doc": dag.doc_md,
        "slots": dag.get_task("rung_1").pool_slots,
        "refused": {
            name: refusal(dag, name, value)
            for name, value in {"max_flash": "much", "target": "toaster", "min_npu_share": 2, "candidates": 0}.items()
        },
        "real": ran(with_runner(dag, InThisProcess()), json.loads(params)),
    }
    runner = MadeUpRunner()
    answer["unreachable"] = ran(with_runner(load_dag("search_model"), runner), ASKED)
    answer["unreachable"]["specs"] = [spec.model_dump(mode="json") for spec in runner.specs]
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
