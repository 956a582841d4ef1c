"""What a search ends with: its table, its page and picture, and the sentence that says which recipe to take."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmot_ops.contract import Found, Goals
from tfmot_ops.search.found import best, tried, verdict
from tfmot_ops.search.front import front, nearest
from tfmot_ops.search.page import Point, page
from tfmot_ops.search.picture import draw
from tfmot_ops.system import files

#: File names in the folder of a search, and among the artifacts of its MLflow run.
PAGE, PICTURE, TABLE = "search.html", "search.png", "search.csv"
_TITLES = ("", "candidate", "metric", "drop", "flash", "gzip", "RAM", "latency", "goals", "time")


@dataclass(frozen=True)
class Ended:
    """A search that has ended.

    Attributes:
        name: of the search: `search mlp digits`.
        target: name or file of the device.
        goals: what the file has to be.
        found: the candidates that were tried.
        left_out: name of a candidate that was not tried -> why.
        everything: whether the search went on after the first candidate that meets all goals, see `best`.
    """

    name: str
    target: str
    goals: Goals
    found: Sequence[Found]
    left_out: Mapping[str, str] = field(default_factory=dict)
    everything: bool = False

    @property
    def best(self) -> Found | None:
        """The chosen candidate; None where none meets all goals."""
        return best(self.found, self.goals, everything=self.everything)


def name_of(model: str, dataset: str) -> str:
    """What a search is called in MLflow."""
    return f"search {Path(model).name} {dataset.rpartition('/')[2]}"


def lines(ended: Ended) -> list[str]:
    """The table and the conclusion as text, for a terminal or a log."""
    return [*_aligned(rows(ended)), "", *conclusion(ended)]


def document(ended: Ended) -> dict[str, Any]:
    """`chosen`, `candidates` (name, metrics, goals, file), and `left_out` (candidate -> why)."""
    return {
        "chosen": ended.best.candidate.name if ended.best else None,
        "candidates": [_of_one(ended, each) for each in ended.found],
        "left_out": dict(ended.left_out),
    }


def _of_one(ended: Ended, found: Found) -> dict[str, Any]:
    return {
        "name": found.candidate.name,
        "metrics": found.metrics,
        "goals": {
            goal.name: {"required": goal.required, "received": goal.received, "met": goal.is_met}
            for goal in tried(found, ended.goals).judged
        },
        "error": found.error,
        "tflite": str(found.tflite) if found.tflite else None,
        "mlflow_run": found.run_id,
    }


def _states(ended: Ended) -> dict[str, str]:
    measured = {each.candidate.name: each.metrics for each in ended.found if each.metrics}
    on_front = front(measured, ended.found[0].headline) if measured else []
    states = {name: "front" if name in on_front else "other" for name in measured}
    return states | ({ended.best.candidate.name: "chosen"} if ended.best else {})


def rows(ended: Ended) -> list[list[str]]:
    """The table, one row a candidate; the first row holds the titles."""
    states = _states(ended)
    table = [list(_TITLES)]
    for each in ended.found:
        metrics, headline = each.metrics, each.headline
        drop = metrics.get(f"{headline.name}_drop")
        table.append([
            {"chosen": "chosen", "front": "front"}.get(states.get(each.candidate.name, ""), ""),
            each.candidate.name,
            headline.text(metrics[headline.name]) if headline.name in metrics else "-",
            "-" if drop is None else ("-" if drop < 0 else "") + headline.size_text(drop),
            *(_kilobytes(metrics, name) for name in ("target_flash_bytes", "gzip_bytes", "target_ram_bytes")),
            f"{metrics['latency_ms']:.3f} ms" if "latency_ms" in metrics else "-",
            verdict(each, ended.goals),
            f"{each.seconds:.0f} s",
        ])  # fmt: skip
    return table


def _kilobytes(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name] / 1024:.1f} KiB" if name in metrics else "-"


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def conclusion(ended: Ended) -> list[str]:
    """Which candidate to take and why; without one, the nearest ones and what each misses."""
    if ended.best is not None:
        chosen = ended.best
        count = sum(tried(each, ended.goals).meets_all for each in ended.found)
        which = (
            f"the smallest of the {count} that meet every goal"
            if ended.everything and count > 1
            else "the first that meets every goal"
        )
        return [f"Take {chosen.candidate.name}: {chosen.candidate.tries}. It is {which}."]
    text = ["No candidate meets every goal. The nearest:"]
    judged = [tried(each, ended.goals) for each in ended.found]
    close = {each.candidate.name for each in nearest(judged)}
    text += [
        f"  {each.candidate.name}: {verdict(each, ended.goals)}" for each in ended.found if each.candidate.name in close
    ]
    return [*text, "A smaller model, more epochs, or a milder goal would help."]


def write(ended: Ended, folder: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Write page, picture and table into a folder.

    Args:
        ended: the search.
        folder: where the files go.
        say: called with a line on what could not be written.

    Returns:
        `page`, `picture` and `table` -> file, without those that could not be written: nothing where no candidate was
        measured, and no page where Plotly is not installed.
    """
    measured = [each for each in ended.found if each.headline.name in each.metrics]
    if not measured:
        return {}
    states, headline, title = _states(ended), measured[0].headline, _title(ended)
    points = [Point(e.candidate.name, states[e.candidate.name], verdict(e, ended.goals), e.metrics) for e in measured]
    draw(points, headline, ended.goals, title, folder / PICTURE)
    files.write(folder / TABLE, _csv(ended))
    paths = {"picture": folder / PICTURE, "table": folder / TABLE}
    if importlib.util.find_spec("plotly") is None:
        say("search: no page, as Plotly is not installed: pip install 'tfmot-ops[search]'")
        return paths
    files.write(
        folder / PAGE, page(points, headline, ended.goals, title, conclusion=conclusion(ended), rows=rows(ended))
    )
    return {"page": folder / PAGE, **paths}


def _csv(ended: Ended) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first, *others = rows(ended)
    writer.writerows([["state", *first[1:]], *others])
    return text.getvalue()


def _title(ended: Ended) -> str:
    """What was searched, for which device, under which goals."""
    goals = tried(ended.found[0], ended.goals).judged
    return f"{ended.name} for {ended.target}: {', '.join(goal.required for goal in goals)}"
