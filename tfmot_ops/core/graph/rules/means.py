"""Means over axes of size 1, which change no value."""

from __future__ import annotations

from typing import Any

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.layers import AxisMean
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.roles import describe
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
_MEANS = (AxisMean, _L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D, _L.GlobalAveragePooling3D)
_FUNCTIONS = {"math.reduce_mean", "math.reduce_sum", "math.reduce_prod"}


def mean_over_size_one(node: Node, out: Rewriter) -> Any:
    """A mean over axes of size 1, as after a convolution whose output has one position -> Reshape.

    The converter makes a reshape of it too, whose input and output have one range in TFLite.
    """
    if type(node.layer) not in _MEANS and describe(node.layer) not in _FUNCTIONS:
        return None
    inputs = node.inputs()
    if len(inputs) != 1 or not isinstance(node.outputs, Tensor) or isinstance(node.kwargs.get("mask"), Tensor):
        return None
    sizes = [[size for size in tensor.shape[1:] if size != 1] for tensor in (inputs[0], node.outputs)]
    same_batch = inputs[0].shape[:1] == node.outputs.shape[:1] and len(node.outputs.shape) > 1
    if not same_batch or sizes[0] != sizes[1] or sizes[0].count(None) > 1 or not inputs[0].is_float:
        return None
    shape = node.outputs.shape
    target = [-1 if size is None else size for size in shape[1:]]
    make = lambda: _L.Reshape(target, name=node.layer.name)  # noqa: E731 - used once, below
    return out.call(out.shared_layer(node.layer, "reshape", make), node.path, inputs[0], shape=shape)
