"""What `tfmot-ops search` ends with: page, picture and table in the output folder and in MLflow, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfmot_ops.cli.search import Search
from tfmot_ops.search import report as of_search


def report(search: Search, say: Callable[[str], None]) -> dict[str, Any]:
    """Write page, picture and table, and return what the command prints.

    Args:
        search: after `run`.
        say: called with a line on what could not be written.

    Returns:
        `chosen`, `candidates` (name, metrics, goals, file), `left_out` (candidate -> why), `page`, `picture`, `table`,
        and `lines`, the same as text.
    """
    ended = search.ended
    paths = {name: path.resolve() for name, path in of_search.write(ended, search.output, say).items()}
    _record(search, list(paths.values()), say)
    shown = {name: str(path) for name, path in paths.items()}
    file = [f"TFLite: {search.best.tflite}"] if search.best is not None else []
    lines = [*of_search.lines(ended), *file, *(f"{name}: {path}" for name, path in shown.items())]
    return {**of_search.document(ended), **shown, "lines": lines}


def _record(search: Search, paths: list[Path], say: Callable[[str], None]) -> None:
    """Store the files on the search's MLflow run."""
    if not paths or search.run_id is None or search.tracking_uri is None:
        return
    from tfmot_ops.tracking import put_artifacts

    try:
        put_artifacts(search.tracking_uri, search.run_id, paths)
    except Exception as error:  # noqa: BLE001 - the search is done; its page is in the output folder
        say(f"search: page, picture and table are not in MLflow: {type(error).__name__}: {error}")
