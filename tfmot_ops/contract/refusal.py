"""Turns a pydantic ValidationError into an error of this package, without secrets in the values that it quotes."""

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

#: Number of findings that one error lists.
_MOST_FINDINGS = 10
#: Number of characters of a text that are searched for secrets before the text's beginning is quoted.
_SEARCHED = 10_000
#: Longest list or mapping that is quoted, in characters.
_LONGEST_VALUE = 500
#: Longest number that is shown, in digits.
_MOST_DIGITS = 20
#: Similarity to a known field name from which an unknown name is shown (`difflib` ratio; 1 means equal).
_ALIKE = 0.7


def refusal(
    name: str,
    error: ValidationError,
    remedy: str,
    kind: type[_Error] = SpecError,  # type: ignore[assignment] # the bound
    *,
    fields: Collection[str] | None = None,
) -> _Error:
    """The error to raise for an invalid document; its message begins with the first finding.

    Args:
        name: the source of the document as the user knows it: a file, a task, the arguments.
        error: pydantic's error.
        remedy: what the user should do.
        kind: class of the error to return.
        fields: None quotes the received values, shortened, as the sender of the request wrote them. For a file that
            the sender may not be allowed to read, give the document's field names: the message then shows only the
            type of each value, and only unknown names that are similar to one of `fields`.
    """
    all_findings = [_finding(item, fields) for item in error.errors(include_url=False)[: 2 * _MOST_FINDINGS]]
    # A recipe may be a name or a mapping; pydantic tries both forms, and only findings on the given form help.
    findings = [finding for finding in all_findings if finding is not None] or [
        ("(whole)", "a valid document", "another")
    ]
    field, required, received = findings[0]
    also = findings[1:_MOST_FINDINGS]
    more = "".join(f"\n  also:     {f}: required {req}, received {rec}" for f, req, rec in also)
    more += f"\n  also:     {len(findings) - _MOST_FINDINGS} or more others" if len(findings) > _MOST_FINDINGS else ""
    return kind(f"{name}: field {field}", required=required, received=received + more, remedy=remedy)


def quoted(value: Any) -> str:
    """A value as text for a message: shortened to a few hundred characters, with secrets in URIs hidden."""
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, str):
        return _REPR.repr(hide(value[:_SEARCHED]))
    text = _REPR.repr(hide_in(value)) if _is_small(value) else kind_of(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} ..."


def kind_of(value: Any) -> str:
    """The type of a value and, without its content, its length; a number is shown."""
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
    """Shortens a value to three levels of nesting, six members per level, and 100 characters per text."""

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
    """Whether a document holds few values; a value with several references counts once for each."""
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
    """(field, required, received) of a finding; None if it concerns the union's other form (recipe name, mapping)."""
    location, given = list(item["loc"]), item.get("input")
    if location[-1:] == ["str"] and not isinstance(given, str):
        return None
    if location and _is_document(location[-1]) and isinstance(given, str):
        return None
    # Pydantic adds the tried member of a union to the location; it is not a field.
    options = location[:1] == ["options"]
    field = [
        _name(part, fields)
        for index, part in enumerate(location)
        if part != "str" and not _is_document(part) and not (options and index == 1)
    ]
    received = "nothing" if item["type"] == "missing" else (quoted if fields is None else kind_of)(given)
    required = item["msg"].removeprefix("Value error, ")
    if item["type"] == "union_tag_invalid":  # whose message quotes the value
        required = f"one of {item['ctx']['expected_tags']}"
    return ".".join(field) or "(whole)", required, received


def _is_document(part: int | str) -> bool:
    """Whether a part of a location is pydantic's name for a document that may be given by name instead.

    The name is `Recipe`, or `function-after[check(), Recipe]` for a class with a check of the whole document.
    """
    return isinstance(part, str) and (
        part in _DOCUMENTS or (part.startswith("function-") and part.rstrip("]").endswith(_DOCUMENTS))
    )


def _name(part: int | str, fields: Collection[str] | None) -> str:
    """A part of a field's name, or a description of it if the name must not be shown."""
    if fields is None or not isinstance(part, str):
        return hide(str(part))[:_LONGEST_NAME]
    if part in fields or get_close_matches(part[:_LONGEST_NAME], fields, 1, _ALIKE):
        return part[:_LONGEST_NAME]
    return f"(an unknown name of {len(part)} characters)"


#: Classes of documents that a field takes beside their name, a text.
_DOCUMENTS = ("Recipe", "Target")
#: Longest part of a field's name that is shown, in characters.
_LONGEST_NAME = 60
