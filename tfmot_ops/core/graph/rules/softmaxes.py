"""Replaces `exp(x - max(x)) / sum(exp(x - max(x)))` by a Softmax layer, as TFLite divides in float only."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.roles import activation_name
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of, without_addend
from tfmot_ops.core.graph.rules.masks import masked_by_hand
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
#: Keras' names for the logarithm of a softmax.
LOG_SOFTMAX = {"nn.log_softmax", "math.log_softmax"}
#: Largest number that may be added to the sum: the sum is 1 or more, as the largest exponential is exp(0).
_SMALL = 1e-6


def softmax_by_hand(node: Node, out: Rewriter) -> Any:
    """exp(x - max(x)) / (sum(exp(x - max(x))) + 1e-7) over the last axis -> softmax, with its mask if x has one."""
    if symbol_of(node) not in {"math.truediv", "math.divide"}:
        return None
    arguments = arguments_of(node) or {}
    numerator, denominator = arguments.get("x"), arguments.get("y")
    if not isinstance(numerator, Tensor) or not isinstance(denominator, Tensor):
        return None
    exponent = _operand_of_exp(numerator)
    total, added = without_addend(denominator, out)
    if exponent is None or not _is_reduced(total, numerator, "math.reduce_sum"):
        return None
    logits = _without_maximum(exponent)
    if np.max(added) > (0.0 if logits is None else _SMALL):
        return None
    operand = exponent if logits is None else logits
    softmax = Node(_L.Softmax(name=node.layer.name), node.path, (operand,), {}, node.outputs, node.origin)
    masked = masked_by_hand(softmax, out)
    return masked or out.call(softmax.layer, node.path, operand)


def softmax_of_inner_axis(node: Node, out: Rewriter) -> Any:
    """A softmax, or its logarithm, over another axis than the last -> Permute, Softmax, Permute.

    TFLite computes both over the last axis only.
    """
    axis = _axis(node)
    inputs = node.inputs()
    if axis is None or len(inputs) != 1 or not inputs[0].is_float:
        return None
    (tensor,) = inputs
    rank = len(tensor.shape)
    axis %= rank
    if not 0 < axis < rank - 1:
        return None
    order = [number for number in range(rank) if number != axis] + [axis]
    name, last = node.layer.name, tuple(tensor.shape[number] for number in order)
    permute = out.shared_layer(node.layer, "axis_last", lambda: _L.Permute(order[1:], name=f"{name}_axis_last"))
    make = partial(_L.Activation, tf.nn.log_softmax) if symbol_of(node) in LOG_SOFTMAX else _L.Softmax
    softmax = out.shared_layer(node.layer, "softmax", lambda: make(name=f"{name}_softmax"))
    back = out.shared_layer(
        node.layer, "axis_back", lambda: _L.Permute([int(number) for number in np.argsort(order)][1:], name=name)
    )
    moved = out.call(permute, f"{node.path}_axis_last", tensor, shape=last)
    return out.call(back, node.path, out.call(softmax, f"{node.path}_softmax", moved), shape=tensor.shape)


def _axis(node: Node) -> int | None:
    """The one axis of a softmax without a mask; None for any other call."""
    if symbol_of(node) in {"nn.softmax", *LOG_SOFTMAX}:
        axis = (arguments_of(node) or {}).get("axis")
    elif type(node.layer) is _L.Softmax and node.kwargs.get("mask") is None:
        axis = node.layer.axis
    else:
        return None
    return int(axis) if isinstance(axis, int | np.integer) else None


def _operand_of_exp(tensor: Tensor) -> Tensor | None:
    node = tensor.producer
    is_exp = node is not None and (
        symbol_of(node) == "math.exp" or activation_name(node.layer) in {"exponential", "exp"}
    )
    return node.inputs()[0] if is_exp and node is not None else None


def _is_reduced(tensor: Tensor, of: Tensor, symbol: str) -> bool:
    """Whether a tensor is the sum, or the maximum, over the last axis of another one, with the axis kept."""
    node = tensor.producer
    if node is None or symbol_of(node) != symbol or node.inputs() != [of]:
        return False
    arguments = arguments_of(node) or {}
    axis = arguments.get("axis")
    is_last = axis is not None and np.size(axis) == 1 and int(np.ravel(axis)[0]) in {-1, len(of.shape) - 1}
    return is_last and bool(arguments.get("keepdims"))


def _without_maximum(tensor: Tensor) -> Tensor | None:
    """The x of x - max(x); None for any other tensor."""
    node = tensor.producer
    if node is None or not (type(node.layer) is _L.Subtract or symbol_of(node) == "math.subtract"):
        return None
    operands = node.inputs()
    if len(operands) != 2:  # noqa: PLR2004 - x and its maximum
        return None
    maximum = operands[1]
    while maximum.producer is not None and symbol_of(maximum.producer) in {"stop_gradient", "identity"}:
        (maximum,) = maximum.producer.inputs()
    return operands[0] if _is_reduced(maximum, operands[0], "math.reduce_max") else None
