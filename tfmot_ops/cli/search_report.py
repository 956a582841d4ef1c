"""What a search ends with: its table, its page and picture, and the sentence that says which recipe to take."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfmot_ops.cli.search import Found, Search
from tfmot_ops.contract import Headline
from tfmot_ops.search.front import front, nearest
from tfmot_ops.search.page import COLOURS, Point, page
from tfmot_ops.system import files

PAGE, PICTURE = "search.html", "search.png"
_TITLES = ("", "candidate", "metric", "drop", "flash", "gzip", "RAM", "latency", "goals", "time")


def report(search: Search, best: Found | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the page and the picture, and return what the command prints.

    Args:
        search: after `run`.
        best: the chosen candidate; None without one.
        say: called with a line on what could not be written.

    Returns:
        `chosen`, `candidates` (name, metrics, goals, file), `left_out` (candidate -> why), `page`, `picture`, and
        `lines`, the same as text.
    """
    rows = _rows(search, best)
    measured = [each for each in search.found if each.metrics]
    paths: dict[str, str] = {}
    if measured:
        paths = _write(search, best, measured, rows, say)
        _record(search, [Path(path) for path in paths.values()], say)
    lines = _aligned(rows) + [""] + _verdict(search, best) + [f"{name}: {path}" for name, path in paths.items()]
    return {
        "chosen": best.candidate.name if best else None,
        "candidates": [_document(search, each) for each in search.found],
        "left_out": dict(search.ladder.left_out),
        **paths,
        "lines": lines,
    }


def _document(search: Search, found: Found) -> dict[str, Any]:
    return {
        "name": found.candidate.name,
        "metrics": found.metrics,
        "goals": {
            goal.name: {"required": goal.required, "received": goal.received, "met": goal.is_met}
            for goal in found.tried(search.goals).judged
        },
        "error": found.error,
        "tflite": str(found.tflite) if found.tflite else None,
        "mlflow_run": found.run_id,
    }


def _states(search: Search, best: Found | None) -> dict[str, str]:
    measured = {each.candidate.name: each.metrics for each in search.found if each.metrics}
    on_front = front(measured, search.found[0].headline) if measured else []
    states = {name: "front" if name in on_front else "other" for name in measured}
    return states | ({best.candidate.name: "chosen"} if best else {})


def _rows(search: Search, best: Found | None) -> list[list[str]]:
    states = _states(search, best)
    rows = [list(_TITLES)]
    for each in search.found:
        metrics, headline = each.metrics, each.headline
        drop = metrics.get(f"{headline.name}_drop")
        rows.append([
            {"chosen": "chosen", "front": "front"}.get(states.get(each.candidate.name, ""), ""),
            each.candidate.name,
            headline.text(metrics[headline.name]) if headline.name in metrics else "-",
            "-" if drop is None else ("-" if drop < 0 else "") + headline.size_text(drop),
            *(_kilobytes(metrics, name) for name in ("target_flash_bytes", "gzip_bytes", "target_ram_bytes")),
            f"{metrics['latency_ms']:.3f} ms" if "latency_ms" in metrics else "-",
            each.verdict(search.goals),
            f"{each.seconds:.0f} s",
        ])  # fmt: skip
    return rows


def _kilobytes(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name] / 1024:.1f} KiB" if name in metrics else "-"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _verdict(search: Search, best: Found | None) -> list[str]:
    if best is not None:
        lines = [f"Take {best.candidate.name}: {best.candidate.tries}. It is the first that meets every goal."]
        return [*lines, f"TFLite: {best.tflite}"]
    lines = ["No candidate meets every goal. The nearest:"]
    close = {each.candidate.name for each in nearest([each.tried(search.goals) for each in search.found])}
    lines += [f"  {e.candidate.name}: {e.verdict(search.goals)}" for e in search.found if e.candidate.name in close]
    return [*lines, "A smaller model, more epochs, or a milder goal would help."]


def _write(
    search: Search, best: Found | None, measured: list[Found], rows: list[list[str]], say: Callable[[str], None]
) -> dict[str, str]:
    states, headline = _states(search, best), measured[0].headline
    points = [
        Point(e.candidate.name, states[e.candidate.name], e.verdict(search.goals), e.metrics)
        for e in measured
        if headline.name in e.metrics
    ]
    if not points:
        return {}
    title = _title(search)
    _draw(points, headline, title, search.output / PICTURE)
    paths = {"picture": str((search.output / PICTURE).resolve())}
    if importlib.util.find_spec("plotly") is None:
        say("search: no page, as Plotly is not installed: pip install 'tfmot-ops[search]'")
        return paths
    files.write(search.output / PAGE, page(points, headline, title, rows))
    return {"page": str((search.output / PAGE).resolve())} | paths


def _title(search: Search) -> str:
    """What was searched, for which device, under which goals."""
    goals = search.found[0].tried(search.goals).judged
    return f"{search.name} for {search.target_name}: {', '.join(goal.required for goal in goals)}"


def _draw(points: list[Point], headline: Headline, title: str, path: Path) -> None:
    """The same points as a PNG, for MLflow's pages and documents."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = Figure(figsize=(8.0, 5.0), layout="tight")
    FigureCanvasAgg(chart)
    axes = chart.subplots()
    cost = "target_flash_bytes" if "target_flash_bytes" in points[0].metrics else "size_bytes"
    for point in points:
        place = point.metrics[cost] / 1024, point.metrics[headline.name] * (100 if headline.is_share else 1)
        axes.scatter(*place, s=90 if point.state == "chosen" else 45, color=COLOURS[point.state])
        axes.annotate(point.name, place, xytext=(4, 5), textcoords="offset points", fontsize=9)
    axes.set_xlabel("flash in KiB")
    axes.set_ylabel(headline.words + (" in %" if headline.is_share else ""))
    axes.set_title(title)
    axes.margins(0.15)
    with files.whole(path) as part:
        chart.savefig(part, format="png", dpi=120)


def _record(search: Search, paths: list[Path], say: Callable[[str], None]) -> None:
    """Store page and picture on the search's MLflow run."""
    if search.run_id is None or search.tracking_uri is None:
        return
    from tfmot_ops.tracking import put_artifacts

    try:
        put_artifacts(search.tracking_uri, search.run_id, paths)
    except Exception as error:  # noqa: BLE001 - the search is done; its page is in the output folder
        say(f"search: page and picture are not in MLflow: {type(error).__name__}: {error}")
