"""The quantisers for weights, and the QuantizeConfig and wrapper that attach them to a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tfmot_ops.core.graph.operations import Role
from tfmot_ops.core.graph.rebuild import is_public
from tfmot_ops.core.graph.roles import is_custom, spec_of
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.identity import IdentityKey
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import QuantizeWrapperV2
from tfmot_ops.core.keras.types import Config, Kwargs, Layer, Quantizer, TensorLike, Variable
from tfmot_ops.core.quantization.folding import folded_factor
from tfmot_ops.core.quantization.range_quantizers import QuantizerWithoutVariables

#: Smallest limit of a channel whose weights are not all 0; see `_without_tiny_limits`.
_SMALLEST_LIMIT = 1e-7
#: Levels on each side of zero of symmetric int8.
_LEVELS = 127.0


def symmetric_limits(weights: TensorLike, *, per_channel: bool) -> tf.Tensor:
    """Largest magnitude of the weights: [channels] (the last axis), or a scalar for the whole kernel.

    A channel of zeros gets the largest magnitude of the whole kernel: zeros stay 0 with any scale.
    """
    magnitude = tf.abs(weights)
    return _without_tiny_limits(
        tf.reduce_max(magnitude, axis=list(range(len(weights.shape) - 1)) if per_channel else None)
    )


def _without_tiny_limits(limits: TensorLike) -> tf.Tensor:
    """Largest weight magnitudes [channels], none of which gives a weight scale that is too small for the bias.

    A channel of zeros gets the largest limit of the kernel, or 1 where the whole kernel is zero; a limit below
    `_SMALLEST_LIMIT` becomes `_SMALLEST_LIMIT`.

    A bias is stored as int32 in steps of (weight scale * input scale). With a tiny scale, the bias of a channel of
    zeros does not fit int32: 3.0 became 0.03 in the file (MobileNetV3Small, pruned, seed 1).
    """
    largest = tf.reduce_max(limits)
    largest = tf.where(largest > 0.0, largest, tf.ones_like(largest))
    return tf.where(limits > 0.0, tf.maximum(limits, _SMALLEST_LIMIT), largest)


def fake_quantize_weights(weights: TensorLike, *, per_channel: bool) -> tf.Tensor:
    """Round weights to 255 symmetric int8 levels; zero stays exactly zero.

    Args:
        weights: kernel [..., channels].
        per_channel: one scale per channel; otherwise one scale for the whole kernel.
    """
    return round_within(weights, symmetric_limits(weights, per_channel=per_channel))


def round_within(weights: TensorLike, limits: TensorLike) -> tf.Tensor:
    """Round weights [..., channels] to 255 int8 levels from -limits to limits; limits are [channels] or a scalar."""
    quantize = (
        tf.quantization.fake_quant_with_min_max_vars_per_channel
        if len(limits.shape)
        else tf.quantization.fake_quant_with_min_max_vars
    )
    return quantize(weights, -limits, limits, num_bits=8, narrow_range=True)


def average_clusters(kernel: TensorLike, clusters: TensorLike) -> tf.Tensor:
    """Replace each weight by the mean of its cluster: cluster-preserving QAT, like tfmot's CQAT.

    Args:
        kernel: weights of any shape.
        clusters: int32, index of each weight's cluster, same shape.
    """
    means = tf.math.unsorted_segment_mean(kernel, clusters, tf.reduce_max(clusters) + 1)
    return tf.gather(means, clusters)


@tf.custom_gradient
def _straight_through(_weights: TensorLike, quantized: TensorLike) -> Any:
    # The limits cover every weight, so nothing is clipped and the gradient passes unchanged.
    return tf.identity(quantized), lambda gradient: (gradient, None)


@keras.saving.register_keras_serializable("tfmot_ops")
class WeightQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Symmetric int8 weights; optionally zeros stay zero and clusters stay equal during training.

    The limits are computed from the weights at every step, so they need no calibration.
    Mask and clusters are variables of the layer, so that they are saved and loaded with it.

    Args:
        per_channel: one scale per output channel; otherwise one scale for the whole kernel.
        keep_sparsity: keep the weights at 0 that were 0 when the mask was set (`set_masks_and_clusters`).
        keep_clusters: keep the weights equal that were equal when the clusters were set (`set_masks_and_clusters`);
            not together with `per_channel`.
        channels_axes: how many trailing axes together index the output channels (2 for depthwise kernels
            [height, width, channels, multiplier], 1 otherwise).
        swap_channels: whether output channels come before input channels (transposed convolutions).
        required_sparsity: fraction of zeros that the exported kernel must have; the export checks it.
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
        #: [channels]: the factor by which export multiplies the kernel before rounding it; set only during a call.
        self.factor: Any = None

    def build(self, tensor_shape: tf.TensorShape, name: str, layer: Layer) -> dict[str, Any]:
        """Create the variables `mask` and `clusters`, of the kernel's shape, as far as they are needed."""
        kept = {"mask": (self.keep_sparsity, "float32", "ones"), "clusters": (self.keep_clusters, "int32", "zeros")}
        return {
            key: layer.add_weight(f"{name}_{key}", tensor_shape, dtype=dtype, initializer=initial, trainable=False)
            for key, (needed, dtype, initial) in kept.items()
            if needed
        }

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, inputs: TensorLike, training: bool | TensorLike | None, weights: Mapping[str, Variable], **_: object
    ) -> tf.Tensor:
        """Kernel in, kernel rounded to int8 levels out, same shape."""
        del training
        kernel = average_clusters(inputs, weights["clusters"]) if self.keep_clusters else tf.convert_to_tensor(inputs)
        if self.keep_sparsity:
            kernel *= weights["mask"]
        fixed = tf.stop_gradient(kernel)
        if self.factor is None:
            return _straight_through(kernel, self._round_fast(fixed))
        factor = self._along_channels(self.factor, fixed.shape)
        return _straight_through(kernel, self._round_fast(fixed * factor) / factor)

    def _along_channels(self, factor: TensorLike, shape: tf.TensorShape) -> tf.Tensor:
        """A factor [channels], reshaped to broadcast against the kernel."""
        if self.channels_axes > 1:
            return tf.reshape(factor, shape[-self.channels_axes :])
        return factor[:, tf.newaxis] if self.swap_channels else factor

    def _round_fast(self, kernel: TensorLike) -> tf.Tensor:
        """A faster `round`; a weight halfway between two levels may be rounded to the other level.

        The per-channel fake-quant op runs in one thread and takes 27 ms for a 3x3 kernel of 512 channels; these
        operations take 2.4 ms (`benchmarks/train_step.py`).
        """
        if not self.per_channel:
            return self.round(kernel)
        rank = len(kernel.shape)
        channels = {rank - 2} if self.swap_channels else set(range(rank - self.channels_axes, rank))
        others = [axis for axis in range(rank) if axis not in channels]
        limits = _without_tiny_limits(tf.reduce_max(tf.abs(kernel), axis=others, keepdims=True))
        step = limits / _LEVELS
        return tf.round(kernel * (1.0 / step)) * step

    def round(self, kernel: TensorLike) -> tf.Tensor:
        """Round a kernel by the fake-quant operations that the TFLite converter reads; no mask, no gradient."""
        shape = kernel.shape
        if self.channels_axes > 1:
            # TFLite's shape of a depthwise kernel, with one channel axis: [1, height, width, channels * multiplier].
            kernel = tf.reshape(kernel, [1, *shape[: -self.channels_axes], -1])
        elif self.swap_channels and self.per_channel:
            kernel = tf.transpose(kernel, [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
        kernel = fake_quantize_weights(kernel, per_channel=self.per_channel)
        if self.channels_axes > 1:
            return tf.reshape(kernel, shape)
        if self.swap_channels and self.per_channel:
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
    """Keeps an embedding table in float whose looked-up rows are rounded, with a range shared with other tensors.

    Zeros and clusters are kept as in any kernel. The table itself is not rounded here, as the converter gives it the
    range of the looked-up rows.
    """

    def _round_fast(self, kernel: TensorLike) -> tf.Tensor:
        return kernel

    def round(self, kernel: TensorLike) -> tf.Tensor:
        """The table unchanged."""
        return kernel


@keras.saving.register_keras_serializable("tfmot_ops")
class ConstantQuantizer(QuantizerWithoutVariables):
    """Symmetric int8 quantiser for a weight that is an operand of a matrix product, as TFLite requires of kernels.

    The limits are computed from the weight at every step.
    """

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, inputs: TensorLike, training: bool | TensorLike | None, weights: Mapping[str, Variable], **_: object
    ) -> tf.Tensor:
        """Weights rounded to 255 levels, same shape."""
        del training, weights
        return _straight_through(inputs, fake_quantize_weights(tf.stop_gradient(inputs), per_channel=False))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments: none."""
        return {}


@keras.saving.register_keras_serializable("tfmot_ops")
class LayerQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    """Which weights of a layer are quantised, and by which quantiser its output is rounded.

    Args:
        weights: weight attribute (`kernel`) -> its quantiser.
        output: quantiser of the layer's only output; None if the output is not rounded.
        keep_float: marks a float layer so that the converter does not quantise it.
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
        """Set the layer's attributes (`kernel`) to the rounded weights, which its `call` then reads.

        `object.__setattr__` is used because Keras' own would drop the variable from the layer's weights.
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


class QuantizeLayer(private.QuantizeLayer):
    """tfmot's QuantizeLayer, which sets `built` here; saved files refer to it by tfmot's name.

    tfmot's own class does not set `built`. Loading a `.keras` file builds the layer, and its first call would build it
    again, with variables that the file does not have.
    """

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the variables of the range, once."""
        super().build(input_shape)
        self.built = True


@keras.saving.register_keras_serializable("tfmot_ops")
class QuantizedLayer(QuantizeWrapperV2):
    """tfmot's quantisation wrapper with four faults of version 0.8.1 fixed.

    - tfmot creates a step counter in each wrapper, a quarter of a QAT model's variables. Only tfmot's activation
      quantisers read it, and `LayerQuantizeConfig` has none.
    - tfmot trains the kernels of frozen layers.
    - tfmot leaves rounded tensors in the layer's weight attributes after a call.
    - tfmot counts the weights of a layer that is built before its wrapper as the wrapper's own. Loading a `.keras` file
      builds the layer first, and then misses weights that were never saved for the wrapper.
    """

    def __init__(self, layer: Layer, quantize_config: LayerQuantizeConfig, **kwargs: object) -> None:
        super().__init__(layer, quantize_config, **kwargs)
        # tfmot calls `layer.call` directly, but Keras adds the activity regulariser's loss in `layer.__call__`.
        private.copy_activity_regularizer(self, layer)

    def build(self, input_shape: tf.TensorShape) -> None:
        """Build the layer, and create the variables of the quantisers."""
        super(QuantizeWrapperV2, self).build(input_shape)  # V2 adds the weights of a layer that is built already

    def add_weight(self, name: str | None = None, *args: object, **kwargs: object) -> Any:
        """The new variable; None for tfmot's step counter, which is not created."""
        return None if name == "optimizer_step" else super().add_weight(name, *args, **kwargs)

    @property
    def trainable_weights(self) -> list[Any]:
        """The inner layer's trainable weights, quantised kernels first as in tfmot; empty for a frozen layer.

        tfmot also lists the kernels as weights of the wrapper: they train in a frozen layer and are saved twice.
        """
        trained = self.layer.trainable_weights
        places = {IdentityKey(variable): place for place, (variable, *_) in enumerate(private.weight_variables(self))}
        return sorted(trained, key=lambda variable: places.get(IdentityKey(variable), len(places)))

    def call(self, inputs: TensorLike, training: bool | TensorLike | None = None, **kwargs: object) -> Any:
        """Call the layer with rounded weights, then restore its variables.

        AutoGraph is used only for a user's own layer or activation: without it, tracing takes half as long.

        Without restoring, saving as SavedModel fails: it traces the inner layer separately, where rounded tensors of
        another trace cannot be used.
        """
        own_function = isinstance(self.layer, keras.layers.Activation) and not is_public(self.layer.activation)
        is_own = own_function or is_custom(self.layer)
        call = self._call_rounded if is_own else tf.autograph.experimental.do_not_convert(self._call_rounded)
        return call(inputs, training, kwargs)

    def _call_rounded(self, inputs: TensorLike, training: bool | TensorLike | None, kwargs: Kwargs) -> Any:
        quantizer = self._folded_quantizer()
        try:
            if quantizer is not None:
                quantizer.factor = folded_factor(self)
            return super().call(inputs, training=training, **kwargs)
        finally:
            if quantizer is not None:
                quantizer.factor = None
            self.quantize_config.set_quantize_weights(
                self.layer, [variable for variable, *_ in private.weight_variables(self)]
            )

    def _folded_quantizer(self) -> Any:
        """The quantiser of a kernel with one scale, into which export folds a normalisation; None for others."""
        quantizers = list(self.quantize_config.weights.values())
        if len(quantizers) != 1 or self.quantize_config.output is not None:
            return None
        quantizer, spec = quantizers[0], spec_of(self.layer)
        folds = spec.role is Role.CONVOLUTION and Role.AFFINE in spec.fuses
        return quantizer if folds and not quantizer.per_channel and not quantizer.keep_clusters else None
