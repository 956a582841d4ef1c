"""The quantisers of activations: ranges that calibration and training find, and ranges that TFLite prescribes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, TensorLike, Variable

#: Initial activation range, before calibration or training; tfmot's default.
INITIAL_RANGE = (-6.0, 6.0)
#: Decay of the ranges' moving averages per training step; tfmot's default, a time constant of about 1000 steps.
DECAY = 0.999


@keras.saving.register_keras_serializable("tfmot_ops")
class RangeQuantizer(tfmot.quantization.keras.quantizers.MovingAverageQuantizer):
    """int8 activations; calibration sets the range, training updates it by a moving average (decay 0.999)."""

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, inputs: TensorLike, training: bool | TensorLike | None, weights: Mapping[str, Variable], **_: object
    ) -> tf.Tensor:
        """Activations rounded to 256 levels, same shape; in training the range is updated first."""
        return super().__call__(inputs, training, weights)

    def observed(self, values: TensorLike) -> Any:
        """The values from which the range is found: all of them."""
        return values

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments: none."""
        return {}


@keras.saving.register_keras_serializable("tfmot_ops")
class MaskedRangeQuantizer(RangeQuantizer):
    """int8 scores before a softmax, some of which are masked: masked scores get the lowest value of the range.

    The range covers the scores that are not masked, and extends `MARGIN` below the lowest of them. The softmax of the
    range's lowest value is then below half a step (1/512) of the softmax' fixed scale, so that it rounds to 0.
    """

    #: Distance of masked scores from the lowest other one. exp(-8) is 0.0003.
    MARGIN = 8.0
    #: Scores below this value count as masked; `MaskedScores` gives them -1e9.
    MASKED_BELOW = -1e8

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, inputs: TensorLike, training: bool | TensorLike | None, weights: Mapping[str, Variable], **_: object
    ) -> tf.Tensor:
        """Scores rounded to 256 levels, same shape; in training the range is updated first."""
        return super().__call__(self.observed(inputs), training, weights)

    def observed(self, scores: TensorLike) -> Any:
        """The scores, with masked ones at MARGIN below the lowest other one."""
        masked = scores < self.MASKED_BELOW
        lowest = tf.reduce_min(tf.where(masked, tf.zeros_like(scores), scores))
        return tf.where(masked, lowest - self.MARGIN, scores)


class QuantizerWithoutVariables(tfmot.quantization.keras.quantizers.Quantizer):
    """A quantiser whose range follows from its arguments or from the values that it rounds."""

    def build(self, tensor_shape: tf.TensorShape, name: str, layer: Layer) -> dict[str, Any]:
        """No variables."""
        del tensor_shape, name, layer
        return {}


@keras.saving.register_keras_serializable("tfmot_ops")
class FixedRangeQuantizer(QuantizerWithoutVariables):
    """int8 activations over the range that TFLite prescribes for an operation (sigmoid, softmax, tanh).

    Args:
        low: lowest value.
        high: highest value.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, inputs: TensorLike, training: bool | TensorLike | None, weights: Mapping[str, Variable], **_: object
    ) -> tf.Tensor:
        """Activations rounded to 256 levels, same shape."""
        del training, weights
        return tf.quantization.fake_quant_with_min_max_args(inputs, self.low, self.high, num_bits=8)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"low": self.low, "high": self.high}
