"""Run cells, each in its own process, as many at once as asked; what is on disk already is not run again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tfmot_ops.contract import CompatResult, Status

#: Called with each result and whether it was on disk already.
OnResult = Callable[[CompatResult, bool], None]
#: Seconds after which a cell has failed; the slowest took a tenth of it on two cores.
TIME_LIMIT_S = 3600


def fingerprint() -> str:
    """What the results depend on in this package: a digest of its core and contract."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder in ("contract", "core"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def run_matrix(
    architectures: Iterable[str],
    recipe: str,
    folder: Path,
    *,
    seed: int = 0,
    jobs: int = 1,
    on_result: OnResult = lambda _result, _cached: None,
) -> list[CompatResult]:
    """Run the cells of one recipe.

    Args:
        architectures: names in the catalogue.
        recipe: name that the decoder knows.
        folder: one JSON file a finished cell; a cell whose file is there is not run again.
        seed: decides weights and images.
        jobs: processes at once.
        on_result: told each result as it comes.

    Returns:
        One result an architecture, in the order given. A process that died is a result, too.
    """
    names = list(architectures)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, CompatResult] = {}
    waiting = []
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            results[name] = CompatResult.model_validate_json(path.read_text())
            on_result(results[name], True)
        else:
            waiting.append(name)
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(_run_cell, name, recipe, folder / f"{name}.json", seed) for name in waiting]
        for future in as_completed(futures):
            result = future.result()
            results[result.architecture] = result
            on_result(result, False)
    return [results[name] for name in names]


def _run_cell(name: str, recipe: str, path: Path, seed: int) -> CompatResult:
    command = [sys.executable, "-m", "tfmot_ops.sweep.cell", name, recipe, str(path), str(seed)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        with (path.with_suffix(".log")).open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return _failed(name, recipe, "timeout", f"no result after {TIME_LIMIT_S} s")
    if path.exists():
        return CompatResult.model_validate_json(path.read_text())
    tail = path.with_suffix(".log").read_text(errors="replace")[-2000:]
    return _failed(name, recipe, "crash", f"the process ended with code {code.returncode} and no result\n{tail}")


def _failed(name: str, recipe: str, error_class: str, message: str) -> CompatResult:
    # Not kept on disk: an interrupted cell is run again.
    return CompatResult(
        architecture=name, recipe=recipe, status=Status.FAILED, error_class=error_class, message=message
    )
