"""The constructors of tf_keras.applications, and models of them that fit a data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import KerasTensor
from tfmot_ops.core.keras.types import Function, Kwargs, TensorLike
from tfmot_ops.errors import SpecError
from tfmot_ops.models.builtin import Head

#: Smallest side of an image, `min_size` in the constructors' sources (tf_keras 2.21); 32 for those not named.
_SMALLEST_SIDE = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
_DEFAULT_SMALLEST_SIDE = 32


def application_constructors() -> dict[str, Callable[..., keras.Model]]:
    """Name -> constructor of each architecture in tf_keras.applications, by name."""
    members = inspect.getmembers(keras.applications, inspect.isfunction)
    # Only constructors have a parameter `weights`; by convention they are named like classes.
    return {name: member for name, member in members if "weights" in inspect.signature(member).parameters}


def application_constructor(name: str) -> Callable[..., keras.Model]:
    """The constructor `name` of tf_keras.applications.

    Raises:
        SpecError: there is none of this name.
    """
    constructors = application_constructors()
    if name not in constructors:
        raise SpecError(
            f"tf_keras.applications has no {name!r}",
            required="one of " + ", ".join(constructors),
            received=repr(name),
            remedy="use the constructor's own spelling, as in MobileNetV2",
        )
    return constructors[name]


def smallest_side(name: str) -> int:
    """Smallest height and width, in pixels, that the constructor `name` of tf_keras.applications takes."""
    return _SMALLEST_SIDE.get(name, _DEFAULT_SMALLEST_SIDE)


def build_application(name: str, input_shape: tuple[int, ...], head: Head) -> keras.Model:
    """A model of tf_keras.applications with the task's head, for images [N, H, W, C] in [0, 1]."""
    constructor = application_constructor(name)
    inputs = keras.layers.Input(input_shape, name="image")
    fitted = _fit_images(inputs, name)
    options: dict[str, Any] = {"weights": None, "include_top": False}
    if "include_preprocessing" in inspect.signature(constructor).parameters:
        options["include_preprocessing"] = False  # it expects 0 to 255; the data is in [0, 1]
    features = _features(constructor, inputs, fitted, options)
    return keras.Model(inputs, head(features), name=name)


def _fit_images(x: TensorLike, name: str) -> Any:
    """Give images [N, H, W, C] the size and the three channels that an application takes.

    Pixels are repeated as often as fits, and zeros fill the rest. Both, unlike bilinear resizing, are exact on int8
    values, so the prelude costs no accuracy after quantisation.
    """
    smallest = smallest_side(name)
    height, width, channels = x.shape[1:]
    factors = tuple(max(1, smallest // size) for size in (height, width))
    if factors != (1, 1):
        x = keras.layers.UpSampling2D(factors, name="upsample")(x)
    gaps = [max(0, smallest - size) for size in x.shape[1:3]]
    if any(gaps):
        x = keras.layers.ZeroPadding2D([(gap // 2, gap - gap // 2) for gap in gaps], name="pad")(x)
    if channels == 1:
        x = keras.layers.Concatenate(name="to_rgb")([x, x, x])
    elif channels != 3:  # noqa: PLR2004 - red, green, blue
        x = keras.layers.Conv2D(3, 1, name="to_rgb")(x)  # trained to convert other channels to three
    if name.startswith("EfficientNetB"):
        x = keras.layers.Rescaling(255.0, name="to_bytes")(x)  # its own rescaling cannot be left out and expects bytes
    return x


def _features(constructor: Function, inputs: TensorLike, fitted: KerasTensor, options: Kwargs) -> Any:
    """Feature maps [N, h, w, C] of an application on `fitted`: in one flat graph where the constructor allows it."""
    if fitted is inputs:
        return constructor(input_tensor=inputs, **options).output
    # Some constructors (ConvNeXt, RegNet) start from the model input behind `input_tensor` and thus skip the prelude,
    # which is detected in the graph or by an error for the small image. These models are nested as a whole.
    try:
        flat = constructor(input_tensor=fitted, **options)
    except ValueError:
        flat = None
    if flat is not None and any(layer is fitted.node.layer for layer in flat.layers):
        return flat.output
    return constructor(input_shape=tuple(fitted.shape[1:]), **options)(fitted)
