"""What pydantic found wrong with a document, in the form of our own errors."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from tfmot_ops.errors import SpecError

_Error = TypeVar("_Error", bound=SpecError)


def refusal(name: str, error: ValidationError, remedy: str, kind: type[_Error] = SpecError) -> _Error:  # type: ignore[assignment] # the bound
    """The error to raise for a document that does not validate; the first finding leads.

    Args:
        name: what was read, as the user knows it: a file, a task, the arguments.
        error: what pydantic raised.
        remedy: what to do about it.
        kind: class of the error.
    """
    told = [_finding(item) for item in error.errors(include_url=False)]
    # A recipe may be a name or a mapping: what is wrong with the other form is no help.
    findings = [finding for finding in told if finding is not None] or [(name, str(error), "")]
    field, required, received = findings[0]
    more = "".join(f"\n  also:     {f}: required {req}, received {rec}" for f, req, rec in findings[1:])
    return kind(f"{name}: field {field}", required=required, received=received + more, remedy=remedy)


def _finding(item: Any) -> tuple[str, str, str] | None:
    """(field, required, received) of a finding; None when it is about a form that was not meant."""
    location, given = [str(part) for part in item["loc"]], item.get("input")
    if location[-1:] == ["str"] and not isinstance(given, str):
        return None
    if location[-1:] == ["Recipe"] and isinstance(given, str):
        return None
    # Pydantic names the member of a union it tried; that is no field.
    options = location[:1] == ["options"]
    field = [
        part for index, part in enumerate(location) if part not in {"str", "Recipe"} and not (options and index == 1)
    ]
    received = "nothing" if item["type"] == "missing" else repr(given)
    return ".".join(field) or "(whole)", item["msg"].removeprefix("Value error, "), received
