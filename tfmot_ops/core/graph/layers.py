"""Layers that graph normalisation inserts: computations that no Keras layer has and TFLite computes in int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array


@keras.saving.register_keras_serializable("tfmot_ops")
class Affine(keras.layers.Layer):
    """y = (x * scale + offset) / divisor; scale, offset and divisor have shape [channels] (the last axis).

    Scale and offset are frozen where they come from preprocessing, and trained where they were weights of a layer.
    The divisor is always frozen: dividing by it reproduces Keras' `(x - mean) / deviation` bit by bit, as a deep
    network amplifies rounding differences. If the size of the last axis is unknown, the shapes are [1].
    """

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**{"trainable": False, **kwargs})

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create `scale`, `offset` and `divisor`."""
        channels = (input_shape[-1] if len(input_shape) else None) or 1
        # trainable=False, so that no gradient flows to an augmentation layer before it: some have no gradient.
        self.scale = self.add_weight("scale", (channels,), initializer="ones", trainable=self.trainable)
        self.offset = self.add_weight("offset", (channels,), initializer="zeros", trainable=self.trainable)
        self.divisor = self.add_weight("divisor", (channels,), initializer="ones", trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs [..., channels] to outputs of the same shape."""
        scale, offset, divisor = (tf.cast(value, inputs.dtype) for value in (self.scale, self.offset, self.divisor))
        return (inputs * scale + offset) / divisor

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Any:
        """Same as the input's."""
        return input_shape


def scale_and_offset(weights: Sequence[Array]) -> tuple[Any, Any]:
    """(scale / divisor, offset / divisor) of an Affine's weights, each [channels]: y = x * first + second."""
    scale, offset, divisor = weights
    return scale / divisor, offset / divisor


@keras.saving.register_keras_serializable("tfmot_ops")
class AxisMean(keras.layers.Layer):
    """Mean over `axes`, with keepdims: [N, T, C] over axis 2 gives [N, T, 1]."""

    def __init__(self, axes: list[int], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.axes = list(axes)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs of any shape; the sizes of `axes` become 1."""
        return tf.reduce_mean(inputs, self.axes, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "axes": self.axes}


@keras.saving.register_keras_serializable("tfmot_ops")
class Shift(keras.layers.Layer):
    """y = x + value, with one scalar `value` for all elements."""

    def __init__(self, value: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.value = float(value)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs of any shape to outputs of the same."""
        return inputs + tf.constant(self.value, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable("tfmot_ops")
class InverseRoot(keras.layers.Layer):
    """y = 1 / sqrt(max(x, epsilon)), with Keras' epsilon of 1e-7, for inputs that are never negative."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs of any shape to outputs of the same shape."""
        # Rounding to int8 may give 0, where 1 / sqrt(x) and its gradient are infinite.
        return tf.math.rsqrt(tf.maximum(inputs, keras.backend.epsilon()))


@keras.saving.register_keras_serializable("tfmot_ops")
class HardSwish(keras.layers.Layer):
    """y = x * relu6(x + 3) / 6 (Howard et al. 2019, arXiv:1905.02244), one operation in TFLite."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs of any shape to outputs of the same."""
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)


#: All layer classes of this module.
LAYERS = (Affine, HardSwish, InverseRoot, AxisMean, Shift)
