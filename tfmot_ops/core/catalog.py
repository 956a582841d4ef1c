"""The catalogue: every architecture the compat matrix holds, found by introspection, and how to build it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from tfmot_ops.core.legacy_keras import keras
from tfmot_ops.core.models import application_constructor, application_constructors, smallest_side
from tfmot_ops.core.training import set_seed


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

    def build(self, *, seed: int = 0) -> keras.Model:
        """The model with random weights decided by `seed`, without its head, for images [N, side, side, 3]."""
        set_seed(seed)
        constructor = application_constructor(self.name)
        # A head on a random net only adds rounding noise; a mean gives one row of features a sample.
        return constructor(weights=None, include_top=False, input_shape=self.input_shape, pooling="avg")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: (H, W, C)."""
        return (self.side, self.side, 3)

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Smallest and largest pixel value its inputs have."""
        signature = inspect.signature(application_constructor(self.name))
        return (0.0, 255.0) if "include_preprocessing" in signature.parameters else (-1.0, 1.0)


def catalogue() -> dict[str, Architecture]:
    """Name -> architecture, by name; all constructors of tf_keras.applications."""
    return {name: architecture(name) for name in application_constructors()}


def architecture(name: str) -> Architecture:
    """One entry of the catalogue.

    Raises:
        SpecError: there is none of this name.
    """
    family = application_constructor(name).__module__.rsplit(".", 1)[-1]
    return Architecture(name, family, smallest_side(name))
