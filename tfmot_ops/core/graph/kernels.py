"""Which weights of a layer are kernels: the ones that are pruned, and rounded to int8."""

from __future__ import annotations

from typing import Any, NamedTuple

from tfmot_ops.core.keras.pinned import keras

_L = keras.layers


class Kernel(NamedTuple):
    """A kernel of a layer class.

    Attributes:
        attribute: name of the layer's attribute that holds it.
        pruned_by_default: whether a recipe without a scope prunes it. Depthwise kernels have 9 weights a
            channel and lose more than they save, so they are pruned only where a scope names them.
        per_channel: whether TFLite takes one scale for each output channel (FULLY_CONNECTED does not convert).
        channels_axes, swap_channels: where the output channels are, see `WeightQuantizer`.
    """

    attribute: str
    pruned_by_default: bool = True
    per_channel: bool = True
    channels_axes: int = 1
    swap_channels: bool = False


_KERNELS: dict[type, tuple[Kernel, ...]] = {
    _L.Conv1D: (Kernel("kernel"),),
    _L.Conv2D: (Kernel("kernel"),),
    _L.Conv3D: (Kernel("kernel"),),
    _L.Conv1DTranspose: (Kernel("kernel", swap_channels=True),),
    _L.Conv2DTranspose: (Kernel("kernel", swap_channels=True),),
    _L.DepthwiseConv1D: (Kernel("depthwise_kernel", pruned_by_default=False, channels_axes=2),),
    _L.DepthwiseConv2D: (Kernel("depthwise_kernel", pruned_by_default=False, channels_axes=2),),
    _L.SeparableConv1D: (
        Kernel("pointwise_kernel"),
        Kernel("depthwise_kernel", pruned_by_default=False, channels_axes=2),
    ),
    _L.SeparableConv2D: (
        Kernel("pointwise_kernel"),
        Kernel("depthwise_kernel", pruned_by_default=False, channels_axes=2),
    ),
    _L.Dense: (Kernel("kernel", per_channel=False),),
    _L.Embedding: (Kernel("embeddings", per_channel=False),),
}


def kernels(layer: Any) -> tuple[Kernel, ...]:
    """The kernels of a layer, by its exact class; a subclass may use its weights in another way."""
    return _KERNELS.get(type(layer), ())
