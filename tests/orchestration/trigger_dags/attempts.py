"""DAG runs whose parameters try to run a program, to choose a place, or to read a file; run as a script.

`attempts.py FOLDER` runs each through `dag.test()` and writes `FOLDER/answers.json`: attempt -> state and tries of its
task. The log of each stands on stdout, behind a line `=== <attempt>`.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from tfmot_ops.operators import CompatSweepOperator, OpenRunOperator, PruneOperator, TrainOperator
from tfmot_ops.runners import ALLOWED_RUNNERS_VARIABLE, IMAGES_VARIABLE, PYTHONS_VARIABLE, RUNNER_VARIABLE
from tfmot_ops.system import environment

SHARD = {"architectures": ["MobileNet"], "recipe": "wi8_ai8"}
GIVEN = "{{ params.given }}"


def made(dag_id, operator, **arguments):
    """A DAG of one task, with a parameter `given`."""
    with DAG(
        dag_id,
        schedule=None,
        params={"given": Param(None, type=["null", "string"]), "runner": Param(None)},
        render_template_as_native_obj=True,
        default_args={"retries": 1, "retry_delay": timedelta(seconds=0)},
    ) as dag:
        if isinstance(arguments.get("options"), list):
            options = arguments.pop("options")
            operator.partial(task_id="task", **arguments).expand(options=options)
        else:
            operator(task_id="task", **arguments)
    return dag


DAGS = {
    "runner": made("runner", OpenRunOperator, runner=GIVEN),
    "runner_argument": made("runner_argument", OpenRunOperator, runner={"python": GIVEN}),
    "plain": made("plain", OpenRunOperator),
    "python": made("python", CompatSweepOperator, options={**SHARD, "python": GIVEN}),
    "mapped_python": made("mapped_python", CompatSweepOperator, options=[{**SHARD, "python": GIVEN}]),
    "image": made("image", CompatSweepOperator, options=SHARD, next_image=GIVEN),
    "mapped_image": made("mapped_image", CompatSweepOperator, options=[SHARD], next_image=GIVEN),
    "recipe": made(
        "recipe",
        PruneOperator,
        options={"recipe": GIVEN, "dataset": "digits"},
        inputs={"model": {"uri": "none", "sha256": "0" * 64, "size_bytes": 1, "format": "keras_h5"}},
    ),
    "model": made("model", TrainOperator, options={"model": GIVEN, "dataset": "digits"}),
    "dataset": made("dataset", TrainOperator, options={"model": "resnet8", "dataset": GIVEN}),
    "output": made("output", OpenRunOperator, output_uri=GIVEN),
    "server": made("server", OpenRunOperator, tracking_uri=GIVEN),
    "uri": made("uri", OpenRunOperator, tracking_uri="{{ var.value.mlflow }}"),
    "connection": made("connection", OpenRunOperator, mlflow_conn_id="mlflow"),
    "mapped_uri": made("mapped_uri", OpenRunOperator, tracking_uri="{{ var.value.mlflow }}", options=[{"name": "a"}]),
}


def attempts(folder, program):
    """Attempt -> (DAG, parameters, variables of the deployment)."""
    docker, kubernetes = {RUNNER_VARIABLE: "docker"}, {RUNNER_VARIABLE: "kubernetes"}
    lists = {PYTHONS_VARIABLE: json.dumps({"next": "/opt/next/bin/python"}), IMAGES_VARIABLE: '{"next": "ours:next"}'}
    found = {
        "a runner's arguments as text": ("runner", {"given": str({"python": program})}, {}),
        "a runner with its name": ("runner", {"given": str({"runner": "local", "python": program})}, docker),
        "an argument": ("runner_argument", {"given": program}, {}),
        "a runner by a template": ("runner", {"given": "local"}, docker),
        "a runner by the parameter": ("plain", {"runner": "local"}, docker),
        "arguments by the parameter": ("plain", {"runner": {"runner": "local", "python": program}}, {}),
        "an interpreter": ("python", {"given": program}, lists),
        "an interpreter where none is listed": ("python", {"given": program}, {}),
        "a mapped interpreter": ("mapped_python", {"given": program}, lists),
        "an image": ("image", {"given": "evil.example/anything:latest"}, lists | kubernetes),
        "a mapped image": ("mapped_image", {"given": "evil.example/anything:latest"}, lists | kubernetes),
        "allowed by a template": ("runner", {"given": "local"}, docker | {ALLOWED_RUNNERS_VARIABLE: "local"}),
        "allowed by the parameter": ("plain", {"runner": "local"}, docker | {ALLOWED_RUNNERS_VARIABLE: "local"}),
        "a secret URI": ("uri", {}, {}),
        "a mapped secret URI": ("mapped_uri", {}, {}),
        "a connection with a secret": ("connection", {}, {}),
    }
    for path in sorted(Path(folder, "files").iterdir()):
        found[f"file {path.name}"] = ("recipe", {"given": str(path)}, {environment.ALLOWED_PATHS.name: folder})
        found["a recipe outside"] = ("recipe", {"given": str(path)}, {})
    found["a model outside"] = ("model", {"given": "/etc/model.h5"}, {})
    found["a data set outside"] = ("dataset", {"given": "images:/data?labels=/etc/passwd"}, {})
    found["an output outside"] = ("output", {"given": "/etc"}, {})
    found["a server"] = ("server", {"given": "http://127.0.0.1:1"}, {})
    return found


def main(folder):
    """Make all attempts."""
    from airflow.utils.session import create_session

    answers = {}
    for name, (dag_id, conf, variables) in attempts(folder, str(Path(folder, "program"))).items():
        sys.stdout.write(f"=== {name}\n")
        sys.stdout.flush()
        os.environ.update(variables)
        try:
            run = DAGS[dag_id].test(run_conf=conf)
            with create_session() as session:
                answers[name] = [[str(ti.state), ti.try_number] for ti in run.get_task_instances(session=session)]
        finally:
            for variable in variables:
                del os.environ[variable]
    Path(folder, "answers.json").write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
