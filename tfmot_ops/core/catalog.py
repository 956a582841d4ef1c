"""The catalogue: every architecture the compat matrix holds, found by introspection, and how to build it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from tfmot_ops.core.legacy_keras import keras
from tfmot_ops.core.models import application_constructors, smallest_side
from tfmot_ops.core.training import set_seed
from tfmot_ops.errors import SpecError


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: its constructor in tf_keras.applications.
        family: the module that defines it (`mobilenet_v3`).
        side: smallest height and width in pixels that it takes.
    """

    name: str
    family: str
    side: int

    def build(self, *, seed: int = 0, open_size: bool = False) -> keras.Model:
        """The model with random weights, without its head, for images [N, side, side, 3].

        Args:
            seed: decides the weights.
            open_size: leave height and width open: [N, None, None, 3].
        """
        set_seed(seed)
        constructor = application_constructors()[self.name]
        shape = (None, None, 3) if open_size else (self.side, self.side, 3)
        options: dict[str, Any] = {"weights": None, "include_top": False, "input_shape": shape}
        # A head on a random net only adds rounding noise; a mean gives one row of features a sample.
        options["pooling"] = "avg"
        return constructor(**options)

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Smallest and largest pixel value its inputs have."""
        signature = inspect.signature(application_constructors()[self.name])
        return (0.0, 255.0) if "include_preprocessing" in signature.parameters else (-1.0, 1.0)


def catalogue() -> dict[str, Architecture]:
    """Name -> architecture, by name; all constructors of tf_keras.applications."""
    return {
        name: Architecture(name, constructor.__module__.rsplit(".", 1)[-1], smallest_side(name))
        for name, constructor in application_constructors().items()
    }


def architecture(name: str) -> Architecture:
    """One entry of the catalogue.

    Raises:
        SpecError: there is none of this name.
    """
    entries = catalogue()
    if name not in entries:
        raise SpecError(
            f"the catalogue has no architecture {name!r}",
            required="one of " + ", ".join(entries),
            received=repr(name),
            remedy="use a name from the list",
        )
    return entries[name]
