"""The quantisers and the one QuantizeConfig that puts them on a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.identity import Itself
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import QuantizeWrapperV2
from tfmot_ops.core.keras.types import Config, Layer, Quantizer, TensorLike, Variable

#: What a range starts from before calibration or training, as in tfmot.
INITIAL_RANGE = (-6.0, 6.0)
#: Share of the old range kept at each training step, as in tfmot: about 1000 steps to forget.
DECAY = 0.999
#: Limit of weights that are next to nothing.
_SMALLEST_LIMIT = 1e-7
#: Levels on each side of zero of symmetric int8.
_LEVELS = 127.0


def symmetric_limits(weights: TensorLike, *, per_channel: bool) -> tf.Tensor:
    """Largest magnitude of the weights: [channels] over the last axis, or a scalar.

    A channel of zeros has that of the kernel, as it stays zero on any scale.
    """
    magnitude = tf.abs(weights)
    return _usable(tf.reduce_max(magnitude, axis=list(range(len(weights.shape) - 1)) if per_channel else None))


def _usable(limits: TensorLike) -> tf.Tensor:
    """The limits, with another for zeros, of which there are many in a sparse kernel.

    A bias is an int32 number of steps of its channel's scale times the input's: on a tiny scale the bias of a channel
    of zeros is more than that holds, and 3.0 became 0.03 in the file (MobileNetV3Small, pruned, seed 1).
    """
    largest = tf.reduce_max(limits)
    largest = tf.where(largest > 0.0, largest, tf.ones_like(largest))
    return tf.where(limits > 0.0, tf.maximum(limits, _SMALLEST_LIMIT), largest)


def fake_quantize_weights(weights: TensorLike, *, per_channel: bool) -> tf.Tensor:
    """Round weights to 255 symmetric int8 levels; zero stays exactly zero.

    Args:
        weights: kernel, the output channels on the last axis.
        per_channel: one scale for each channel, otherwise one for the kernel.
    """
    return round_within(weights, symmetric_limits(weights, per_channel=per_channel))


def round_within(weights: TensorLike, limits: TensorLike) -> tf.Tensor:
    """Round weights to the int8 levels between -limits and limits, [channels] (last axis) or a scalar."""
    quantize = (
        tf.quantization.fake_quant_with_min_max_vars_per_channel
        if len(limits.shape)
        else tf.quantization.fake_quant_with_min_max_vars
    )
    return quantize(weights, -limits, limits, num_bits=8, narrow_range=True)


def tie(kernel: TensorLike, clusters: TensorLike) -> tf.Tensor:
    """The kernel with each weight replaced by the mean of its cluster: cluster-preserving training, as tfmot's CQAT.

    Args:
        kernel: weights; of one value in each cluster, as the gradients then are too.
        clusters: number of the cluster of each weight, same shape.
    """
    means = tf.math.unsorted_segment_mean(kernel, clusters, tf.reduce_max(clusters) + 1)
    return tf.gather(means, clusters)


@tf.custom_gradient
def _straight_through(_weights: TensorLike, quantized: TensorLike) -> Any:
    # The limits cover every weight, so nothing is clipped and the gradient passes as it is.
    return tf.identity(quantized), lambda gradient: (gradient, None)


@keras.saving.register_keras_serializable("tfmot_ops")
class WeightQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Symmetric int8 weights whose zeros stay zero while training goes on.

    The limits are read from the weights at every step, so they are right at once and need no training.
    The mask is a variable of the layer: it is saved and loaded with it, and so is the sparsity.

    Args:
        per_channel: one scale for each output channel, otherwise one for the kernel.
        keep_sparsity: hold the weights that are zero when the mask is set at zero.
        keep_clusters: hold the weights equal that are equal when the clusters are set; not together with `per_channel`.
        channels_axes: how many trailing axes together index the output channels (2 for depthwise kernels
            [height, width, channels, multiplier], 1 otherwise).
        swap_channels: whether output channels come before input channels (transposed convolutions).
        required_sparsity: fraction of zeros that the exported kernel has to hold; the export checks it.
    """

    def __init__(
        self,
        *,
        per_channel: bool,
        keep_sparsity: bool = False,
        keep_clusters: bool = False,
        channels_axes: int = 1,
        swap_channels: bool = False,
        required_sparsity: float = 0.0,
    ) -> None:
        self.per_channel = per_channel
        self.keep_sparsity = keep_sparsity
        self.keep_clusters = keep_clusters
        self.channels_axes = channels_axes
        self.swap_channels = swap_channels
        self.required_sparsity = required_sparsity

    def build(self, tensor_shape: tf.TensorShape, name: str, layer: Layer) -> dict[str, Any]:
        """Create the mask and the clusters, of the kernel's shape, where they are kept."""
        kept = {"mask": (self.keep_sparsity, "float32", "ones"), "clusters": (self.keep_clusters, "int32", "zeros")}
        return {
            key: layer.add_weight(f"{name}_{key}", tensor_shape, dtype=dtype, initializer=initial, trainable=False)
            for key, (wanted, dtype, initial) in kept.items()
            if wanted
        }

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, inputs: TensorLike, training: bool | TensorLike | None, weights: Mapping[str, Variable], **_: object
    ) -> tf.Tensor:
        """Kernel in, kernel rounded to int8 levels out, same shape."""
        del training
        kernel = tie(inputs, weights["clusters"]) if self.keep_clusters else tf.convert_to_tensor(inputs)
        if self.keep_sparsity:
            kernel *= weights["mask"]
        return _straight_through(kernel, self._round_fast(tf.stop_gradient(kernel)))

    def _round_fast(self, kernel: TensorLike) -> tf.Tensor:
        """What `round` gives at a tenth of its cost; a weight halfway between two levels may go to the other one.

        The per-channel fake-quant op runs in one thread and took 27 ms for a 3x3 kernel of 512 channels, these
        operations 2.4 ms (`benchmarks/train_step.py`).
        """
        if not self.per_channel:
            return self.round(kernel)
        rank = len(kernel.shape)
        channels = {rank - 2} if self.swap_channels else set(range(rank - self.channels_axes, rank))
        others = [axis for axis in range(rank) if axis not in channels]
        limits = _usable(tf.reduce_max(tf.abs(kernel), axis=others, keepdims=True))
        step = limits / _LEVELS
        return tf.round(kernel * (1.0 / step)) * step

    def round(self, kernel: TensorLike) -> tf.Tensor:
        """The rounding alone, without mask or gradient; the form the TFLite converter folds."""
        shape = kernel.shape
        if self.channels_axes > 1:
            # One channel axis, as TFLite stores it: [1, height, width, channels * multiplier].
            kernel = tf.reshape(kernel, [1, *shape[: -self.channels_axes], -1])
        elif self.swap_channels:
            kernel = tf.transpose(kernel, [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
        kernel = fake_quantize_weights(kernel, per_channel=self.per_channel)
        if self.channels_axes > 1:
            return tf.reshape(kernel, shape)
        if self.swap_channels:
            return tf.transpose(kernel, [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
        return kernel

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "per_channel": self.per_channel,
            "keep_sparsity": self.keep_sparsity,
            "keep_clusters": self.keep_clusters,
            "channels_axes": self.channels_axes,
            "swap_channels": self.swap_channels,
            "required_sparsity": self.required_sparsity,
        }


@keras.saving.register_keras_serializable("tfmot_ops")
class RowsQuantizer(WeightQuantizer):
    """A table whose rows are rounded after they are read, over a range they share with other tensors.

    Zeros and clusters are held as in any kernel. The converter gives the table the range of its rows, so nothing is
    rounded here.
    """

    def _round_fast(self, kernel: TensorLike) -> tf.Tensor:
        return kernel

    def round(self, kernel: TensorLike) -> tf.Tensor:
        """The table as it is."""
        return kernel


@keras.saving.register_keras_serializable("tfmot_ops")
class RangeQuantizer(tfmot.quantization.keras.quantizers.MovingAverageQuantizer):
    """int8 activations over a range that calibration sets and training follows (decay 0.999)."""

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, inputs: TensorLike, training: bool | TensorLike | None, weights: Mapping[str, Variable], **_: object
    ) -> tf.Tensor:
        """Activations in, activations on 256 levels out; the range moves while training."""
        return super().__call__(inputs, training, weights)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments: none."""
        return {}


@keras.saving.register_keras_serializable("tfmot_ops")
class FixedRangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """int8 activations over a range that the operation itself fixes (sigmoid, softmax, tanh)."""

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    def build(self, tensor_shape: tf.TensorShape, name: str, layer: Layer) -> dict[str, Any]:
        """Nothing to create."""
        del tensor_shape, name, layer
        return {}

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, inputs: TensorLike, training: bool | TensorLike | None, weights: Mapping[str, Variable], **_: object
    ) -> tf.Tensor:
        """Activations in, activations on 256 levels out."""
        del training, weights
        return tf.quantization.fake_quant_with_min_max_args(inputs, self.low, self.high, num_bits=8)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"low": self.low, "high": self.high}


@keras.saving.register_keras_serializable("tfmot_ops")
class LayerQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """Which weights of a layer are quantised and what follows its output.

    Args:
        weights: weight attribute (`kernel`) -> its quantiser.
        output: quantiser of the (only) output, None for a layer whose result goes on unrounded.
        keep_float: nothing is quantised, and the export keeps the converter from doing so by itself.
    """

    def __init__(
        self,
        weights: dict[str, WeightQuantizer] | None = None,
        output: Quantizer | None = None,
        *,
        keep_float: bool = False,
    ) -> None:
        self.weights = weights or {}
        self.output = output
        self.keep_float = keep_float

    def get_weights_and_quantizers(self, layer: Layer) -> list[tuple[Any, Any]]:
        """(variable, quantiser) pairs."""
        return [(getattr(layer, name), quantizer) for name, quantizer in self.weights.items()]

    def set_quantize_weights(self, layer: Layer, quantize_weights: Sequence[TensorLike]) -> None:
        """Put the rounded weights where the layer's `call` reads them.

        Past Keras' own `__setattr__`, which would drop the variable from the layer's weights.
        """
        for name, value in zip(self.weights, quantize_weights, strict=True):
            object.__setattr__(layer, name, value)

    def get_activations_and_quantizers(self, layer: Layer) -> list[tuple[Any, Any]]:
        """None: after normalisation an activation is a layer of its own."""
        del layer
        return []

    def set_quantize_activations(self, layer: Layer, quantize_activations: Sequence[TensorLike]) -> None:
        """Nothing to set."""
        del layer, quantize_activations

    def get_output_quantizers(self, layer: Layer) -> list[Any]:
        """The output quantiser, if there is one."""
        del layer
        return [] if self.output is None else [self.output]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, serialised."""
        serialize = keras.utils.legacy.serialize_keras_object  # tfmot's wrapper reads the legacy form
        return {
            "weights": {name: serialize(quantizer) for name, quantizer in self.weights.items()},
            "output": None if self.output is None else serialize(self.output),
            "keep_float": self.keep_float,
        }

    @classmethod
    def from_config(cls, config: Config) -> LayerQuantizeConfig:
        """The inverse of `get_config`."""
        deserialize = keras.utils.legacy.deserialize_keras_object
        weights = {name: deserialize(quantizer) for name, quantizer in config["weights"].items()}
        output = None if config["output"] is None else deserialize(config["output"])
        return cls(weights, output, keep_float=config.get("keep_float", False))


@keras.saving.register_keras_serializable("tfmot_ops")
class QuantizedLayer(QuantizeWrapperV2):
    """tfmot's wrapper without three faults: a step counter a layer, frozen kernels that train, kernels left rounded.

    The counter is a quarter of a QAT model's variables; only tfmot's activation quantisers read it, and
    `LayerQuantizeConfig` has none.
    """

    def __init__(self, layer: Layer, quantize_config: LayerQuantizeConfig, **kwargs: object) -> None:
        super().__init__(layer, quantize_config, **kwargs)
        # tfmot calls the layer past Keras' `__call__`, which is where Keras adds what this regulariser gives.
        private.copy_activity_regularizer(self, layer)

    def add_weight(self, name: str | None = None, *args: object, **kwargs: object) -> Any:
        """The variable; None for the counter."""
        return None if name == "optimizer_step" else super().add_weight(name, *args, **kwargs)

    @property
    def trainable_weights(self) -> list[Any]:
        """The layer's own, its kernels first as in tfmot; none of a frozen layer.

        tfmot counts the kernels as the wrapper's as well, so they train in a frozen layer and are saved twice.
        """
        trained = self.layer.trainable_weights
        places = {Itself(variable): place for place, (variable, *_) in enumerate(private.weight_variables(self))}
        return sorted(trained, key=lambda variable: places.get(Itself(variable), len(places)))

    def call(self, inputs: TensorLike, training: bool | TensorLike | None = None, **kwargs: object) -> Any:
        """The layer on its rounded weights; afterwards it holds its variables again.

        A SavedModel traces the layer on its own too, where the rounded weights of another trace are out of reach.
        """
        try:
            return super().call(inputs, training=training, **kwargs)
        finally:
            self.quantize_config.set_quantize_weights(
                self.layer, [variable for variable, *_ in private.weight_variables(self)]
            )
