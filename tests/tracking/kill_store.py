"""Kills while a store is made or upgraded: `kill_store.py <new|upgrade> <kills> <seed>`; prints counts as JSON.

Each kill (SIGKILL) comes after another share of the processor time that the work takes, drawn by the seed. Afterwards
another process connects: `usable` counts the stores that take it, `lost` those upgraded ones whose run is gone, and
`leftovers` the files that are there besides the store, its lock and its journal.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tfmot_ops.tracking.client import connect, quiet

with quiet():
    from mlflow.store.db import utils
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

#: A version of MLflow's schema long before the present one, with tables for runs.
OLD_SCHEMA = "acf3f17fdcc7"
RUN = "0123456789abcdef0123456789abcdef"
TICKS = os.sysconf("SC_CLK_TCK")


def make_old(path: Path) -> None:
    """A store as an older version of MLflow left it, with one run."""
    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{path}")
    utils.InitialBase.metadata.create_all(engine)
    from alembic import command

    config = utils._get_alembic_config(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, OLD_SCHEMA)
    engine.dispose()
    with sqlite3.connect(path) as records:
        records.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'old', 'active')")
        values = (RUN, "kept", "LOCAL", "me", 1, "FINISHED", "active", 7, "file:///nowhere")
        records.execute(
            "INSERT INTO runs (run_uuid, name, source_type, user_id, start_time, status, lifecycle_stage, "
            "experiment_id, artifact_uri) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
    records.close()


def start(work: Callable[[], object]) -> int:
    """Do it in a fork, which exits with 0 when it ends well; this process has no threads and no store open."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def cpu_s(child: int) -> float:
    fields = Path(f"/proc/{child}/stat").read_bytes().rpartition(b")")[2].split()
    return float("inf") if fields[0] == b"Z" else (int(fields[11]) + int(fields[12])) / TICKS


def whole_cpu_s(work: Callable[[], object]) -> float:
    child, spent = start(work), 0.0
    while (now := cpu_s(child)) != float("inf"):
        spent = now
        time.sleep(0.01)
    if finish(child):
        raise SystemExit("the work does not end well when nobody kills it")
    return spent


def main(kind: str, kills: int, seed: int, folder: Path) -> dict[str, int]:
    draw = random.Random(seed)  # noqa: S311 - no secret
    counts = Counter({"kills": 0, "usable": 0, "lost": 0, "leftovers": 0})
    old = folder / "old.db"
    if kind == "upgrade":
        make_old(old)

    def prepare(name: str) -> Path:
        (folder / name).mkdir()
        if kind == "upgrade":
            (folder / name / "mlflow.db").write_bytes(old.read_bytes())
        return folder / name / "mlflow.db"

    # Without a cache, as a copy of a store in it would be made before it can be killed.
    os.environ["XDG_CACHE_HOME"] = os.devnull
    path = prepare("whole")
    spent = whole_cpu_s(lambda: connect(f"sqlite:///{path}", "x"))
    for number in range(kills):
        path = prepare(str(number))
        uri = f"sqlite:///{path}"
        child = start(lambda uri=uri: connect(uri, "x"))
        at = spent * (number + draw.random()) / kills
        while cpu_s(child) < at:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        counts["kills"] += finish(child) == -signal.SIGKILL
        if path.exists() and kind == "new":
            # Whole as it is there, for readers that know nothing of locks.
            SqlAlchemyStore(uri, str(folder)).engine.dispose()
        counts["usable"] += finish(start(lambda uri=uri: connect(uri, "x"))) == 0
        if kind == "upgrade":
            with sqlite3.connect(path) as records:
                counts["lost"] += records.execute("SELECT name FROM runs WHERE run_uuid = ?", (RUN,)).fetchall() != [
                    ("kept",)
                ]
            records.close()
        allowed = {path.name, f"{path.name}.lock", f"{path.name}-journal"}
        counts["leftovers"] += len([each for each in path.parent.iterdir() if each.name not in allowed])
    return dict(counts)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(scratch))) + "\n")
