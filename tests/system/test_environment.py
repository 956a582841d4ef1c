"""Each environment variable has one row, in `tfmot_ops/system/environment.py`, and a line in the documentation."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tfmot_ops.system import environment

PACKAGE = Path(environment.__file__).parents[1]
PAGE = PACKAGE.parent / "docs" / "reference" / "environment.md"
OURS = [each for each in environment.VARIABLES if each.name.startswith("TFMOT_OPS_") and not each.internal]


def _texts(path: Path) -> list[str]:
    """String literals of a module, its docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    literals = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in statements)
    return [node.value for node in literals if isinstance(node.value, str)]


def test_no_other_module_has_the_name_of_a_variable() -> None:
    naming = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "dags").glob("*.py")]
        if any("TFMOT_OPS_" in text for text in _texts(path)) and path != Path(environment.__file__)
    }
    assert naming == set()


@pytest.mark.parametrize("variable", OURS, ids=lambda each: each.name)
def test_the_documentation_lists_each_variable_that_a_user_may_set(variable) -> None:
    assert re.search(rf"^\| `{variable.name}` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_documentation_lists_no_other_variable() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(TFMOT_OPS_\w+)` \|", page, re.MULTILINE)) == {each.name for each in OURS}


def test_each_row_says_what_the_variable_does_in_one_sentence() -> None:
    for variable in environment.VARIABLES:
        assert re.fullmatch(r"[A-Z][^.]*(\.[^ ][^.]*)*\.", variable.does), variable.name
        assert variable.default


def test_an_empty_variable_counts_as_not_set(monkeypatch) -> None:
    for name, text in {"TFMOT_OPS_RUNNER": "", "TFMOT_OPS_TRACKING_URI": "", "MLFLOW_TRACKING_URI": "u"}.items():
        monkeypatch.setenv(name, text)
    assert environment.RUNNER.get() is None
    assert environment.runner() == "local"
    assert environment.tracking_uris() == ["u"]
    monkeypatch.setenv("TFMOT_OPS_TRACKING_URI", "ours")
    assert environment.tracking_uris() == ["ours", "u"]


def test_gpus_are_hidden_by_no_name_or_minus_one(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [environment.hides_all_gpus()]
    for value in ("", "-1", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        found.append(environment.hides_all_gpus())
    assert found == [False, True, True, False]


def test_a_user_without_a_home_has_a_cache_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / "tfmot_ops"
    monkeypatch.delenv("XDG_CACHE_HOME")

    def fail() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert environment.cache_folder() == tmp_path / "temporary" / "tfmot_ops"
