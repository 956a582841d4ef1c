"""Sums over a part of an axis as products with a constant matrix of zeros and ones, which int8 holds exactly.

Example: the cumulative sum of [N, T, C] over T, which TFLite has in float only, is a product with a triangular matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.graph.rules.emitting import Emitter
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
#: Longest axis: the matrix has the square of this number of weights.
MOST_SUMMED = 512
#: Smallest addend of a local response normalisation for which its root of a sum of squares is flat enough for int8.
_LEAST_BIAS = 0.1
_RESPONSES = {"nn.local_response_normalization", "nn.lrn", "compat.v1.nn.local_response_normalization"}


def cumulative_sum(node: Node, out: Rewriter) -> Any:
    """`tf.cumsum` over an axis of known size -> Permute, Dense with a triangular kernel, Permute."""
    arguments = arguments_of(node) if symbol_of(node) in {"math.cumsum", "compat.v1.cumsum"} else None
    tensor = None if arguments is None else arguments.get("x")
    if arguments is None or not isinstance(tensor, Tensor) or isinstance(arguments["axis"], Tensor):
        return None
    rank, axis = len(tensor.shape), int(arguments["axis"])
    axis %= rank
    size = tensor.shape[axis]
    if not axis or not size or size > MOST_SUMMED or not tensor.is_float:
        return None
    # kernel[s, t]: whether the sum at t contains the element s.
    kernel = np.triu(np.ones((size, size), np.float32), 1 if arguments.get("exclusive") else 0)
    kernel = kernel[::-1, ::-1] if arguments.get("reverse") else kernel
    emit = Emitter(node, out)
    if axis == rank - 1:
        return emit.product("", tensor, kernel)
    order = [number for number in range(rank) if number != axis] + [axis]
    moved = emit.permute("axis_last", tensor, tuple(order[1:]))
    summed = emit.product("sums", moved, kernel)
    return emit.permute("", summed, tuple(order.index(number) for number in range(1, rank)))


def local_response(node: Node, out: Rewriter) -> Any:
    """`tf.nn.local_response_normalization(x)` -> x * (bias + alpha * sums of squares of nearby channels) ** -beta."""
    arguments = arguments_of(node) if symbol_of(node) in _RESPONSES else None
    tensor = None if arguments is None else arguments.get("input")
    if arguments is None or not isinstance(tensor, Tensor) or not tensor.channels or tensor.channels > MOST_SUMMED:
        return None
    radius, bias, alpha, beta = (float(arguments[name]) for name in ("depth_radius", "bias", "alpha", "beta"))
    if not tensor.is_float or bias < _LEAST_BIAS or alpha < 0 or beta < 0:
        return None
    places = np.arange(tensor.channels)
    nearby = np.abs(places[:, None] - places) <= radius
    emit = Emitter(node, out)
    sums = emit.product("sums", emit.squared("squared", tensor), nearby.astype(np.float32))
    factor = emit.table("factor", sums, ("math.multiply", alpha), ("math.add", bias), ("math.pow", -beta))
    return emit.merge("", _L.Multiply, tensor, factor)
