"""Small models that ship by name: for images, spectrograms, series, rows of features, masks and reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import TensorLike

#: Function from features to the outputs of the task.
Head = Callable[[TensorLike], Any]


@dataclass(frozen=True)
class BuiltIn:
    """A model that ships by name.

    Attributes:
        description: one line on it.
        axes: the axes of a sample that it takes: (H, W, C), (T, C) or (features,); any for None.
        build: from the shape of a sample and the task's head to the model.
        reconstructs: whether the outputs are the inputs again, so that the task's head is not used.
    """

    description: str
    axes: tuple[str, ...] | None
    build: Callable[[tuple[int, ...], Head], keras.Model]
    reconstructs: bool = False


#: Images smaller than this keep their size in the stem; larger ones are halved there, as in MobileNetV2 and ResNet.
_LARGE_IMAGE = 64


def _conv_bn(x: TensorLike, filters: int, kernel: int, strides: int, name: str) -> Any:
    x = keras.layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return _norm(x, f"{name}_bn")


def _norm(x: TensorLike, name: str) -> Any:
    # Keras' default momentum 0.99 needs some 500 steps until inference knows the data's statistics; a small data set
    # gives 200: on the digits, a network that had learnt them scored at chance.
    return keras.layers.BatchNormalization(momentum=0.9, name=name)(x)


def _stem_strides(input_shape: tuple[int, ...]) -> int:
    return 2 if min(input_shape[:2]) > _LARGE_IMAGE else 1


def _resnet8(input_shape: tuple[int, ...], head: Head) -> keras.Model:
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
    return keras.Model(inputs, head(x), name="resnet8")


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


def _mobilenet_like(input_shape: tuple[int, ...], head: Head) -> keras.Model:
    """A MobileNetV2 in miniature: the same blocks, four times expanded, five of them."""
    inputs = keras.layers.Input(input_shape, name="image")
    x = keras.layers.ReLU(6.0, name="stem_relu")(_conv_bn(inputs, 16, 3, _stem_strides(input_shape), "stem"))
    for index, (filters, strides) in enumerate(((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)), start=1):
        x = _inverted_residual(x, filters, strides, f"block_{index}")
    x = keras.layers.ReLU(6.0, name="head_relu")(_conv_bn(x, 64, 1, 1, "head"))
    return keras.Model(inputs, head(x), name="mobilenet_like")


def _ds_cnn(input_shape: tuple[int, ...], head: Head) -> keras.Model:
    """DS-CNN of MLPerf Tiny's keyword spotting (arXiv:2106.07597): a stem and four depthwise separable blocks of 64."""
    inputs = keras.layers.Input(input_shape, name="features")
    kernel = tuple(min(size, most) for size, most in zip(input_shape[:2], (10, 4), strict=True))
    x = keras.layers.Conv2D(64, kernel, 2, padding="same", use_bias=False, name="stem_conv")(inputs)
    x = keras.layers.ReLU(name="stem_relu")(_norm(x, "stem_bn"))
    for index in range(1, 5):
        block = f"block_{index}"
        x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{block}_depthwise_conv")(x)
        x = keras.layers.ReLU(name=f"{block}_depthwise_relu")(_norm(x, f"{block}_depthwise_bn"))
        x = keras.layers.ReLU(name=f"{block}_relu")(_conv_bn(x, 64, 1, 1, block))
    return keras.Model(inputs, head(x), name="ds_cnn")


def _conv1d(input_shape: tuple[int, ...], head: Head) -> keras.Model:
    """A fully convolutional network for series (Wang et al. 2017, arXiv:1611.06455), with half its filters."""
    inputs = x = keras.layers.Input(input_shape, name="series")
    for index, (filters, kernel) in enumerate(((64, 8), (128, 5), (64, 3)), start=1):
        x = keras.layers.Conv1D(filters, kernel, padding="same", use_bias=False, name=f"conv_{index}")(x)
        x = keras.layers.ReLU(name=f"relu_{index}")(_norm(x, f"bn_{index}"))
    return keras.Model(inputs, head(x), name="conv1d")


