"""Runs a DAG through `dag.test()` with its own callbacks: `run_dag.py NAME PARAMS ANSWER`."""

import json
import resource
import sys
from pathlib import Path

from tools.demo.dag import load_dag


def main(name: str, params: str, answer: str) -> None:
    from airflow.utils.session import create_session

    run = load_dag(name).test(run_conf=json.loads(params))
    with create_session() as session:
        run = session.merge(run)
        tasks = [
            {"task": ti.task_id, "state": str(ti.state), "label": ti.rendered_map_index, "slots": ti.pool_slots}
            for ti in run.get_task_instances(session=session)
        ]
    # The steps are processes of their own; what is left is Airflow's.
    usage = {"airflow": resource.RUSAGE_SELF, "steps": resource.RUSAGE_CHILDREN}
    cpu_s = {who: sum(resource.getrusage(which)[:2]) for who, which in usage.items()}
    Path(answer).write_text(json.dumps({"state": str(run.state), "tasks": tasks, "cpu_s": cpu_s}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
