"""Locations and their options."""

from __future__ import annotations

import pytest

from tfmot_ops.data.sources.query import Query
from tfmot_ops.errors import SpecError


def query(text: str) -> Query:
    return Query("source:<path>", text, ("size", "names", "share"))


def test_a_location_and_its_options():
    found = query("/data/a b?size=3x4&names=x,y&share=0.5")
    assert found.location == "/data/a b"
    assert found.size("size") == (3, 4)
    assert found.names("names") == ("x", "y")
    assert found.number("share", 0.0, most=1.0) == 0.5
    assert found.given() == {"size": "3x4", "names": "x,y", "share": "0.5"}


def test_what_is_not_written_has_a_default():
    found = query("part-?.tfrecord")  # a question mark of a pattern
    assert found.location == "part-?.tfrecord"
    assert (found.size("size"), found.names("names"), found.text("names")) == (None, (), None)
    assert (found.integer("size", 7), found.number("share", 0.25), found.choice("names", ("a", "b"), "b")) == (
        7,
        0.25,
        "b",
    )


def test_an_option_after_a_pattern_is_found():
    assert query("part-??.x?names=a?b").given() == {"names": "a?b"}


@pytest.mark.parametrize("text", ["x?width=3", "x?size=3&width=4", "x?size=3&size=3", "x?size=3&", "x?size=3&names"])
def test_options_that_are_not_known_are_refused_with_those_that_are(text: str):
    with pytest.raises(SpecError) as caught:
        query(text)
    assert caught.value.summary == "an option of source:<path> cannot be read"
    assert caught.value.required == "size, names, share, each at most once, as ?name=value&name=value"
    assert caught.value.received.startswith("?")
    assert caught.value.remedy == "correct the option, or leave it out"


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "x", "1x", "x1", "1x2x3", "1x0", "²", "9999999999"])
def test_sizes_that_cannot_be_read_are_refused(value: str):
    with pytest.raises(SpecError) as caught:
        query(f"x?size={value}").size("size")
    assert caught.value.received == f"?size={value}"
    assert caught.value.required == "pixels, at least 1: one number for height and width, or HxW"


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "1e3", "x"])
def test_whole_numbers_that_cannot_be_read_are_refused(value: str):
    with pytest.raises(SpecError, match="required: a whole number of at least 1"):
        query(f"x?size={value}").integer("size", 1)


@pytest.mark.parametrize("value", ["", "0", "0.0", "-1", "1e3", "nan", "1,5", "."])
def test_numbers_that_cannot_be_read_are_refused(value: str):
    with pytest.raises(SpecError, match="required: a number above 0"):
        query(f"x?share={value}").number("share", 1.0)


@pytest.mark.parametrize("value", ["", ",", "a,", "a,a"])
def test_names_that_cannot_be_read_are_refused(value: str):
    with pytest.raises(SpecError, match="option names of source:<path> cannot be read"):
        query(f"x?names={value}").names("names")
