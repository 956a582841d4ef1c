"""Kills over a whole tracked `optimize`: `kill_optimize.py <kills> <kills of a chain> <seed>`; prints counts as JSON.

A chain is one command, started again after each kill until it has ended. Kills come after a processor time drawn by
the seed; most are SIGKILL, some SIGTERM and SIGINT. Every chain has to end as the undisturbed one did:

- `same_file`: chains whose TFLite file is, byte for byte, that of the undisturbed chain;
- `parents`: parent runs of all chains; one each is right;
- `lost` and `doubled`: epochs of step runs that are missing or recorded twice;
- `running`: runs that are RUNNING afterwards; `leftovers`: temporary files, checkpoints, locks that are there;
- `codes`: exit codes of interrupted commands besides 130 and 143 (and that of a signal before the command listens).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow

from tfmot_ops.tracking.client import connect

EPOCHS = {"train": 2, "fine_tune": 2, "quantize": 1}
COMMAND = "optimize --model resnet8 --dataset digits --recipe sparse50_wi8_ai8 --limit 200 --output out --epochs 2"
COMMAND += " --fine-tune-epochs 2 --qat-epochs 1"
TICKS = os.sysconf("SC_CLK_TCK")
#: Processor time in seconds that the command takes to import TensorFlow and MLflow and to open its run, about.
START_S = 9.0


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    environment |= {"TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache")}
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", "tfmot_ops.cli", *COMMAND.split()]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    if process.poll() is not None:
        return float("inf")
    fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def undisturbed(folder: Path) -> tuple[bytes, float]:
    """The TFLite file, and the processor time in seconds."""
    process, spent = start(folder), 0.0
    while (now := cpu_s(process)) != float("inf"):
        spent = now
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    return tflite(folder), spent


def tflite(folder: Path) -> bytes:
    return next((folder / "out").glob("*.tflite")).read_bytes()


def kill(process: subprocess.Popen[bytes], at: float, number: int, counts: Counter[str]) -> bool:
    """Whether the kill came before the end."""
    while cpu_s(process) < at:
        time.sleep(0.02)
    if process.poll() is not None:
        return False
    how = signal.SIGTERM if number % 5 == 3 else signal.SIGINT if number % 5 == 4 else signal.SIGKILL
    process.send_signal(how)
    process.wait()
    if process.returncode == 0:
        return False
    counts[how.name] += 1
    counts["codes"] += process.returncode not in {128 + how, -how}
    return True


def judge(folder: Path, file: bytes, counts: Counter[str]) -> None:
    counts["same_file"] += tflite(folder) == file
    client, experiment = connect(f"sqlite:///{folder / 'out' / 'mlflow.db'}", "tfmot_ops")
    runs: list[Any] = list(client.search_runs([experiment]))
    counts["running"] += sum(run.info.status == "RUNNING" for run in runs)
    counts["parents"] += sum("mlflow.parentRunId" not in run.data.tags for run in runs)
    for run in runs:
        wanted = EPOCHS.get(run.data.tags["tfmot_ops.step_id"], 0)
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "epoch.loss")]
        counts["lost"] += len(set(range(1, wanted + 1)) - set(steps))
        counts["doubled"] += len(steps) - len(set(steps))
    counts["doubled"] += len(runs) - 7
    # For the next process, matplotlib keeps the list of the machine's fonts there, and the tracking an empty store.
    store = f"mlflow-{mlflow.__version__}.db"
    cached = [each for each in (folder / "cache").rglob("*") if each.is_file() and "matplotlib" not in each.parts]
    cached = [each for each in cached if each.name != store]
    left = [*(folder / "tmp").iterdir(), *cached]
    left += (folder / "out").rglob(".*")
    counts["leftovers"] += len(left)
    for each in left:
        sys.stderr.write(f"left over: {each}\n")


def main(kills: int, of_a_chain: int, seed: int, folder: Path) -> dict[str, int]:
    # A shell has the processes that it starts in the background ignore SIGINT, and they hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(seed)  # noqa: S311 - no secret
    names = ("kills", "chains", "same_file", "parents", "lost", "doubled", "running", "leftovers", "codes")
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    file, spent = undisturbed(folder / "undisturbed")
    # What a start may take of the work before it is killed, so that the kills of a chain spread over all of it.
    share = 1.6 * (spent - START_S) / of_a_chain
    while counts["kills"] < kills:
        chain = folder / f"chain{counts['chains']}"
        counts["chains"] += 1
        for _ in range(min(of_a_chain, kills - counts["kills"])):
            if not kill(start(chain), START_S * 0.5 + draw.random() * (START_S * 0.5 + share), counts["kills"], counts):
                break
            counts["kills"] += 1
        else:
            last = start(chain)
            if last.wait():
                raise SystemExit((chain / "log").read_text())
        judge(chain, file, counts)
        sys.stderr.write(f"{json.dumps(counts)}\n")
    return dict(counts)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        kills, of_a_chain, seed = map(int, sys.argv[1:])
        sys.stdout.write(json.dumps(main(kills, of_a_chain, seed, Path(scratch))) + "\n")
