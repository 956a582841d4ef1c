"""Each error class has a code of its own, in its message and in the troubleshooting page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tfmot_ops import errors
from tfmot_ops.contract import CompatResult, Stage, StepError
from tfmot_ops.errors import SamplesError, SpecError, StepFailedError, TfmotOpsError

ROOT = Path(__file__).resolve().parents[2]


def _classes(base: type[TfmotOpsError] = TfmotOpsError) -> list[type[TfmotOpsError]]:
    return [base, *(each for derived in base.__subclasses__() for each in _classes(derived))]


CLASSES = [each for each in _classes() if each.__module__.startswith("tfmot_ops")]


def test_no_two_classes_share_a_code() -> None:
    assert len({each.code for each in CLASSES}) == len(CLASSES) > 10


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_code_is_documented_and_begins_with_the_exit_code(kind) -> None:
    assert re.fullmatch(rf"TFO-{kind.exit_code}\d\d", kind.code)
    assert re.search(rf"(?m){kind.__name__} +{kind.code}", errors.__doc__)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert re.search(rf"(?m)^\| `{kind.code}` \|", page)


def test_the_troubleshooting_page_has_no_other_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert set(re.findall(r"TFO-\d\d\d", page)) == {each.code for each in CLASSES}


def test_the_last_line_of_a_message_is_the_code() -> None:
    error = SpecError("no such model", required="a name", received="'x'", remedy="list the models")
    assert str(error).splitlines()[-1] == "  code:     TFO-200, see docs/troubleshooting.md"
    assert "TFO" not in error.summary + error.required + error.received + error.remedy


def test_a_message_that_quotes_a_step_has_the_code_of_the_steps_error_alone() -> None:
    inner = StepError(type="SamplesError", message=str(SamplesError("too few samples")), exit_code=4)
    outer = str(StepFailedError(f"step train failed: {inner.type}: {inner.message}"))
    assert re.findall(r"TFO-\d+", outer) == ["TFO-403"]


def test_a_code_does_not_decide_the_class_of_a_failed_cell() -> None:
    from tfmot_ops.sweep.run.error_classes import error_classes

    texts = [str(kind("")) for kind in CLASSES]
    for text in texts:
        cell = CompatResult(
            architecture="A", recipe="wi8_ai8", status="failed", failed_stage=Stage.EXPORT, message=text
        )
        assert not [each.name for each in error_classes().values() if each.matches_text(cell)]
