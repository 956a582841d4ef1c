"""Arrays in a .npz file, and mappings of arrays as registered data sets give them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.errors import SpecError


def read_npz(path: Path) -> Source:
    """The arrays of a .npz file; no pickled objects are read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    # A .npy file gives a bare array, which is no context manager: TypeError (AttributeError before Python 3.12).
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise SpecError(
            f"{path} cannot be read",
            required="a .npz file with arrays of numbers, written by numpy.savez",
            received=f"{type(error).__name__}: {error}",
            remedy="check the path, and save numeric arrays (not objects)",
        ) from error
    return from_mapping(f"npz:{path}", arrays)


def from_mapping(name: str, arrays: object) -> Source:
    """A source from arrays with the keys `x_train`, `y_train`, `x_test`, `y_test`, or `x`, `y`."""
    if isinstance(arrays, Mapping):
        if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
            return Source(arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"])
        if {"x", "y"} <= arrays.keys():
            return Source(arrays["x"], arrays["y"])
    raise SpecError(
        f"data set {name} lacks arrays",
        required="the keys x_train, y_train, x_test, y_test, or the keys x, y",
        received=f"keys {sorted(map(str, arrays))}" if isinstance(arrays, Mapping) else type(arrays).__name__,
        remedy="name the arrays as required",
    )


READER = Reader(
    "npz:<path>",
    "arrays x_train, y_train, x_test, y_test, or x, y, in one .npz file",
    lambda path: read_npz(Path(path)),
)
