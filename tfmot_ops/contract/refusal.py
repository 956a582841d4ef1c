"""What pydantic found wrong with a document, in the form of our own errors, and how a received value is shown."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError

from tfmot_ops.errors import SpecError
from tfmot_ops.system.uri_secrets import hide, hide_in

_Error = TypeVar("_Error", bound=SpecError)

#: Findings that one error tells.
_MOST_FINDINGS = 10
#: So much of a text is searched for secrets, before its beginning is quoted.
_SEARCHED = 10_000
#: Longest list or mapping that is quoted, in characters.
_LONGEST_VALUE = 500
#: Longest number that is shown, in digits.
_MOST_DIGITS = 20
#: How alike an unknown field's name and a known one have to be for the first to be shown: 1 is equal.
_ALIKE = 0.7


def refusal(
    name: str,
    error: ValidationError,
    remedy: str,
    kind: type[_Error] = SpecError,  # type: ignore[assignment] # the bound
    *,
    fields: Collection[str] | None = None,
) -> _Error:
    """The error to raise for a document that does not validate; the first finding leads.

    Args:
        name: what was read, as the user knows it: a file, a task, the arguments.
        error: what pydantic raised.
        remedy: what to do about it.
        kind: class of the error.
        fields: None quotes the values, shortened, because who sent the request wrote them. For a file, whose content
            the sender of the request may not be allowed to read, the names of the document's fields: then only the
            kinds of the values are told, and only names that are alike one of these.
    """
    told = [_finding(item, fields) for item in error.errors(include_url=False)[: 2 * _MOST_FINDINGS]]
    # A recipe may be a name or a mapping: what is wrong with the other form is no help.
    findings = [finding for finding in told if finding is not None] or [("(whole)", "a valid document", "another")]
    field, required, received = findings[0]
    also = findings[1:_MOST_FINDINGS]
    more = "".join(f"\n  also:     {f}: required {req}, received {rec}" for f, req, rec in also)
    more += f"\n  also:     {len(findings) - _MOST_FINDINGS} or more others" if len(findings) > _MOST_FINDINGS else ""
    return kind(f"{name}: field {field}", required=required, received=received + more, remedy=remedy)


def quoted(value: Any) -> str:
    """A value in a few words, without secrets of URIs; never longer than a few hundred characters."""
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str):
        return _REPR.repr(hide(value[:_SEARCHED]))
    text = _REPR.repr(hide_in(value)) if _is_small(value) else kind_of(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} ..."


def kind_of(value: Any) -> str:
    """What kind of value it is, without its content: numbers are shown, of a text only the length."""
    if isinstance(value, int | float):
        return _number(value)
    if value is None:
        return "no value"
    if isinstance(value, str | bytes):
        return f"a text of {len(value)} characters"
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


class _Short(reprlib.Repr):
    """Shows the beginning of a value: three levels, six members of each, a hundred characters of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 6
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:
        del level
        return _number(x)


_REPR = _Short()


def _number(value: float) -> str:
    # Python refuses to write integers of more than 4300 digits.
    if isinstance(value, int) and not isinstance(value, bool):
        digits = math.ceil(value.bit_length() * math.log10(2))
        return repr(value) if digits <= _MOST_DIGITS else f"a number of about {digits} digits"
    return repr(value)


def _is_small(value: Any) -> bool:
    """Whether a document holds few values, counted as often as they are referred to."""
    waiting, seen = [value], 0
    while waiting:
        member = waiting.pop()
        seen += 1
        if seen + len(waiting) > 1000:  # noqa: PLR2004 - of a document that is worth reading
            return False
        if isinstance(member, Mapping):
            waiting += member.values()
        elif isinstance(member, list | tuple):
            waiting += member
        elif isinstance(member, str) and len(member) > _SEARCHED:
            return False
    return True


def _finding(item: Any, fields: Collection[str] | None) -> tuple[str, str, str] | None:
    """(field, required, received) of a finding; None when it is about a form that was not meant."""
    location, given = list(item["loc"]), item.get("input")
    if location[-1:] == ["str"] and not isinstance(given, str):
        return None
    if location[-1:] == ["Recipe"] and isinstance(given, str):
        return None
    # Pydantic names the member of a union it tried; that is no field.
    options = location[:1] == ["options"]
    field = [
        _name(part, fields)
        for index, part in enumerate(location)
        if part not in {"str", "Recipe"} and not (options and index == 1)
    ]
    received = "nothing" if item["type"] == "missing" else (quoted if fields is None else kind_of)(given)
    required = item["msg"].removeprefix("Value error, ")
    if item["type"] == "union_tag_invalid":  # whose message quotes the value
        required = f"one of {item['ctx']['expected_tags']}"
    return ".".join(field) or "(whole)", required, received


def _name(part: int | str, fields: Collection[str] | None) -> str:
    """A part of a field's name, as it may be shown."""
    if fields is None or not isinstance(part, str):
        return hide(str(part))[:_LONGEST_NAME]
    if part in fields or get_close_matches(part[:_LONGEST_NAME], fields, 1, _ALIKE):
        return part[:_LONGEST_NAME]
    return f"(an unknown name of {len(part)} characters)"


#: Longest part of a field's name that is shown, in characters.
_LONGEST_NAME = 60
