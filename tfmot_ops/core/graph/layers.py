"""Layers that graph normalisation inserts: computations that no Keras layer has and TFLite computes in int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
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
    """y = 1 / sqrt(max(x, epsilon)), for inputs that are never negative.

    Args:
        epsilon: lower limit of the input; Keras' own is 1e-7.
    """

    def __init__(self, epsilon: float = 1e-7, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.epsilon = float(epsilon)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs of any shape to outputs of the same shape."""
        # Rounding to int8 may give 0, where 1 / sqrt(x) and its gradient are infinite.
        return tf.math.rsqrt(tf.maximum(inputs, self.epsilon))


@keras.saving.register_keras_serializable("tfmot_ops")
class HardSwish(keras.layers.Layer):
    """y = x * relu6(x + 3) / 6 (Howard et al. 2019, arXiv:1905.02244), one operation in TFLite."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs of any shape to outputs of the same."""
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)


@keras.saving.register_keras_serializable("tfmot_ops")
class Einsum(keras.layers.Layer):
    """`tf.einsum` of a list of tensors, as a layer: Keras cannot copy or load a recorded call of `tf.einsum`.

    Args:
        equation: as for `tf.einsum`, such as "btc,bsc->bts".
    """

    def __init__(self, equation: str, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.equation = equation

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """A list of tensors, one for each operand of the equation, to the tensor after its arrow."""
        return tf.einsum(self.equation, *inputs)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "equation": self.equation}


@keras.saving.register_keras_serializable("tfmot_ops")
class MaskedScores(keras.layers.Layer):
    """Scores before a softmax: y = x where the mask is true, and MASKED elsewhere, so that the softmax gives 0 there.

    Inputs are the scores [..., T, S], or a list of the scores and a mask of type bool that broadcasts against them.

    Args:
        causal: whether position t may also read only the positions s <= t.
    """

    #: Keras' value for masked scores; far enough from any score that its softmax is 0.
    MASKED = -1e9

    def __init__(self, *, causal: bool = False, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.causal = causal

    def call(self, inputs: Any) -> tf.Tensor:
        """Scores [..., T, S], or [scores, mask], to masked scores of the same shape."""
        scores, masks = self._parts(inputs)
        for mask in masks:
            # A sum, as in Keras: the converter ties the ranges of a select's input and output, not those of a sum.
            scores += tf.where(mask, tf.zeros([], scores.dtype), tf.constant(self.MASKED, scores.dtype))
        return scores

    def select(self, inputs: Any, value: float) -> tf.Tensor:
        """The same as `call`, with another value for masked scores."""
        scores, masks = self._parts(inputs)
        for mask in masks:
            scores = tf.where(mask, scores, tf.constant(value, scores.dtype))
        return scores

    def _parts(self, inputs: Any) -> tuple[Any, list[Any]]:
        """The scores and the list of masks."""
        scores, masks = (inputs[0], list(inputs[1:])) if isinstance(inputs, list | tuple) else (inputs, [])
        causal = [np.tril(np.ones(scores.shape[-2:], bool))] if self.causal else []
        return scores, masks + causal

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the scores."""
        return input_shape[0] if isinstance(input_shape, list) else input_shape

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "causal": self.causal}


@keras.saving.register_keras_serializable("tfmot_ops")
class LearnedTensor(keras.layers.Layer):
    """A weight as a tensor of the graph: y = weight, of the shape `sizes`, whatever the input.

    It stands for a weight that a custom layer uses in a function, as in `tf.gather(self.table, index)`: the function
    becomes a call of the graph that reads this tensor.

    Args:
        sizes: shape of the weight.
        weight_dtype: type of its elements.
        regularizer: of the weight, as in `add_weight`.
        constraint: of the weight, as in `add_weight`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weight_dtype: str = "float32",
        regularizer: object = None,
        constraint: object = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**{"dtype": weight_dtype, **kwargs, "autocast": False})
        self.sizes = [int(size) for size in sizes]
        self.weight_dtype = weight_dtype
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the weight `value`."""
        self.value = self.add_weight(
            "value",
            self.sizes,
            dtype=self.weight_dtype,
            initializer="zeros",
            regularizer=self.regularizer,
            constraint=self.constraint,
            trainable=self.trainable,
        )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Any input to the weight, of shape `sizes`; the result has no batch axis."""
        del inputs  # Keras' functional models need a layer to have an input
        return tf.identity(self.value)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Any:
        """The shape of the weight."""
        del input_shape
        return tf.TensorShape(self.sizes)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "sizes": self.sizes,
            "weight_dtype": self.weight_dtype,
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }


@keras.saving.register_keras_serializable("tfmot_ops")
class Power(keras.layers.Layer):
    """y = x ** p of a list [x, p]: a tensor that is never negative, and one learned number of shape ()."""

    #: Lower limit of x: at 0 the slope of a root is infinite, and training would give NaN.
    LOWEST = 1e-20

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """[x, p] to a tensor of the shape of x."""
        value, exponent = inputs
        return tf.pow(tf.maximum(value, self.LOWEST), exponent)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of x."""
        return input_shape[0]


#: All layer classes of this module.
INSERTED_LAYERS = (Affine, HardSwish, InverseRoot, AxisMean, Shift, Einsum, MaskedScores, LearnedTensor, Power)
