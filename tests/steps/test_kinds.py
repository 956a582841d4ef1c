"""What the options of a kind say of it is what its function does."""

from __future__ import annotations

from typing import get_args

import pytest

from tfmot_ops.contract import DataOptions, Options, Recorded, StepOptions
from tfmot_ops.steps.kinds import KINDS

CLASSES: list[type[StepOptions]] = list(get_args(get_args(Options)[0]))


def _kind(options: type[StepOptions]) -> str:
    return str(options.model_fields["kind"].default)


def test_each_kind_that_is_no_chain_of_others_has_a_function():
    assert [_kind(options) for options in CLASSES if not options.is_a_chain] == list(KINDS)
    assert [_kind(options) for options in CLASSES if options.is_a_chain] == ["candidate"]


@pytest.mark.parametrize("options", CLASSES, ids=_kind)
def test_a_kind_that_computes_with_a_model_has_a_data_set(options):
    assert options.computes_with_a_model == issubclass(options, DataOptions)


@pytest.mark.parametrize("options", CLASSES, ids=_kind)
def test_fields_that_a_kind_names_are_there(options):
    assert options.model_field is None or options.model_field in options.model_fields


def test_kinds_that_speak_about_the_parent_run_make_no_run_of_their_own():
    on_the_parent = {_kind(options) for options in CLASSES if options.recorded.is_on_the_parent}
    assert on_the_parent == {"choose", "close_run", "forecast", "summarize"}
    assert {_kind(options) for options in CLASSES if options.recorded is Recorded.OPENING} == {"open_run"}
