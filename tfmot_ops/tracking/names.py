"""Converts names of metrics and parameters to names that MLflow accepts."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

#: Longest name that MLflow takes, in characters.
_LONGEST = 250


def accepted_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> its name in MLflow; different names stay different.

    MLflow accepts letters, digits, `_ - . : /` and spaces, and as a path a name must not have parts that are empty, `.`
    or `..`. Other characters become `_`. An accepted name stays unchanged. If a converted name equals another name, it
    gets a number: `top@5` beside `top_5` becomes `top_5_2`.
    """
    wanted = {name: _accepted(name) for name in names}
    taken = {name for name, plain in wanted.items() if name == plain}
    for name, plain in wanted.items():
        if name == plain:
            continue
        number, free = 1, plain
        while free in taken:
            number += 1
            free = f"{plain[: _LONGEST - len(f'_{number}')]}_{number}"
        taken.add(free)
        wanted[name] = free
    return wanted


def _accepted(name: str) -> str:
    name = re.sub(r"[^\w.\-/ :]", "_", name)[:_LONGEST]
    if posixpath.normpath(name) != name or name.startswith(("/", "..")) or name == ".":
        name = name.replace("/", "_")
        if name in {"", "."} or name.startswith(".."):
            name = f"_{name[1:]}"
    return name
