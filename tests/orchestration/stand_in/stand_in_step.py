# ruff: noqa: T201 - a command prints
"""Stands in for `tfmot-ops run` where only the process matters: it does what the spec's run name says."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tfmot_ops.contract import Status, StepResult, StepSpec

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
)


def _die_with_parent():
    os.read(0, 1)  # not sys.stdin: a thread that holds its lock aborts the interpreter's shutdown
    os.killpg(0, signal.SIGKILL)


def _answer(spec, path):
    result = StepResult(
        step_id=spec.step_id,
        kind=spec.options.kind,
        spec_sha256=spec.sha256(),
        status=Status.OK,
        metrics={"pid": os.getpid()},
        parameters={"cwd": str(Path.cwd()), "told": os.environ.get("TOLD")},
    )
    path.write_text(result.model_dump_json(), encoding="utf-8")


def _grandchild():
    """A child in our group that ignores SIGTERM and holds our output open."""
    child = subprocess.Popen([sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    child.stdout.readline()
    print(f"pids {os.getpid()} {child.pid}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("--spec", type=Path)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--die-with-parent", action="store_true")
    arguments = parser.parse_args()
    spec = StepSpec.model_validate_json(arguments.spec.read_bytes())
    if arguments.die_with_parent:
        threading.Thread(target=_die_with_parent, daemon=True).start()
    what, _, detail = spec.options.name.partition(":")
    print("first line", flush=True)
    print("second line ü", file=sys.stderr, flush=True)
    if what in ("hang", "orphan"):
        _grandchild()
    if what == "hang":
        time.sleep(300)
    if what == "exit":
        print(f"because of {detail}", file=sys.stderr, flush=True)
        sys.exit(int(detail))
    if what == "signal":
        os.kill(os.getpid(), int(detail))
    if what == "slow":
        time.sleep(float(detail))
    if what == "other":
        spec = spec.model_copy(update={"seed": spec.seed + 1})
    if what == "broken":
        arguments.result.write_text(json.dumps({"metrics": "none"}))
    elif what != "silent":
        _answer(spec, arguments.result)
    print("no line break", end="", flush=True)


if __name__ == "__main__":
    main()
