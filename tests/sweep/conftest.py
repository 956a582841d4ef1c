"""An installed package with models, for the processes of the cells."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

#: Name of an architecture -> function in the package.
MODELS = {name: name for name in ("sound", "fickle", "sleeps", "allocates", "dies", "raises")}
MODELS |= {f"sound_{number}": "sound" for number in range(1, 5)}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Puts the package on the path of this process and its children."""
    folder = tmp_path / "site"
    info = folder / "sweep_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    source = Path(__file__).with_name("plugin.py").read_text(encoding="utf-8")
    (folder / "sweep_plugin.py").write_text(source, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sweep-plugin\nVersion: 1.0\n", encoding="utf-8")
    entries = "\n".join(f"{name} = sweep_plugin:{function}" for name, function in MODELS.items())
    (info / "entry_points.txt").write_text(f"[tfmot_ops.models]\n{entries}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("sweep_plugin", None)
