"""Ask some or all of the questions: prints a table for each, and writes every sample as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import export, growth, latency, quantize, train_step
from benchmarks.question import Question, Row, ask
from tfmot_ops.system import files

QUESTIONS: dict[str, Question] = {
    module.__name__.rpartition(".")[2]: module.QUESTION for module in (quantize, growth, export, train_step, latency)
}


def main() -> None:
    options = _options()
    console = Console()
    report: dict[str, Any] = {"machine": _machine(), "questions": {}}
    for name in options.questions or QUESTIONS:
        question = QUESTIONS[name]
        rows, samples = ask(name, question, options.models or question.models, options.repeat)
        console.print(_table(question, rows))
        report["questions"][name] = {
            "unit": question.unit, "rows": [asdict(row) for row in rows], "samples": samples
        }  # fmt: skip
        # After each question, so that one that fails does not take the others' answers along.
        options.json.parent.mkdir(parents=True, exist_ok=True)
        files.write(options.json, json.dumps(report, indent=1) + "\n")
    console.print(f"every sample: {options.json}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="question", help=f"of {', '.join(QUESTIONS)}; default all")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="names of tf_keras.applications; default: its own")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="child processes a figure (3)")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="PATH", help="(%(default)s)")
    options = parser.parse_args()
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"no question named {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    return options


def _machine() -> dict[str, Any]:
    packages = ("tensorflow", "tf-keras", "tensorflow-model-optimization", "ai-edge-litert")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def _table(question: Question, rows: list[Row]) -> Table:
    table = Table("model", "compared", question.unit, "ratio", "aim", title=question.text, title_justify="left")
    for row in rows:
        figures = "\n".join(f"{name} {value:.4g}" for name, value in row.figures.items())
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        if row.aim is not None and row.ratio is not None:
            ratio = f"[{'green' if row.aim.is_met(row.ratio) else 'red'}]{ratio}[/]"
        table.add_row(row.model, row.compared, figures, ratio, str(row.aim or ""))
    return table


if __name__ == "__main__":
    main()
