"""Scaling and standardising: Rescaling, Normalization, LayerNormalization, GroupNormalization."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.layers import AxisMean, InverseRoot, Shift
from tfmot_ops.core.graph.rebuild import copy_layer
from tfmot_ops.core.graph.rewrite import Rewriter, channel_constant
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.graph.rules.emitting import Emitter
from tfmot_ops.core.graph.steepness import MIN_ELEMENTS
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import TFOpLambda
from tfmot_ops.core.keras.types import Function

_L = keras.layers


def preprocessing(node: Node, out: Rewriter) -> Any:
    """Rescaling -> x * scale + offset, Normalization -> (x - mean) / deviation: one Affine, per channel."""
    layer = node.layer
    if type(layer) is _L.Rescaling:
        (tensor,) = node.inputs()
        if not tensor.is_float or any(channel_constant(v, tensor) is None for v in (layer.scale, layer.offset)):
            return None
        return out.affine(node.path, tensor, layer.scale, layer.offset)
    if type(layer) is _L.Normalization and not layer.invert:
        (tensor,) = node.inputs()
        # Statistics along another axis than the last are not per channel: then `channel_constant` returns None.
        mean, variance = (channel_constant(value, tensor) for value in (layer.mean, layer.variance))
        if not tensor.is_float or mean is None or variance is None:
            return None
        # Keras' formula, so that the results are bit-identical.
        deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
        return out.affine(node.path, tensor, 1.0, -mean, deviation)
    return None


def normalization(node: Node, out: Rewriter) -> Any:
    """LayerNormalization over the last axis, or GroupNormalization -> scale * (x - mean) / deviation + offset."""
    layer = node.layer
    if type(layer) is _L.LayerNormalization:
        (tensor,) = node.inputs()
        rank = len(tensor.shape)
        axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
        if [axis % rank for axis in axes] != [rank - 1]:
            return None
        result = _standardized(node, out, tensor, [rank - 1])
        return _learned_affine(node, out, result)
    if type(layer) is _L.GroupNormalization:
        (tensor,) = node.inputs()
        is_last = int(np.ravel(layer.axis)[0]) % len(tensor.shape) == len(tensor.shape) - 1
        return _group_normalization(node, out, tensor) if is_last else None
    if type(layer) is _L.UnitNormalization:
        return _unit_length(node, out, layer.axis)
    if symbol_of(node) == "math.l2_normalize":
        arguments = arguments_of(node) or {}
        return _unit_length(node, out, arguments.get("axis"), float(arguments.get("epsilon", _LENGTH_EPSILON)))
    return None


def normalization_of_axes(node: Node, out: Rewriter) -> Any:
    """LayerNormalization over other axes than the last -> over the last one, between transposes and reshapes.

    For example over the axes 1, 2 and 3 of [N, H, W, C]: reshaped to [N, H * W * C], normalised, and reshaped back.
    GroupNormalization of channels in another axis than the last is transposed too.
    """
    layer = node.layer
    if type(layer) not in {_L.LayerNormalization, _L.GroupNormalization}:
        return None
    (tensor,) = node.inputs()
    rank = len(tensor.shape)
    # Ascending, as Keras reads scale and offset in the order of the input's axes.
    axes = sorted(int(axis) % rank for axis in np.ravel(layer.axis))
    others = [axis for axis in range(rank) if axis not in axes]
    unknown = [axis for axis in range(1, rank) if tensor.shape[axis] is None]
    if axes == [rank - 1] or 0 in axes or set(unknown) & set(axes) or len(unknown) > 1 or not tensor.is_float:
        return None
    elements = math.prod(tensor.shape[axis] or 1 for axis in axes)
    if type(layer) is _L.LayerNormalization and elements < MIN_ELEMENTS:
        return None
    emit, order = Emitter(node, out), [*others, *axes]
    in_order = emit.permute("axes_last", tensor, tuple(order[1:])) if order != sorted(order) else tensor
    if type(layer) is _L.GroupNormalization:
        result = _group_normalization(node, out, in_order)
    else:
        joined = (*(tensor.shape[axis] for axis in others), elements)
        flat = emit.reshape("axes_joined", in_order, joined)
        result = _learned_affine(node, out, _standardized(node, out, flat, [len(joined) - 1]))
        result = emit.reshape("axes_split", result, in_order.shape)
    if result is None or in_order is tensor:
        return result
    return emit.permute("axes_back", result, tuple(order.index(axis) for axis in range(1, rank)))


def normalization_of_batch(node: Node, out: Rewriter) -> Any:
    """BatchNormalization of channels in another axis than the last -> of the last one, between transposes.

    In that form it is one scale and offset per channel, which TFLite has in int8.
    """
    layer, inputs = node.layer, node.inputs()
    if type(layer) is not _L.BatchNormalization or len(inputs) != 1 or not inputs[0].is_float:
        return None
    (tensor,), rank = inputs, len(inputs[0].shape)
    axes = [int(axis) % rank for axis in np.ravel(layer.axis)]
    if len(axes) != 1 or axes[0] in {0, rank - 1}:
        return None
    emit, order = Emitter(node, out), [*(axis for axis in range(rank) if axis not in axes), *axes]
    moved = emit.permute("axis_last", tensor, tuple(order[1:]))
    make = partial(copy_layer, layer, layer.name, axis=-1)
    weights = [np.asarray(weight) for weight in out.graph.weights_of(layer)]
    result = out.call(out.shared_layer(layer, "last", make), node.path, moved, shape=moved.shape, weights=weights)
    if result.producer is not None:
        result.producer.kwargs = {name: value for name, value in node.kwargs.items() if name == "training"}
    return emit.permute("axis_back", result, tuple(order.index(axis) for axis in range(1, rank)))


def cosine(node: Node, out: Rewriter) -> Any:
    """Dot(normalize=True) -> both operands divided by their lengths, and Dot."""
    layer, inputs = node.layer, node.inputs()
    if type(layer) is not _L.Dot or not layer.normalize or len(inputs) != len(_SIDES):
        return None
    axes = [layer.axes] * len(_SIDES) if isinstance(layer.axes, int) else list(layer.axes)
    units = []
    for side, tensor, axis in zip(_SIDES, inputs, axes, strict=True):
        function = TFOpLambda(tf.math.l2_normalize, name=f"{layer.name}_{side}")
        call = Node(function, f"{node.path}_{side}", (tensor,), {}, None, node.origin)
        units.append(_unit_length(call, out, axis))
    if None in units:
        return None
    return out.call(_L.Dot(layer.axes, name=layer.name), node.path, units, shape=node.output().shape)


#: Names of the two operands of a product.
_SIDES = ("left", "right")
#: TensorFlow's lower limit of the sum of squares, in `tf.math.l2_normalize`.
_LENGTH_EPSILON = 1e-12


def _unit_length(node: Node, out: Rewriter, axis: Any, epsilon: float = _LENGTH_EPSILON) -> Tensor | None:
    """Emit x / |x| over some axes of size n, as x / sqrt(mean(x * x)) / sqrt(n)."""
    (tensor,) = node.inputs()
    rank = len(tensor.shape)
    axes = [] if axis is None else sorted(int(one) % rank for one in np.ravel(axis))
    if not axes or 0 in axes or not tensor.is_float or any(tensor.shape[one] is None for one in axes):
        return None
    name, path = node.layer.name, node.path
    sizes = tuple(1 if one in axes else size for one, size in enumerate(tensor.shape))
    squared = out.call(_L.Multiply(name=f"{name}_squared"), f"{path}_squared", [tensor, tensor])
    mean = out.call(AxisMean(axes, name=f"{name}_mean"), f"{path}_mean", squared, shape=sizes)
    size = math.prod(tensor.shape[one] or 1 for one in axes)
    inverse = out.call(InverseRoot(epsilon / size, name=f"{name}_inverse"), f"{path}_inverse", mean)
    scaled = out.call(_L.Multiply(name=f"{name}_scaled"), f"{path}_scaled", [tensor, inverse])
    return out.affine(node.path, scaled, 1.0 / math.sqrt(size), 0.0)


def _group_normalization(node: Node, out: Rewriter, tensor: Tensor) -> Any:
    """Emit GroupNormalization of a tensor [N, ..., C]; None where a size besides the batch is unknown."""
    layer, sizes = node.layer, tensor.shape[1:-1]
    if not tensor.channels or None in sizes:
        return None
    groups = tensor.channels if layer.groups == -1 else layer.groups
    # [N, H, W, C] -> [N, H * W, groups, C / groups]: four axes, for an input of any rank.
    target = (math.prod(size for size in sizes if size), groups, tensor.channels // groups)
    split = out.shared_layer(layer, "split", lambda: _L.Reshape(target, name=f"{layer.name}_split"))
    join = out.shared_layer(layer, "join", lambda: _L.Reshape(tensor.shape[1:], name=f"{layer.name}_join"))
    grouped = out.call(split, f"{node.path}_split", tensor, shape=(tensor.shape[0], *target))
    result = _standardized(node, out, grouped, [1, 3])
    return _learned_affine(node, out, out.call(join, f"{node.path}_join", result, shape=tensor.shape))


def _learned_affine(node: Node, out: Rewriter, tensor: Tensor) -> Tensor:
    layer, weights = node.layer, list(out.graph.weights_of(node.layer))
    scale = np.ravel(weights.pop(0)) if layer.scale else 1.0
    offset = np.ravel(weights.pop(0)) if layer.center else 0.0
    if not (layer.scale or layer.center):
        return tensor
    return out.affine(node.path, tensor, scale, offset, trainable=layer.trainable)


def _standardized(node: Node, out: Rewriter, tensor: Tensor, axes: list[int]) -> Tensor:
    """Emit (x - mean) / sqrt(variance + epsilon) as separate calls, so that each intermediate result has a range."""
    layer = node.layer
    sizes = tuple(1 if axis in axes else size for axis, size in enumerate(tensor.shape))

    def call(part: str, make: Function, inputs: object, shape: tuple[int | None, ...] = tensor.shape) -> Tensor:
        made = out.shared_layer(layer, part, lambda: make(name=f"{layer.name}_{part}"))
        return out.call(made, f"{node.path}_{part}", inputs, shape=shape)

    def mean_layer(name: str) -> Any:
        return AxisMean(axes, name=name)

    mean = call("mean", mean_layer, tensor, sizes)
    centred = call("centred", _L.Subtract, [tensor, mean])
    squared = call("squared", _L.Multiply, [centred, centred])
    variance = call("variance", mean_layer, squared, sizes)
    shifted = call("shifted", lambda name: Shift(layer.epsilon, name=name), variance, sizes)
    inverse = call("inverse", InverseRoot, shifted, sizes)
    return call("standardized", _L.Multiply, [centred, inverse])
