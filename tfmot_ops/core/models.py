"""Models by name: built-ins, the constructors of tf_keras.applications, saved models, and registered ones.

Every model is a float classifier, uncompiled, made to the measure of a data set: it takes the images' shape and
gives one score per class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tfmot_ops.contract import BUILTIN_MODELS
from tfmot_ops.core.legacy_keras import keras
from tfmot_ops.core.training import set_seed
from tfmot_ops.errors import SpecError, UnsupportedModelError

ENTRY_POINT_GROUP = "tfmot_ops.models"

_DESCRIPTIONS = {
    "resnet8": "residual network of 8 weight layers, 78 k weights (as in MLPerf Tiny)",
    "mobilenet_like": "inverted residuals with depthwise convolutions, 34 k weights",
}
_FORM_DESCRIPTIONS = {
    "application:<Name>": "a constructor of tf_keras.applications, untrained, with a head for the data set",
    "<path>": "a saved model: .h5, .keras or a SavedModel folder",
}

#: Images smaller than this keep their size in the stem; larger ones are halved there, as in MobileNetV2 and ResNet.
_LARGE_IMAGE = 64
_SAVED_SUFFIXES = (".h5", ".keras")
#: Smallest side of an image, `min_size` in the constructors' sources (tf_keras 2.21); 32 for those not named.
_SMALLEST_SIDE = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
_DEFAULT_SMALLEST_SIDE = 32


def build_model(name: str, input_shape: tuple[int, int, int], num_classes: int, seed: int) -> keras.Model:
    """Build a model by name, or load it, for images [N, H, W, C] in [0, 1].

    Args:
        name: a built-in (`resnet8`, `mobilenet_like`), `application:<Name>`, the path of a saved model (.h5, .keras
            or a SavedModel folder), or a name registered under the entry-point group `tfmot_ops.models`.
        input_shape: (H, W, C) of the images.
        num_classes: classes to tell apart, at least 2.
        seed: decides the initial weights; seeds the process as `set_seed` does. A saved model keeps its weights.

    Returns:
        Model with outputs [N, num_classes], uncompiled except when it was loaded compiled.

    Raises:
        SpecError: the name is unknown, or the shape or the number of classes is invalid.
        UnsupportedModelError: a loaded, registered or application model does not fit the data set.
    """
    _check_measures(input_shape, num_classes)
    set_seed(seed)
    kind, _, rest = name.partition(":")
    if name in _BUILDERS:
        return _BUILDERS[name](input_shape, num_classes)
    if kind == "application":
        return _build_application(rest, input_shape, num_classes)
    if comes_trained(name):
        return _load(name, input_shape, num_classes)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        model = entry.load()(input_shape, num_classes)
        _check_fit(name, model, input_shape, num_classes)
        return model
    raise SpecError(
        f"there is no model named {name!r}",
        required="one of " + ", ".join(available_models()),
        received=repr(name),
        remedy=f"use a name from the list, or register a callable under the entry-point group {ENTRY_POINT_GROUP}",
    )


def comes_trained(name: str) -> bool:
    """Whether a model's name is the path of a saved model, which brings its weights; the others start from random ones.

    A name that `build_model` finds first (a built-in, `application:<Name>`) is none, also beside a folder of that name.
    """
    if name in _BUILDERS or name.startswith("application:"):
        return False
    return Path(name).suffix in _SAVED_SUFFIXES or Path(name).is_dir()


def available_models() -> dict[str, str]:
    """Name -> one line on it: built-ins, forms that take a name or a path, and registered models."""
    registered = {entry.name: f"registered as {entry.value}" for entry in entry_points(group=ENTRY_POINT_GROUP)}
    # A built-in is found first, so a registered name cannot hide it.
    return {**registered, **{name: _DESCRIPTIONS[name] for name in BUILTIN_MODELS}, **_FORM_DESCRIPTIONS}


def application_constructors() -> dict[str, Callable[..., keras.Model]]:
    """Name -> constructor of each architecture in tf_keras.applications, by name."""
    members = inspect.getmembers(keras.applications, inspect.isfunction)
    # Of the functions there, only constructors take weights; the names of classes they bear are convention.
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


def _check_measures(input_shape: tuple[int, int, int], num_classes: int) -> None:
    if len(input_shape) != 3 or min(input_shape) < 1 or num_classes < 2:  # noqa: PLR2004 - (H, W, C); two classes
        raise SpecError(
            "invalid input shape or number of classes",
            required="an input shape (H, W, C), each size at least 1, and at least 2 classes",
            received=f"input shape {tuple(input_shape)} and {num_classes} classes",
            remedy="check the shape of the data set's images and its labels",
        )


def _conv_bn(x: Any, filters: int, kernel: int, strides: int, name: str) -> Any:
    x = keras.layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return _norm(x, f"{name}_bn")


def _norm(x: Any, name: str) -> Any:
    # Keras' default momentum 0.99 needs some 500 steps until inference knows the data's statistics; a small data set
    # gives 200: on the digits, a network that had learnt them scored at chance.
    return keras.layers.BatchNormalization(momentum=0.9, name=name)(x)


def _stem_strides(input_shape: tuple[int, int, int]) -> int:
    return 2 if min(input_shape[:2]) > _LARGE_IMAGE else 1


def _classifier(x: Any, num_classes: int) -> Any:
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.layers.Dense(num_classes, activation="softmax", name="scores")(x)


def _resnet8(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """ResNet-8 of MLPerf Tiny (arXiv:2106.07597): a stem and three residual blocks of 16, 32 and 64 filters."""
    inputs = keras.layers.Input(input_shape, name="image")
    x = keras.layers.ReLU(name="stem_relu")(_conv_bn(inputs, 16, 3, _stem_strides(input_shape), "stem"))
    for index, filters in enumerate((16, 32, 64), start=1):
        strides = 1 if index == 1 else 2
        block = f"block_{index}"
        y = keras.layers.ReLU(name=f"{block}_1_relu")(_conv_bn(x, filters, 3, strides, f"{block}_1"))
        y = _conv_bn(y, filters, 3, 1, f"{block}_2")
        shortcut = x if index == 1 else _conv_bn(x, filters, 1, strides, f"{block}_shortcut")
        x = keras.layers.Add(name=f"{block}_add")([shortcut, y])
        x = keras.layers.ReLU(name=f"{block}_relu")(x)
    return keras.Model(inputs, _classifier(x, num_classes), name="resnet8")


def _inverted_residual(x: Any, filters: int, strides: int, block: str) -> Any:
    """Expand, filter each channel, project (arXiv:1801.04381); added to its input where the shapes allow it."""
    channels = x.shape[-1]
    # ReLU6 bounds the activations, which gives 8 bits a range that training cannot widen.
    y = _conv_bn(x, 4 * channels, 1, 1, f"{block}_expand")
    y = keras.layers.ReLU(6.0, name=f"{block}_expand_relu")(y)
    y = keras.layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False, name=f"{block}_depthwise_conv")(y)
    y = _norm(y, f"{block}_depthwise_bn")
    y = keras.layers.ReLU(6.0, name=f"{block}_depthwise_relu")(y)
    y = _conv_bn(y, filters, 1, 1, f"{block}_project")
    return keras.layers.Add(name=f"{block}_add")([x, y]) if (strides, filters) == (1, channels) else y


def _mobilenet_like(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A MobileNetV2 in miniature: the same blocks, four times expanded, five of them."""
    inputs = keras.layers.Input(input_shape, name="image")
    x = keras.layers.ReLU(6.0, name="stem_relu")(_conv_bn(inputs, 16, 3, _stem_strides(input_shape), "stem"))
    for index, (filters, strides) in enumerate(((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)), start=1):
        x = _inverted_residual(x, filters, strides, f"block_{index}")
    x = keras.layers.ReLU(6.0, name="head_relu")(_conv_bn(x, 64, 1, 1, "head"))
    return keras.Model(inputs, _classifier(x, num_classes), name="mobilenet_like")


