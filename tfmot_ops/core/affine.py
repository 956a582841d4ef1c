"""One affine per channel: what Rescaling, Normalization, and constants in tensor arithmetic become."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ops.core.legacy_keras import keras


@keras.saving.register_keras_serializable("tfmot_ops")
class Affine(keras.layers.Layer):
    """y = x * scale + offset, with scale and offset of shape [channels] (last axis).

    Fixed numbers, not trained: they come from preprocessing. An axis of unknown size takes shape [1].
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trainable=False, **{key: value for key, value in kwargs.items() if key != "trainable"})

    def build(self, input_shape: Any) -> None:
        """Create `scale` and `offset`."""
        channels = input_shape[-1] or 1
        self.scale = self.add_weight("scale", (channels,), initializer="ones", trainable=False)
        self.offset = self.add_weight("offset", (channels,), initializer="zeros", trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs [..., channels] to outputs of the same shape."""
        return inputs * tf.cast(self.scale, inputs.dtype) + tf.cast(self.offset, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Same as the input's."""
        return input_shape
