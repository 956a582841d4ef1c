"""One list says which packages' versions decide a number."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from tfmot_ops.system import versions


def test_installed_packages_are_told_by_name() -> None:
    found = versions.installed()
    assert found["ai-edge-litert"] == metadata.version("ai-edge-litert")
    assert list(found) == [name for name in versions.RECORDED if name in found]
    assert versions.installed(["no-such-package-anywhere"]) == {}


def test_the_tensorflow_of_a_cpu_image_is_tensorflow(monkeypatch) -> None:
    def only_cpu(name: str) -> str:
        if name == "tensorflow-cpu":
            return "2.21.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", only_cpu)
    assert versions.version("tensorflow") == "2.21.0"
    assert versions.installed() == {"tensorflow-cpu": "2.21.0"}
    with pytest.raises(metadata.PackageNotFoundError):
        versions.version("numpy")


def test_no_other_module_has_such_a_list() -> None:
    root = Path(versions.__file__).parents[1]
    naming = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if '"tensorflow-model-optimization"' in path.read_text(encoding="utf-8")
    }
    # What MLflow has to install to load a Keras model is another list.
    assert naming == {"system/versions.py", "tracking/models.py"}
