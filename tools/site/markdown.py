"""Docstrings and tables as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Final

_SECTION: Final = re.compile(r"^(Args|Attributes|Raises|Returns|Example|Examples):\s*$", re.MULTILINE)
_ENTRY: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*|\n(?=\n {5,}))*)", re.MULTILINE)


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; a cell may have several lines."""
    cells = [list(titles), *(list(row) for row in rows)]
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def prose(thing: object) -> str:
    """The docstring of a class or function without its sections (arguments, errors)."""
    text = inspect.getdoc(thing) or ""
    section = _SECTION.search(text)
    return text[: section.start()].strip() if section else text.strip()


def entries(kind: type) -> dict[str, str]:
    """Name -> description in the section `Attributes` of the docstrings of a class and its bases."""
    texts = (inspect.cleandoc(each.__doc__ or "") for each in reversed(kind.__mro__))
    return {name: " ".join(words.split()) for text in texts for name, words in _ENTRY.findall(text)}


def code(text: object) -> str:
    """Text as code."""
    return f"`{text}`"


def sentence(text: str) -> str:
    """Text that begins with a capital letter and ends with a full stop."""
    text = text.strip()
    if not text:
        return ""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
