"""Error classes of installed packages, by a real entry point."""

from __future__ import annotations

import sys

import pytest

from tfmot_ops.contract import CompatResult, Stage, Status
from tfmot_ops.sweep.run import error_classes as classes

PACKAGE = """
from tfmot_ops.sweep.run.error_classes import ErrorClass
ERROR_CLASSES = [
    ErrorClass("licence", "No licence.", "Buy one.", patterns=(("licence .+ expired", "made up 1.0"),)),
    ErrorClass("conversion", "Ours says more.", "Ask us.", exceptions=("OurError", "ConverterError")),
]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package whose module is the given text."""

    def put(text: str) -> None:
        info = tmp_path / "class_plugin-1.0.dist-info"
        info.mkdir()
        (tmp_path / "class_plugin.py").write_text(text, encoding="utf-8")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: class-plugin\nVersion: 1.0\n", encoding="utf-8")
        entry = f"[{classes.ENTRY_POINT_GROUP}]\nours = class_plugin:ERROR_CLASSES\n"
        (info / "entry_points.txt").write_text(entry, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        _forget()

    yield put
    sys.modules.pop("class_plugin", None)
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    classes._added.cache_clear()
    classes.error_classes.cache_clear()


def failed(error_type: str, message: str = "", stage: Stage = Stage.EXPORT, **fields) -> CompatResult:
    return CompatResult(
        architecture="a", recipe="r", status=Status.FAILED, failed_stage=stage, error_type=error_type, message=message,
        **fields,
    )  # fmt: skip


def test_added_classes_are_asked_before_ours(install) -> None:
    typed = failed("UnsupportedModelError", "the licence of this layer expired")
    assert classes.classify(typed) == "unsupported_layer"
    install(PACKAGE)
    # A text of theirs, where an exception of ours fits as well.
    assert classes.classify(typed) == "licence"
    assert classes.classify(failed("OurError")) == "conversion"
    assert classes.error_classes()["conversion"].cause == "Ours says more."
    assert list(classes.error_classes())[:2] == ["licence", "conversion"]
    # The rest is as it was.
    assert classes.classify(failed("UnsupportedModelError")) == "unsupported_layer"
    assert classes.classify(failed("ValueError", stage=Stage.RELOAD)) == "reload"
    assert classes.classify(failed("ValueError")) == "unknown"


def test_a_class_that_is_installed_later_holds_for_what_is_kept(install) -> None:
    kept = failed("Odd", "the licence of x expired", error_class="unknown")
    died = CompatResult(
        architecture="a", recipe="r", status=Status.FAILED, error_class="crash", message="licence x expired"
    )
    assert classes.reclassified(kept).error_class == "unknown"
    install(PACKAGE)
    assert classes.reclassified(kept).error_class == "licence"
    assert classes.reclassified(died).error_class == "crash"


@pytest.mark.parametrize(
    "text",
    ["raise RuntimeError('broken')", "ERROR_CLASSES = 3", PACKAGE.replace("licence .+", "licence (")],
    ids=["import", "no list", "no pattern"],
)
def test_a_broken_package_adds_none_and_says_so(install, text) -> None:
    install(text)
    with pytest.warns(UserWarning, match="no error classes of class_plugin"):
        assert classes.classify(failed("ConverterError")) == "conversion"
    assert "licence" not in classes.error_classes()
