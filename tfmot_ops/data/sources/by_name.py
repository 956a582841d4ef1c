"""Data sets by name: from the modules of this package, or registered by an installed package."""

from __future__ import annotations

import pkgutil
import re
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from tfmot_ops.data import sources
from tfmot_ops.data.sources.mapping import from_mapping
from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.errors import SpecError

ENTRY_POINT_GROUP = "tfmot_ops.datasets"


@cache
def _readers() -> dict[str, Reader]:
    """Name -> its reader: names alone first, then those that a text follows, each in alphabetical order."""
    modules = [f"{sources.__name__}.{module.name}" for module in pkgutil.iter_modules(sources.__path__)]
    found = [import_module(module).READER for module in modules if hasattr(import_module(module), "READER")]
    return {reader.name: reader for reader in sorted(found, key=lambda reader: (reader.takes_text, reader.name))}


def available_datasets() -> dict[str, str]:
    """Name -> one-line description of all data sets: built-in, with a path (`npz:<path>`), and registered."""
    registered = {entry.name: f"registered as {entry.value}" for entry in entry_points(group=ENTRY_POINT_GROUP)}
    # A data set of this package is found first, so a registered name cannot hide it.
    return registered | {reader.form: reader.description for reader in _readers().values()}


def read_source(name: str, seed: int) -> Source:
    """The samples of a data set by its name; `seed` is for a registered data set that draws its samples.

    A name alone may have options, too: `fashion_mnist?normal=1`.
    """
    kind = re.split("[:?]", name, maxsplit=1)[0]
    colon, text = name[len(kind) :].startswith(":"), name[len(kind) :].removeprefix(":")
    reader = _readers().get(kind)
    if reader is not None and reader.takes_text == bool(colon) and (text or not colon):
        return reader.read(text)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return from_mapping(name, entry.load()(seed))
    raise SpecError(
        f"there is no data set named {name!r}",
        required="one of " + ", ".join(available_datasets()),
        received=repr(name),
        remedy=f"use a name from the list, or register one under the entry-point group {ENTRY_POINT_GROUP}",
    )
