"""What the operating system does for this project is asked for in one module each."""

from __future__ import annotations

from pathlib import Path

import pytest

import tfmot_ops

ROOT = Path(tfmot_ops.__file__).parents[1]
PLACES = {
    "import fcntl": "tfmot_ops/system/files.py",
    "os.fsync(": "tfmot_ops/system/files.py",
    "os.killpg(": "tfmot_ops/system/processes.py",
    "PR_SET_PDEATHSIG": "tfmot_ops/system/processes.py",
    '"XDG_CACHE_HOME"': "tfmot_ops/system/environment.py",
}


@pytest.mark.parametrize("text", PLACES)
def test_one_module_has_it(text) -> None:
    paths = [path for folder in ("tfmot_ops", "tools", "dags") for path in (ROOT / folder).rglob("*.py")]
    having = [path.relative_to(ROOT).as_posix() for path in paths if text in path.read_text(encoding="utf-8")]
    assert having == [PLACES[text]]
