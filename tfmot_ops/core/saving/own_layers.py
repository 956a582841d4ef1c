"""Layers of installed packages, by entry point: a command has no script that could import and register them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points

from tfmot_ops.core.keras.pinned import keras

ENTRY_POINT_GROUP = "tfmot_ops.layers"


@contextlib.contextmanager
def own_layers() -> Iterator[None]:
    """A scope in which Keras finds what installed packages name under the entry-point group `tfmot_ops.layers`.

    The entry's name is the class's or function's name in the saved model. What this process registered itself under
    that name takes precedence. A package that cannot be imported is warned of, as other models do not need it.
    """
    found = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            item = entry.load()
        except Exception as error:  # noqa: BLE001 - whatever the package's own import raises
            warnings.warn(f"no layer {entry.name} of {entry.value}: {type(error).__name__}: {error}", stacklevel=2)
            continue
        if keras.saving.get_registered_object(entry.name) is None:
            found[entry.name] = item
    with keras.saving.custom_object_scope(found):
        yield
