"""Data sets by name: built in, `npz:<path>`, `images:<folder>`, or registered by an installed package."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from tfmot_ops.data.sources.digits import read_digits
from tfmot_ops.data.sources.fashion_mnist import read_fashion_mnist
from tfmot_ops.data.sources.images import read_images
from tfmot_ops.data.sources.npz import from_mapping, read_npz
from tfmot_ops.data.sources.source import Source
from tfmot_ops.errors import SpecError

ENTRY_POINT_GROUP = "tfmot_ops.datasets"
_DESCRIPTIONS = {
    "digits": "1797 handwritten digits, 8x8x1, 10 classes (scikit-learn)",
    "fashion_mnist": "70000 articles of clothing, 28x28x1, 10 classes",
}
_PATH_DESCRIPTIONS = {
    "npz:<path>": "arrays x_train, y_train, x_test, y_test, or x, y, in one .npz file",
    "images:<folder>": "PNG or JPEG files in one sub-folder per class; images:<folder>?size=32 resizes to 32x32",
}


def available_datasets() -> dict[str, str]:
    """Name -> one-line description of all data sets: built-in, with a path (`npz:<path>`), and registered."""
    registered = {entry.name: f"registered as {entry.value}" for entry in entry_points(group=ENTRY_POINT_GROUP)}
    # A built-in is found first, so a registered name cannot hide it.
    return {**registered, **_DESCRIPTIONS, **_PATH_DESCRIPTIONS}


def read_source(name: str, seed: int) -> Source:
    """The samples of a data set by its name; `seed` is for a registered data set that draws its samples."""
    readers: dict[str, Callable[[], Source]] = {"digits": read_digits, "fashion_mnist": read_fashion_mnist}
    if name in readers:
        return readers[name]()
    kind, _, rest = name.partition(":")
    if kind == "npz" and rest:
        return read_npz(Path(rest))
    if kind == "images" and rest:
        return read_images(rest)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return from_mapping(name, entry.load()(seed))
    raise SpecError(
        f"there is no data set named {name!r}",
        required="one of " + ", ".join(available_datasets()),
        received=repr(name),
        remedy=f"use a name from the list, or register one under the entry-point group {ENTRY_POINT_GROUP}",
    )
