"""What decides a cell's result is in its digest; a package is not loaded for that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tfmot_ops import recipes
from tfmot_ops.contract import Stage, Status
from tfmot_ops.models.architectures import architecture
from tfmot_ops.sweep.plan import inputs
from tfmot_ops.sweep.whole import Sweep

RECIPE = recipes.decode("wi8_ai8")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of two files, whose import raises; (folder of its metadata, folder of its files)."""
    folder, info = tmp_path / "site" / "ill_package", tmp_path / "site" / "ill_package-1.0.dist-info"
    folder.mkdir(parents=True)
    info.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('ill')\n", encoding="utf-8")
    (folder / "blocks.py").write_text("WIDTH = 4\n", encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ill-package\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[tfmot_ops.models]\nill = ill_package.nets:ill\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return info, folder


def digest(seed: int = 0) -> str:
    return inputs.inputs_sha256(architecture("ill"), RECIPE, seed)


def test_a_registered_models_digest_is_of_its_whole_package(package, monkeypatch) -> None:
    info, folder = package
    seen = {digest()}
    assert seen == {digest()}
    assert "ill_package" not in sys.modules
    (folder / "blocks.py").write_text("WIDTH = 8\n", encoding="utf-8")
    seen.add(digest())
    metadata = info / "METADATA"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("1.0", "1.1"), encoding="utf-8")
    seen.add(digest())
    seen.add(digest(seed=1))
    monkeypatch.setattr(inputs, "_device", lambda: ["x86_64", "nvidia0"])
    seen.add(digest())
    assert len(seen) == 5


def test_our_errors_decide_too(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(inputs, "_digest", lambda _, files: seen.extend(files) or "0" * 64)
    inputs.core_sha256.__wrapped__()
    root = Path(inputs.__file__).parents[2]
    assert {
        root / "errors.py",
        root / "sweep" / "run" / "check.py",
        root / "core" / "graph" / "read.py",
        root / "contract" / "result.py",
    } <= set(seen)


@pytest.mark.usefixtures("package")
def test_a_package_that_cannot_be_imported_is_its_cells_failure(tmp_path) -> None:
    (cell,) = Sweep(tmp_path / "sweep", ("ill",), (RECIPE,), jobs=1, expected={}).run().cells
    assert (cell.status, cell.failed_stage, cell.error_type) == (Status.FAILED, Stage.BUILD, "RuntimeError")
    assert cell.message == "ill"