_BUILDERS: dict[str, Callable[[tuple[int, int, int], int], keras.Model]] = {
    "resnet8": _resnet8,
    "mobilenet_like": _mobilenet_like,
}


def _build_application(name: str, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    constructor = application_constructor(name)
    inputs = keras.layers.Input(input_shape, name="image")
    fitted = _fit_images(inputs, name)
    options: dict[str, Any] = {"weights": None, "include_top": False}
    if "include_preprocessing" in inspect.signature(constructor).parameters:
        options["include_preprocessing"] = False  # it expects 0 to 255; the data is in [0, 1]
    features = _features(constructor, inputs, fitted, options)
    return keras.Model(inputs, _classifier(features, num_classes), name=name)


def _fit_images(x: Any, name: str) -> Any:
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
        x = keras.layers.Conv2D(3, 1, name="to_rgb")(x)  # of other channels, training finds the best mixture
    if name.startswith("EfficientNetB"):
        x = keras.layers.Rescaling(255.0, name="to_bytes")(x)  # its own rescaling cannot be left out and expects bytes
    return x


def _features(constructor: Callable[..., Any], inputs: Any, fitted: Any, options: dict[str, Any]) -> Any:
    """Feature maps [N, h, w, C] of an application on `fitted`: in one flat graph where the constructor allows it."""
    if fitted is inputs:
        return constructor(input_tensor=inputs, **options).output
    # Some (ConvNeXt, RegNet) start from the source of `input_tensor` instead of itself: they skip the prelude, which
    # shows in the graph, or breaks on the small image before. They are nested as a whole.
    try:
        flat = constructor(input_tensor=fitted, **options)
    except ValueError:
        flat = None
    if flat is not None and any(layer is fitted.node.layer for layer in flat.layers):
        return flat.output
    return constructor(input_shape=tuple(fitted.shape[1:]), **options)(fitted)


def _load(path: str, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    if not Path(path).exists():
        raise SpecError(
            f"{path} does not exist",
            required="a saved model: .h5, .keras or a SavedModel folder",
            received=f"no file or folder {path}",
            remedy="check the path",
        )
    from tfmot_ops.core.persist import load_model

    model = load_model(path, allow_unsafe=False)
    _check_fit(path, model, input_shape, num_classes)
    return model


def _check_fit(name: str, model: Any, input_shape: tuple[int, int, int], num_classes: int) -> None:
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    fits = (
        isinstance(model, keras.Model)
        and len(inputs) == len(outputs) == 1
        and len(inputs[0].shape) == 1 + len(input_shape)
        and all(size in (None, there) for size, there in zip(inputs[0].shape[1:], input_shape, strict=True))
        and tuple(outputs[0].shape[1:]) == (num_classes,)
    )
    if not fits:
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (inputs, outputs)]
        raise UnsupportedModelError(
            f"model {name} does not fit the data set",
            required=f"a tf_keras model with one input (None, {', '.join(map(str, input_shape))}) and one output "
            f"(None, {num_classes})",
            received=f"{type(model).__name__} with inputs {shapes[0]} and outputs {shapes[1]}",
            remedy="use the data set it was made for, or change its first or last layer",
        )
