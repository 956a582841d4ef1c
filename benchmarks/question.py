"""A question: what is measured, on which models, and what the answer should be."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Ends before a child that hangs keeps the machine for a night.
_CHILD_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Aim:
    """What a ratio should be.

    Attributes:
        figure: the bound.
        at_least: whether the ratio should be as large, or as small.
    """

    figure: float
    at_least: bool = True

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.figure:g}"

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio is on the right side."""
        return ratio >= self.figure if self.at_least else ratio <= self.figure


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        model: name of the architecture.
        compared: what is divided by what.
        figures: variant -> figure, in the unit the question states.
        ratio: the quotient of the two that `compared` names; None for a line without one.
        aim: what the ratio should be, if anything.
    """

    model: str
    compared: str
    figures: dict[str, float]
    ratio: float | None = None
    aim: Aim | None = None


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: what is asked, in a sentence.
        unit: of the figures.
        models: names that are measured when none are given.
        measure: what a child process runs: keyword arguments from JSON, result as JSON.
        answer: (samples of a model, by variant) -> rows; the samples are what `measure` returned.
        jobs: variant -> keyword arguments of `measure` besides the model; each is a child process of its own.
    """

    text: str
    unit: str
    models: tuple[str, ...]
    measure: Callable[..., dict[str, float]]
    answer: Callable[[str, dict[str, float]], list[Row]]
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)


def ask(name: str, question: Question, models: Iterable[str], repeat: int) -> tuple[list[Row], list[dict[str, Any]]]:
    """Measure each model `repeat` times, variants in turn, each in a process of its own.

    Returns:
        The rows, computed from the least of each figure's samples as other work on the machine only adds, and every
        sample.
    """
    rows: list[Row] = []
    samples: list[dict[str, Any]] = []
    for model in models:
        figures: dict[str, list[float]] = {}
        for _ in range(repeat):
            for variant, arguments in question.jobs.items():
                print(f"{name}: {model} {variant}", file=sys.stderr, flush=True)
                for key, value in _in_child(name, {"model": model, **arguments}).items():
                    figures.setdefault(key, []).append(value)
        samples += [
            {"model": model, "figure": key, "samples": values, "median": statistics.median(values), "min": min(values)}
            for key, values in figures.items()
        ]
        rows += question.answer(model, {key: min(values) for key, values in figures.items()})
    return rows, samples


def ratio_row(model: str, figures: dict[str, float], above: str, below: str, aim: Aim | None = None) -> Row:
    """The row that divides one figure by another."""
    return Row(
        model, f"{above} / {below}", {key: figures[key] for key in (above, below)}, figures[above] / figures[below], aim
    )


def _in_child(name: str, arguments: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.child", name, json.dumps(arguments)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_CHILD_TIMEOUT_S, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result
