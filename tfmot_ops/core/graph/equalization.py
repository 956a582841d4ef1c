"""Cross-layer equalisation: channels between two layers with kernels get ranges of alike size (arXiv:1906.04721).

Between the two layers stand only operations f with f(x / s) = f(x) / s, such as ReLU. So the first layer's weights of a
channel are divided by a factor, the second layer's weights of that channel are multiplied by it, and the outputs stay
equal. A channel whose values are much larger than the others' gives all of them coarse int8 steps; a channel with
much smaller weights is rounded to few levels where a kernel has one scale. The factor makes both errors smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.roles import activation_name
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, Layer

_L = keras.layers
#: Layers with a kernel [..., input channels, output channels].
_DENSE = {_L.Dense, _L.Conv1D, _L.Conv2D}
#: Layers that compute each channel by itself, and for which a factor of their input is one of their output.
_BY_CHANNEL = {
    *(_L.MaxPooling1D, _L.MaxPooling2D, _L.AveragePooling1D, _L.AveragePooling2D),
    *(_L.GlobalMaxPooling1D, _L.GlobalMaxPooling2D, _L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D),
    *(_L.ZeroPadding1D, _L.ZeroPadding2D, _L.Cropping1D, _L.Cropping2D, _L.Dropout, _L.SpatialDropout2D),
}
#: Passes over the model: a factor between two layers changes the ranges that the next pair sees.
_PASSES = 10


@dataclass(frozen=True)
class _Pair:
    """Two layers with kernels: the first one's output channels are the second one's input channels.

    Attributes:
        norm: the BatchNormalization behind the first layer, whose scale and offset take the factor; None without one.
    """

    first: Layer
    norm: Layer | None
    second: Layer


def equalize(graph: Graph) -> int:
    """Even out the channels' ranges between layers, in place; the outputs stay equal.

    The factors are powers of two, which only change the exponents of the weights, so that no weight is rounded.

    Args:
        graph: a normalised float graph; its `weights` get the new values.

    Returns:
        The number of pairs of layers that were changed.
    """
    pairs = _pairs(graph)
    changed: set[_Pair] = set()
    for _ in range(_PASSES):
        now = {pair for pair in pairs if _equalize_pair(graph, pair)}
        changed |= now
        if not now:
            break
    return len(changed)


def _pairs(graph: Graph) -> list[_Pair]:
    readers, calls = graph.readers(), graph.calls_per_layer()
    results = set(tensors(graph.outputs))

    def only_reader(tensor: Tensor) -> Node | None:
        found = readers.get(tensor, [])
        return found[0] if len(found) == 1 and tensor not in results and calls[found[0].layer] == 1 else None

    return [
        pair
        for node in graph.nodes
        if calls[node.layer] == 1 and _has_kernel(node.layer)
        if (pair := _pair_behind(node, only_reader)) is not None
    ]


def _pair_behind(node: Node, only_reader: Callable[[Tensor], Node | None]) -> _Pair | None:
    """The pair whose first layer a call belongs to; None where something between has no such factor."""
    norm, has_relu = None, False
    reader = only_reader(node.output())
    while reader is not None:
        layer = reader.layer
        if _has_kernel(layer):
            return _Pair(node.layer, norm, layer)
        if _is_norm(layer, len(reader.output().shape)) and norm is None and not has_relu:
            norm = layer
        elif activation_name(layer) == "relu":
            has_relu = True
        elif type(layer) not in _BY_CHANNEL:
            return None
        reader = only_reader(reader.output())
    return None


def _has_kernel(layer: Layer) -> bool:
    if type(layer) not in _DENSE | {_L.DepthwiseConv2D}:
        return False
    linear = layer.activation is keras.activations.linear
    is_plain = getattr(layer, "groups", 1) == 1 or type(layer) is _L.DepthwiseConv2D
    return linear and is_plain and getattr(layer, "data_format", "channels_last") == "channels_last"


def _is_norm(layer: Layer, rank: int) -> bool:
    """Whether a layer is a BatchNormalization of the last axis with a scale, so that it can take a factor."""
    if type(layer) is not _L.BatchNormalization or not layer.scale:
        return False
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    return axis % rank == rank - 1


def _equalize_pair(graph: Graph, pair: _Pair) -> bool:
    first, second = ([np.asarray(each) for each in graph.weights_of(layer)] for layer in (pair.first, pair.second))
    written, read = _largest_by_output(pair.first, first[0]), _largest_by_input(second[0])
    # Weights of a BatchNormalization: scale, offset where it has one, mean, variance.
    norm = [] if pair.norm is None else [np.asarray(each) for each in graph.weights_of(pair.norm)]
    if pair.norm is not None:
        written = written * np.abs(norm[0]) / np.sqrt(norm[-1] + pair.norm.epsilon)
    if written.shape != read.shape:
        return False
    alive = (written > 0.0) & (read > 0.0)
    ratio = np.where(alive, written, 1.0) / np.where(alive, read, 1.0)
    factors = np.exp2(np.round(np.log2(ratio) / 2.0)).astype(np.float32)
    if np.all(factors == 1.0):
        return False
    if pair.norm is None:
        kernel = _with_scaled_outputs(pair.first, first[0], 1.0 / factors)
        graph.weights[pair.first] = [kernel, *(bias / factors for bias in first[1:])]
    else:
        graph.weights[pair.norm] = [*(each / factors for each in norm[:-2]), *norm[-2:]]
    graph.weights[pair.second] = [second[0] * factors[:, None], *second[1:]]
    return True


def _largest_by_output(layer: Layer, kernel: Array) -> Array:
    """Largest weight magnitude of each output channel, [channels]."""
    if type(layer) is _L.DepthwiseConv2D:
        kernel = kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])
    return np.asarray(np.max(np.abs(kernel).reshape(-1, kernel.shape[-1]), axis=0), np.float64)


def _largest_by_input(kernel: Array) -> Array:
    """Largest weight magnitude of each input channel, [channels]; the last axis but one of every kernel."""
    return np.asarray(np.max(np.abs(kernel), axis=(*range(kernel.ndim - 2), kernel.ndim - 1)), np.float64)


def _with_scaled_outputs(layer: Layer, kernel: Array, factors: Array) -> Array:
    """A kernel whose output channels are multiplied by factors, [channels]."""
    is_by_channel = type(layer) is _L.DepthwiseConv2D
    return np.asarray(kernel * (factors.reshape(kernel.shape[-2:]) if is_by_channel else factors))
