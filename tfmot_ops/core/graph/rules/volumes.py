"""Pooling over three axes as pooling over one axis at a time: TFLite has no operation for pooling over three axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.emitting import Emitter
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
_POOLS = {_L.MaxPooling3D: _L.MaxPooling2D, _L.AveragePooling3D: _L.AveragePooling2D}


def pool_of_volume(node: Node, out: Rewriter) -> Any:
    """MaxPooling3D or AveragePooling3D of [N, D, H, W, C] -> up to three poolings of [N, rows, length, channels]."""
    layer = node.layer
    make = _POOLS.get(type(layer))
    if make is None or layer.data_format != "channels_last":
        return None
    return over_volume(node, out, make, Windows(layer.pool_size, layer.strides, layer.padding))


class Windows(NamedTuple):
    """The windows of a pooling over three axes.

    Attributes:
        size: length of a window along each of the axes.
        strides: step between two windows along each of the axes.
        padding: "same" or "valid".
    """

    size: Sequence[int]
    strides: Sequence[int]
    padding: str


def over_volume(node: Node, out: Rewriter, make: Callable[..., Any], windows: Windows) -> Tensor | None:
    """Emit a pooling over the axes 1 to 3 of a tensor; None where one of their sizes is unknown.

    The maximum over a box is the maximum of maxima along its axes, and the mean is the mean of means: padding, which a
    mean leaves out, is cut off along each axis too.

    Args:
        node: the call that is replaced.
        out: the rewriter.
        make: the class MaxPooling2D or AveragePooling2D.
        windows: size, strides and padding of the windows.
    """
    tensor, result = node.inputs()[0], node.output().shape
    pooled = [axis for axis in (3, 2, 1) if max(windows.size[axis - 1], windows.strides[axis - 1]) > 1]
    if None in tensor.shape[1:] or None in result[1:] or not pooled:
        return None
    emit, shape = Emitter(node, out), tensor.shape
    for axis in pooled:
        # The axis becomes the third one of [N, rows, length, channels]; the axes after it become channels.
        rows, channels = prod(n or 1 for n in shape[1:axis]), prod(n or 1 for n in shape[axis + 1 :])
        lined = emit.reshape(f"line_{axis}", tensor, (shape[0], rows, shape[axis], channels))
        pool = _pool_maker(make, windows.size[axis - 1], windows.strides[axis - 1], windows.padding)
        along = (shape[0], rows, result[axis], channels)
        tensor = emit.call(f"axis_{axis}", pool, lined, along)
        shape = (*shape[:axis], result[axis], *shape[axis + 1 :])
    return emit.call("", lambda name: _L.Reshape(shape[1:], name=name), tensor, shape)


def _pool_maker(make: Callable[..., Any], size: int, stride: int, padding: str) -> Callable[[str], Any]:
    """A function (name) -> a layer that pools the third axis of [N, rows, length, channels]."""
    return lambda name: make((1, size), (1, stride), padding, name=name)
