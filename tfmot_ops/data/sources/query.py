"""What follows a source's name: a location and its options, `<location>?key=value&key=value`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NoReturn

from tfmot_ops.contract import DATASET_OPTIONS
from tfmot_ops.errors import SpecError

#: Pixels of the largest image that is read: 8192 by 8192.
MOST_PIXELS = 2**26


class Query:
    """A location and its options. A value holds no `&`; paths in it are relative to the working folder, as all are.

    Args:
        form: how the source is written, for messages, such as `images:<folder>`.
        text: what follows the source's name and its colon.
        known: keys that the source takes, in the order of its description.

    Attributes:
        location: the text before the options, such as a path.

    Raises:
        SpecError: an option is unknown, occurs twice, or is not of the form key=value.
    """

    def __init__(self, form: str, text: str, known: Collection[str]) -> None:
        self.form = form
        begin = DATASET_OPTIONS.search(text)
        self.location = text[: begin.start()] if begin else text
        self._values: dict[str, str] = {}
        for option in text[begin.end() :].split("&") if begin else ():
            key, equals, value = option.partition("=")
            if key not in known or not equals or key in self._values:
                raise _unknown(form, known, f"?{option}" + (" a second time" if key in self._values else ""))
            self._values[key] = value

    @classmethod
    def of_name(cls, form: str, text: str, known: Collection[str]) -> Query:
        """The options of a source that has no location: `text` is empty, or options with their question mark."""
        query = cls(form, text, known)
        if query.location:
            raise _unknown(form, known, query.location)
        return query

    def given(self) -> dict[str, str]:
        """Key -> value of the options that are written."""
        return dict(self._values)

    def text(self, key: str) -> str | None:
        """The value of an option; None where it is not written."""
        value = self._values.get(key)
        if value == "":
            self.refuse(key, "a value")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """The names of an option, which have commas between them; none where it is not written."""
        value = self.text(key)
        names = () if value is None else tuple(value.split(","))
        if "" in names or len(set(names)) != len(names):
            self.refuse(key, "different names with commas between them")
        return names

    def choice(self, key: str, words: tuple[str, ...], default: str) -> str:
        """An option that is one of some words."""
        value = self._values.get(key, default)
        if value not in words:
            self.refuse(key, "one of " + ", ".join(words))
        return value

    def integer(self, key: str, default: int, least: int = 1, most: int | None = None) -> int:
        """An option that is a whole number of at least `least`, and of at most `most`."""
        value = self._values.get(key)
        if value is None:
            return default
        number = _whole(value)
        if number is None or number < least:
            self.refuse(key, f"a whole number of at least {least}")
        if most is not None and number > most:
            self.refuse(key, f"a whole number of at most {most}")
        return number

    def number(self, key: str, default: float, most: float | None = None) -> float:
        """An option that is a number above 0; with `most`, one from 0 to `most`."""
        value = self._values.get(key)
        if value is None:
            return default
        required = "a number above 0" if most is None else f"a number from 0 to {most:g}"
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
            self.refuse(key, required)
        number = float(value)
        if (most is None and number == 0.0) or (most is not None and number > most):
            self.refuse(key, required)
        return number

    def size(self, key: str) -> tuple[int, int] | None:
        """(height, width) in pixels of an option that is one number for both, or HxW; None where it is not written."""
        value = self._values.get(key)
        if value is None:
            return None
        numbers = [_whole(part) for part in value.split("x")]
        height, width = numbers[0], numbers[-1]
        if len(numbers) > 2 or not height or not width:  # noqa: PLR2004 - height and width
            self.refuse(key, "pixels, at least 1: one number for height and width, or HxW")
        if height * width > MOST_PIXELS:
            self.refuse(key, f"an image of at most {MOST_PIXELS:,} pixels")
        return height, width

    def refuse(self, key: str, required: str) -> NoReturn:
        """Refuse the value of an option."""
        raise SpecError(
            f"the option {key} of {self.form} cannot be read",
            required=required,
            received=f"?{key}={self._values.get(key, '')}",
            remedy="correct the option, or leave it out",
        )


def _unknown(form: str, known: Collection[str], received: str) -> SpecError:
    return SpecError(
        f"an option of {form} cannot be read",
        required=f"{', '.join(known)}, each at most once, as ?name=value&name=value" if known else "no option",
        received=received,
        remedy="correct the option, or leave it out",
    )


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
