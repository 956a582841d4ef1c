"""The catalogue: every architecture the compat matrix holds, found by introspection, and how to build it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.models.applications import application_constructor, application_constructors, smallest_side
from tfmot_ops.models.by_name import ENTRY_POINT_GROUP

_REGISTERED = "registered"
#: Suffix of a name: the model is built for images of any size.
ANY_SIZE = "@any"
#: Image side and number of classes with which a registered model is built.
_REGISTERED_SIDE = 32
_CLASSES = 10


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: its constructor in tf_keras.applications, or its name under the entry-point group `tfmot_ops.models`;
            with `@any` behind it where `open_size` is set by `architecture`.
        family: the module that defines it (`mobilenet_v3`), `registered` for a model of an installed package.
        side: smallest height and width in pixels that it takes.
        open_size: whether the model is built for images of any size, as `(None, None, 3)` asks for; a cell still
            calibrates, trains and exports it with images of `side`. Not for a registered model.
    """

    name: str
    family: str
    side: int
    open_size: bool = False

    def build(self, *, seed: int = 0) -> keras.Model:
        """The model with random weights decided by `seed`, without its head, for images [N, H, W, 3]."""
        set_seed(seed)
        constructor = self.constructor
        if self.family == _REGISTERED:
            return constructor(self.input_shape, _CLASSES)
        # Without a head, which only adds rounding noise with random weights; pooling gives one feature row per sample.
        return constructor(weights=None, include_top=False, input_shape=self.built_shape, pooling="avg")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: (H, W, C)."""
        return (self.side, self.side, 3)

    @property
    def built_shape(self) -> tuple[int | None, int | None, int]:
        """Of the model's input: (H, W, C), unknown sizes None."""
        return (None, None, 3) if self.open_size else self.input_shape

    @property
    def constructor(self) -> Callable[..., keras.Model]:
        """The function that builds the model."""
        if self.family != _REGISTERED:
            return application_constructor(self.name.removesuffix(ANY_SIZE))
        loaded: Callable[..., keras.Model] = _registered()[self.name].load()
        return loaded

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Smallest and largest pixel value its inputs have."""
        if self.family == _REGISTERED:
            return (0.0, 1.0)
        signature = inspect.signature(self.constructor)
        return (0.0, 255.0) if "include_preprocessing" in signature.parameters else (-1.0, 1.0)


def catalogue() -> dict[str, Architecture]:
    """Name -> architecture, by name: all constructors of tf_keras.applications, and models of installed packages."""
    return {name: architecture(name) for name in sorted({*application_constructors(), *_registered()})}


def architecture(name: str) -> Architecture:
    """One entry of the catalogue.

    Args:
        name: as in the catalogue; `MobileNet@any` is MobileNet built for images of any size, (None, None, 3).

    Raises:
        SpecError: there is none of this name.
    """
    if name in _registered():
        return Architecture(name, _REGISTERED, _REGISTERED_SIDE)
    base = name.removesuffix(ANY_SIZE)
    family = application_constructor(base).__module__.rsplit(".", 1)[-1]
    return Architecture(name, family, smallest_side(base), open_size=name != base)


def _registered() -> dict[str, EntryPoint]:
    # A constructor of tf_keras is found first, so a registered name cannot hide it.
    known = application_constructors()
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name not in known}
