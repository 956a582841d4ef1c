"""Sphinx extension: replaces `<!-- made at build time: NAME -->` in a page by Markdown that is made from the code."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from tools.site import commands, documents, tables

#: Name in the comment -> function that makes the Markdown.
MADE: Final[dict[str, Callable[[], str]]] = {
    "commands": commands.all_commands,
    "error codes": tables.error_codes,
    "operators": tables.operators_table,
    "policy": documents.policy,
    "recipe": documents.recipe,
    "runners": tables.runner_arguments,
    "sweep errors": tables.sweep_errors,
    "target": documents.target,
    "training plan": documents.training_plan,
}
_COMMENT: Final = re.compile(r"^<!-- made at build time: ([a-z ]+) -->$", re.MULTILINE)


def filled(page: str) -> str:
    """The page with each comment replaced.

    Raises:
        KeyError: nothing of this name can be made.
    """
    return _COMMENT.sub(lambda found: MADE[found[1]](), page)


def _read(app: Any, name: str, source: list[str]) -> None:
    del app, name
    source[0] = filled(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Connect the extension; Sphinx calls it."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
