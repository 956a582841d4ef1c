"""`make demo` and `make ui`: the DAG `optimize_model` on this machine, with all it writes in `.demo`.

The DAG runs in a child process through `dag.test()`, which needs no server. Its whole output goes to a log file;
here only the progress is shown, then the table and where the files are.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.status import Status

from tfmot_ops.cli.chain_table import summary_table
from tfmot_ops.contract import PRESET_RECIPES, StepResult
from tfmot_ops.errors import TfmotOpsError
from tools.demo.workbench import Workbench, group, stop_on_signals

#: Progress lines of the steps, which are shown to the user; all other lines go to the log file only.
_PROGRESS = re.compile(r"tfmot-ops: (.*?)(?:\s+\[[\w.]+\](?: \w+=.*)?)?$")
_TASK_STARTS = re.compile(r"\[DAG TEST\] starting task_id=(\S+)")
_TASK_ENDS = re.compile(r"\[DAG TEST\] end task task_id=(\S+)")
_TASK_FAILS = "Task failed with exception"
_TASK_IS_SKIPPED = "Skipping task."
#: Without a terminal a table is not cut to the 80 columns that rich assumes.
_PLAIN_WIDTH = 140


@dataclass
class LogView:
    """Turns the log into what is shown: the task, the time it takes, the step's last line."""

    console: Console
    status: Status | None
    began: dict[str, float] = field(default_factory=dict)
    task: str = ""
    outcome: str = "done"

    def see(self, line: str) -> None:
        """Show what a line of the log says, if it is for people."""
        if found := _TASK_STARTS.search(line):
            self.task, self.outcome = found[1], "done"
            self.began[self.task] = time.monotonic()
            self._now(f"{self.task} starts")
        elif _TASK_FAILS in line:
            self.outcome = "failed"
        elif _TASK_IS_SKIPPED in line:
            self.outcome = "skipped"
        elif found := _TASK_ENDS.search(line):
            seconds = time.monotonic() - self.began.get(found[1], time.monotonic())
            self.console.print(f"{found[1]:<10} {self.outcome} after {seconds:.1f} s", highlight=False)
        elif (found := _PROGRESS.search(line)) and found[1].strip():
            text = found[1].strip()
            self._now(text if text.startswith(self.task) else f"{self.task}: {text}")

    def _now(self, text: str) -> None:
        if self.status is not None:
            self.status.update(text)
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def run_demo(bench: Workbench, params: dict[str, Any], console: Console) -> int:
    """Run the DAG and report.

    Args:
        bench: where everything is.
        params: of the DAG run; they are checked against its schema.
        console: what is shown goes there.

    Returns:
        Exit code: 0, that of the first step that failed, or 1 when the DAG did not run.
    """
    bench.prepare(lambda text: console.print(text, highlight=False, soft_wrap=True))
    log_file, answer_file = bench.new_log("demo"), bench.home / "demo.json"
    answer_file.unlink(missing_ok=True)
    console.print(f"Full log: {log_file}", highlight=False, soft_wrap=True)
    command = [sys.executable, "-m", "tools.demo.dag", "optimize_model", json.dumps(params), str(answer_file)]
    with log_file.open("w", encoding="utf-8") as log, group(command, bench.environment(), subprocess.PIPE) as child:
        _follow(child, log, console)
        child.wait()
    if not answer_file.exists():
        console.print(f"The DAG did not run. The log's last lines:\n{_tail(log_file)}", markup=False, soft_wrap=True)
        console.print(f"Full log: {log_file}", highlight=False, soft_wrap=True)
        return 1
    return _report(bench, json.loads(answer_file.read_text(encoding="utf-8")), log_file, console)


def _follow(child: subprocess.Popen[bytes], log: IO[str], console: Console) -> None:
    status = console.status("Airflow starts") if console.is_terminal else None
    progress = LogView(console, status)
    if status is not None:
        status.start()
    try:
        for line in _lines(child):
            log.write(line)
            log.flush()
            progress.see(line.rstrip())
    finally:
        if status is not None:
            status.stop()


def _lines(child: subprocess.Popen[bytes]) -> Iterator[str]:
    for line in child.stdout or ():
        yield line.decode("utf-8", "replace")


def _tail(log_file: Path, count: int = 15) -> str:
    return "\n".join(log_file.read_text(encoding="utf-8").splitlines()[-count:])


def _report(bench: Workbench, answer: dict[str, Any], log_file: Path, console: Console) -> int:
    results = {name: StepResult.model_validate(result) for name, result in answer["results"].items()}
    if results:
        console.print(summary_table(list(results.values())))
    if answer["state"] != "success":
        for name, reason in answer["reasons"].items():
            console.print(f"{name}: {reason}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"The DAG run ended as {answer['state']}. Full log: {log_file}", highlight=False, soft_wrap=True)
        return int(answer["exit_code"])
    tflite = results["quantize"].outputs["tflite"]
    lines = (
        f"Artifacts: {bench.artifacts}",
        "To see the run in Airflow and MLflow: make ui",
        f"TFLite: {bench.local_path(tflite.uri)}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--dataset", default="digits", help="digits, fashion_mnist, npz:<path>, images:<folder>")
    parser.add_argument("--model", default="resnet8", help="resnet8, mobilenet_like, application:<Name>, a path")
    parser.add_argument("--recipe", default="sparse50_wi8_ai8", help=f"{', '.join(PRESET_RECIPES)}, or a file")
    parser.add_argument("--epochs", type=int, help="of the float training")
    parser.add_argument("--limit", type=int, help="maximum number of training samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="where everything is written; .demo in the checkout")
    verbs = parser.add_subparsers(dest="verb", metavar="ui")
    verbs.add_parser("ui", help="Airflow and MLflow together on loopback, until Ctrl-C")
    return parser


def _params(arguments: argparse.Namespace) -> dict[str, Any]:
    is_file = Path(arguments.recipe).suffix in (".yaml", ".yml", ".json")
    recipe = {"recipe_file": str(Path(arguments.recipe).resolve())} if is_file else {"recipe": arguments.recipe}
    given = {"dataset": arguments.dataset, "model": arguments.model, "seed": arguments.seed, **recipe}
    optional = {"epochs": arguments.epochs, "limit": arguments.limit}
    return given | {name: value for name, value in optional.items() if value is not None}


def main(argv: list[str] | None = None) -> int:
    """Run the demo or the UIs."""
    arguments = _parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    stop_on_signals()
    try:
        bench = Workbench.of_checkout(arguments.home)
        if arguments.verb == "ui":
            from tools.demo.servers import serve

            return serve(bench, lambda text: console.print(text, highlight=False, soft_wrap=True))
        return run_demo(bench, _params(arguments), console)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    except TfmotOpsError as error:
        console.print(str(error), highlight=False, markup=False, soft_wrap=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
