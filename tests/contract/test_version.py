"""One version: `tfmot_ops.__version__`. Files that others read, and that cannot ask Python, repeat it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from tfmot_ops import __version__

ROOT = Path(__file__).resolve().parents[2]
NUMBER = r"(\d+\.\d+\.\d+[\w.]*)"
#: File -> how the number stands in it.
REPEATED = {
    "docker/Dockerfile": rf"ARG VERSION={NUMBER}",
    "docker/compose.yaml": rf"tfmot-ops:{NUMBER}-\w+",
    "helm/tfmot-ops/Chart.yaml": rf"(?m)^(?:version|appVersion): {NUMBER}$",
    "helm/tfmot-ops/values.yaml": rf"tfmot-ops:{NUMBER}-\w+",
    "helm/tfmot-ops/README.md": rf"tfmot-ops:{NUMBER}-\w+",
    "CHANGELOG.md": rf"\A# Changelog\n\n## {NUMBER} ",
}


def test_what_is_installed_has_it():
    assert version("tfmot-ops") == __version__
    # Built from the attribute: a number of its own would win over it.
    assert not re.search(r"(?m)^version = \"", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", REPEATED)
def test_a_file_that_repeats_it_agrees(name):
    found = re.findall(REPEATED[name], (ROOT / name).read_text(encoding="utf-8"))
    assert set(found) == {__version__}, f"{name} says {sorted(set(found))}"


def test_no_other_file_says_which_image():
    files = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("docker/*"), *ROOT.glob("helm/tfmot-ops/**/*")]
    saying = {
        str(path.relative_to(ROOT))
        for path in [*files, ROOT / ".ci" / "run", ROOT / "Makefile"]
        if path.is_file() and re.search(rf"tfmot-ops:{NUMBER}-", path.read_text(encoding="utf-8"))
    }
    assert saying <= REPEATED.keys()
