"""Scaling and standardising: Rescaling, Normalization, LayerNormalization, GroupNormalization."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.layers import AxisMean, InverseRoot, Shift
from tfmot_ops.core.graph.rewrite import Rewriter, channel_constant
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.keras.pinned import keras
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
        return _group_normalization(node, out)
    if type(layer) is _L.UnitNormalization:
        return _unit_length(node, out, layer.axis)
    if symbol_of(node) == "math.l2_normalize":
        given = arguments_of(node) or {}
        return _unit_length(node, out, given.get("axis"), float(given.get("epsilon", _LENGTH_EPSILON)))
    return None


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


def _group_normalization(node: Node, out: Rewriter) -> Any:
    layer, (tensor,) = node.layer, node.inputs()
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    sizes = tensor.shape[1:-1]
    if axis % len(tensor.shape) != len(tensor.shape) - 1 or not tensor.channels or None in sizes:
        return None
    groups = tensor.channels if layer.groups == -1 else layer.groups
    # [N, H, W, C] -> [N, H * W, groups, C / groups]: four axes, for an input of any rank.
    target = (math.prod(size for size in sizes if size), groups, tensor.channels // groups)
    split = out.once(layer, "split", lambda: _L.Reshape(target, name=f"{layer.name}_split"))
    join = out.once(layer, "join", lambda: _L.Reshape(tensor.shape[1:], name=f"{layer.name}_join"))
    grouped = out.call(split, f"{node.path}_split", tensor, shape=(tensor.shape[0], *target))
    result = _standardized(node, out, grouped, [1, 3])
    return _learned_affine(node, out, out.call(join, f"{node.path}_join", result, shape=tensor.shape))


def _learned_affine(node: Node, out: Rewriter, tensor: Tensor) -> Tensor:
    layer, weights = node.layer, list(out.graph.weights_of(node.layer))
    scale = weights.pop(0) if layer.scale else 1.0
    offset = weights.pop(0) if layer.center else 0.0
    if not (layer.scale or layer.center):
        return tensor
    return out.affine(node.path, tensor, scale, offset, trainable=layer.trainable)


def _standardized(node: Node, out: Rewriter, tensor: Tensor, axes: list[int]) -> Tensor:
    """Emit (x - mean) / sqrt(variance + epsilon) as separate calls, so that each intermediate result has a range."""
    layer = node.layer
    sizes = tuple(1 if axis in axes else size for axis, size in enumerate(tensor.shape))

    def call(role: str, make: Function, inputs: object, shape: tuple[int | None, ...] = tensor.shape) -> Tensor:
        made = out.once(layer, role, lambda: make(name=f"{layer.name}_{role}"))
        return out.call(made, f"{node.path}_{role}", inputs, shape=shape)

    def mean_layer(name: str) -> Any:
        return AxisMean(axes, name=name)

    mean = call("mean", mean_layer, tensor, sizes)
    centred = call("centred", _L.Subtract, [tensor, mean])
    squared = call("squared", _L.Multiply, [centred, centred])
    variance = call("variance", mean_layer, squared, sizes)
    shifted = call("shifted", lambda name: Shift(layer.epsilon, name=name), variance, sizes)
    inverse = call("inverse", InverseRoot, shifted, sizes)
    return call("standardized", _L.Multiply, [centred, inverse])
