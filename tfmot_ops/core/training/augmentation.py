"""The layers that change a batch of inputs in training: tf_keras' by name, or registered by an installed package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, NoReturn

import numpy as np

from tfmot_ops.contract.training import Augmentation
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.errors import SpecError

ENTRY_POINT_GROUP = "tfmot_ops.augmentations"
#: Geometric layers: they move the content of an image, so targets with positions in it, such as masks, would not fit.
_GEOMETRIC = ("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom")
#: Layers that change values without moving them. No layer of either kind changes the shape of a sample.
_VALUE_CHANGING = (
    "GaussianDropout",
    "GaussianNoise",
    "RandomBrightness",
    "RandomContrast",
    "SpatialDropout1D",
    "Dropout",
)
#: Arguments that differ from Keras' defaults: images are in [0, 1] here, and in [0, 255] there.
_DEFAULTS: dict[str, dict[str, Any]] = {"RandomBrightness": {"value_range": (0.0, 1.0)}}
#: Range to which RandomContrast clips; it has no argument for it, as RandomBrightness has.
_CONTRAST_RANGE = (0.0, 255.0)
#: Axes of a batch of images, [N, H, W, C].
_IMAGE_AXES = 4


def is_geometric(augmentation: Augmentation) -> bool:
    """Whether the layer moves the content of an image."""
    return augmentation.name in _GEOMETRIC


def available_augmentations() -> list[str]:
    """The names that a plan may use."""
    return sorted({*_GEOMETRIC, *_VALUE_CHANGING, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})


def augmentation_layer(augmentation: Augmentation) -> Layer:
    """A new layer of a plan's augmentation.

    Raises:
        SpecError: there is no such layer, or its constructor does not take the arguments.
    """
    name = augmentation.name
    if name not in available_augmentations():
        raise SpecError(
            f"the training plan names an unknown augmentation {name!r}",
            required="one of " + ", ".join(available_augmentations()),
            received=repr(name),
            remedy=f"use a name from the list, or register a layer under the entry-point group {ENTRY_POINT_GROUP}",
        )
    if name in {*_GEOMETRIC, *_VALUE_CHANGING}:
        make = getattr(keras.layers, name)
    else:
        make = next(iter(entry_points(group=ENTRY_POINT_GROUP, name=name))).load()
    try:
        with _drawing_from_generators():
            layer: Layer = make(**{**_DEFAULTS.get(name, {}), **augmentation.arguments})
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"the augmentation {name} of the training plan cannot be made",
            required="arguments that its constructor takes",
            received=f"{augmentation.arguments}: {str(error).strip().splitlines()[0]}",
            remedy=f"correct the arguments of {name} in training.augmentation",
        ) from error
    return layer


@contextlib.contextmanager
def _drawing_from_generators() -> Iterator[None]:
    """Layers that are made here draw from a `tf.random.Generator`, which can be seeded for each epoch.

    Keras' default, random operations with a seed of their own, would have to be traced again in each epoch.
    """
    switches = keras.backend.experimental
    was_on = switches.is_tf_random_generator_enabled()
    switches.enable_tf_random_generator()
    try:
        yield
    finally:
        if not was_on:
            switches.disable_tf_random_generator()


def require_shape_kept(augmentation: Augmentation, layer: Layer, sample: Any) -> None:
    """Refuse an augmentation that does not take a sample, or gives another shape.

    Args:
        augmentation: as the plan names it.
        layer: its layer.
        sample: a batch of inputs [N, ...].

    Raises:
        SpecError: the layer fails, or its output has another shape.
    """
    if is_geometric(augmentation) and len(sample.shape) != _IMAGE_AXES:
        # Keras would take the batch for one image, and move samples to other samples' targets.
        _refuse(augmentation, "a batch of images [N, H, W, C]", f"inputs of shape {list(sample.shape)}")
    clipped = _clips_to(augmentation)
    if clipped and (np.min(sample) < clipped[0] or np.max(sample) > clipped[1]):
        found = f"inputs from {np.min(sample):g} to {np.max(sample):g}, which it would clip"
        _refuse(augmentation, f"inputs from {clipped[0]:g} to {clipped[1]:g}", found)
    required = list(sample.shape)
    try:
        shape = list(layer(np.asarray(sample), training=True).shape)
        received = f"an output of shape {shape}"
    except Exception as error:  # noqa: BLE001 - a registered layer may raise any class
        # Keras puts the reason below a line that only names the layer.
        lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception encountered")]
        shape, received = [], f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    if shape != required:
        _refuse(augmentation, f"a layer that takes and gives inputs of shape {required}", received)


def _clips_to(augmentation: Augmentation) -> tuple[float, float] | None:
    """The range to which a layer clips its inputs; None for one that does not."""
    if augmentation.name == "RandomContrast":
        return _CONTRAST_RANGE
    if augmentation.name == "RandomBrightness":
        lowest, highest = (_DEFAULTS["RandomBrightness"] | augmentation.arguments)["value_range"]
        return float(lowest), float(highest)
    return None


def _refuse(augmentation: Augmentation, required: str, received: str) -> NoReturn:
    raise SpecError(
        f"the augmentation {augmentation.name} does not fit the inputs",
        required=required,
        received=received,
        remedy="leave it out of training.augmentation, or name another input",
    )
