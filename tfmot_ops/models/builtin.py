"""Small models that ship by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import TensorLike
from tfmot_ops.tasks.classification import classifier

DESCRIPTIONS = {
    "resnet8": "residual network of 8 weight layers, 78 k weights (as in MLPerf Tiny)",
    "mobilenet_like": "inverted residuals with depthwise convolutions, 34 k weights",
}
#: Images smaller than this keep their size in the stem; larger ones are halved there, as in MobileNetV2 and ResNet.
_LARGE_IMAGE = 64


def _conv_bn(x: TensorLike, filters: int, kernel: int, strides: int, name: str) -> Any:
    x = keras.layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return _norm(x, f"{name}_bn")


def _norm(x: TensorLike, name: str) -> Any:
    # Keras' default momentum 0.99 needs some 500 steps until inference knows the data's statistics; a small data set
    # gives 200: on the digits, a network that had learnt them scored at chance.
    return keras.layers.BatchNormalization(momentum=0.9, name=name)(x)


def _stem_strides(input_shape: tuple[int, int, int]) -> int:
    return 2 if min(input_shape[:2]) > _LARGE_IMAGE else 1


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
    return keras.Model(inputs, classifier(x, num_classes), name="resnet8")


def _inverted_residual(x: TensorLike, filters: int, strides: int, block: str) -> Any:
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
    return keras.Model(inputs, classifier(x, num_classes), name="mobilenet_like")


BUILDERS: dict[str, Callable[[tuple[int, int, int], int], keras.Model]] = {
    "resnet8": _resnet8,
    "mobilenet_like": _mobilenet_like,
}