def _lstm(input_shape: tuple[int, ...], head: Head) -> keras.Model:
    """One LSTM of 32 units, of which the last output is used."""
    inputs = keras.layers.Input(input_shape, name="series")
    return keras.Model(inputs, head(keras.layers.LSTM(32, name="lstm")(inputs)), name="lstm")


def _mlp(input_shape: tuple[int, ...], head: Head) -> keras.Model:
    """Two dense layers of 64 units on normalised features."""
    inputs = keras.layers.Input(input_shape, name="features")
    # Features of a table have scales of their own; the first normalisation learns them.
    x = _norm(inputs, "input_bn")
    for index in (1, 2):
        x = keras.layers.Dense(64, activation="relu", name=f"dense_{index}")(x)
    return keras.Model(inputs, head(x), name="mlp")


def _autoencoder(input_shape: tuple[int, ...], head: Head) -> keras.Model:
    """Dense autoencoder with a bottleneck of 8, as MLPerf Tiny's anomaly detector; of samples of any shape."""
    del head
    inputs = keras.layers.Input(input_shape, name="samples")
    x = keras.layers.Flatten(name="flat")(inputs) if len(input_shape) > 1 else inputs
    for index, units in enumerate((128, 128, 8, 128, 128), start=1):
        x = keras.layers.Dense(units, use_bias=False, name=f"dense_{index}")(x)
        x = keras.layers.ReLU(name=f"relu_{index}")(_norm(x, f"bn_{index}"))
    x = keras.layers.Dense(math.prod(input_shape), name="again")(x)
    outputs = keras.layers.Reshape(input_shape, name="samples_again")(x) if len(input_shape) > 1 else x
    return keras.Model(inputs, outputs, name="autoencoder")


def _unet(input_shape: tuple[int, ...], head: Head) -> keras.Model:
    """A U-Net (arXiv:1505.04597) of two levels with 16, 32 and 64 filters; height and width divisible by 4."""
    inputs = x = keras.layers.Input(input_shape, name="image")
    levels = []
    for index, filters in enumerate((16, 32), start=1):
        x = keras.layers.ReLU(name=f"down_{index}_relu")(_conv_bn(x, filters, 3, 1, f"down_{index}"))
        levels.append(x)
        x = keras.layers.MaxPooling2D(name=f"down_{index}_pool")(x)
    x = keras.layers.ReLU(name="bottom_relu")(_conv_bn(x, 64, 3, 1, "bottom"))
    for index, filters in ((2, 32), (1, 16)):
        x = keras.layers.UpSampling2D(name=f"up_{index}")(x)
        x = keras.layers.Concatenate(name=f"up_{index}_concat")([x, levels[index - 1]])
        x = keras.layers.ReLU(name=f"up_{index}_relu")(_conv_bn(x, filters, 3, 1, f"up_{index}"))
    return keras.Model(inputs, head(x), name="unet")


_IMAGE, _SERIES, _ROW = ("H", "W", "C"), ("T", "C"), ("features",)
BUILT_IN = {
    "resnet8": BuiltIn(
        "images: residual network of 8 weight layers, 78 k weights (as in MLPerf Tiny)", _IMAGE, _resnet8
    ),
    "mobilenet_like": BuiltIn(
        "images: inverted residuals with depthwise convolutions, 34 k weights", _IMAGE, _mobilenet_like
    ),
    "ds_cnn": BuiltIn("spectrograms: depthwise separable network, 23 k weights (as in MLPerf Tiny)", _IMAGE, _ds_cnn),
    "unet": BuiltIn("masks: U-Net of two levels, 50 k weights", _IMAGE, _unet),
    "conv1d": BuiltIn("series: three convolutions over time, 70 k weights", _SERIES, _conv1d),
    "lstm": BuiltIn("series: one LSTM of 32 units", _SERIES, _lstm),
    "mlp": BuiltIn("rows of features: two dense layers of 64 units", _ROW, _mlp),
    "autoencoder": BuiltIn(
        "reconstruction of any samples: dense layers with a bottleneck of 8", None, _autoencoder, reconstructs=True
    ),
}
