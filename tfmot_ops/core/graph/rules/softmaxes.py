"""Replaces `exp(x - max(x)) / sum(exp(x - max(x)))` by a Softmax layer, as TFLite divides in float only."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.layers import MaskedScores
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.roles import activation_name
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of, without_addend
from tfmot_ops.core.graph.rules.emitting import Emitter
from tfmot_ops.core.graph.rules.masks import masked_by_hand, masked_factor
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
#: Keras' names for the logarithm of a softmax.
LOG_SOFTMAX = {"nn.log_softmax", "math.log_softmax"}
#: Largest number that may be added to the sum: the sum is 1 or more, as the largest exponential is exp(0).
_SMALL = 1e-6


def softmax_by_hand(node: Node, out: Rewriter) -> Any:
    """exp(x - max(x)) / (sum(exp(x - max(x))) + 1e-7) over the last axis -> softmax, with its mask if x has one."""
    found = _quotient(node, out)
    if found is None or found.mask is not None or found.axis != len(found.exponent.shape) - 1:
        return None
    logits = _without_maximum(found.exponent, found.axis)
    if found.added > (0.0 if logits is None else _SMALL):
        return None
    return _softmax(node, out, found.exponent if logits is None else logits)


def guarded_softmax(node: Node, out: Rewriter) -> Any:
    """exp(x) * mask / (sum(exp(x) * mask) + 1e-7) -> softmax of the scores that count, 0 for the others.

    For QAT only: the small number is dropped. It changes a result by less than an int8 level where the largest score is
    above -7. The sum may be over another axis than the last.
    """
    found = _quotient(node, out)
    if found is None or found.added > _SMALL or found.axis == 0:
        return None
    emit, scores, axis = Emitter(node, out), found.exponent, found.axis
    scores = _without_maximum(scores, axis) or scores
    if found.mask is None:
        layer = _L.Softmax(axis, name=node.layer.name)
        softmax = Node(layer, node.path, (scores,), {}, node.outputs, node.origin)
        return softmax_of_inner_axis(softmax, out) or _softmax(node, out, scores)
    if any(size != 1 for size in scores.shape[axis + 1 :]) or found.mask.shape != scores.shape:
        return None
    # [N, T, 1] is computed as [N, T].
    flat = scores.shape[: axis + 1]
    scores, mask = emit.reshape("flat", scores, flat), found.mask
    if mask.shape != flat:
        sizes = [-1 if size is None else size for size in flat]
        mask = emit.function("mask", tf.reshape, (mask, sizes), {}, shape=flat)
    masked = emit.call("masked", lambda name: MaskedScores(name=name), [scores, mask], flat)
    weights = emit.call("softmax", lambda name: _L.Softmax(name=name), masked, flat)
    # A sample without any position that counts has zeros, not equal weights.
    whole = node.output().shape == flat
    role = "" if whole else "chosen"
    chosen = emit.function(role, tf.where, (mask, weights, 0.0), {}, shape=flat, dtype=weights.dtype)
    return chosen if whole else emit.reshape("", chosen, node.output().shape)


class _Quotient(NamedTuple):
    """A quotient e / (sum(e) + added) of exponentials e = exp(exponent) * mask.

    Attributes:
        exponent: what the exponential function reads.
        mask: which elements count, of type bool; None where all do.
        axis: of the sum, counted from 0.
        added: the largest number that is added to the sum.
    """

    exponent: Tensor
    mask: Tensor | None
    axis: int
    added: float


def _quotient(node: Node, out: Rewriter) -> _Quotient | None:
    if symbol_of(node) not in {"math.truediv", "math.divide", "math.divide_no_nan"}:
        return None
    arguments = arguments_of(node) or {}
    numerator, denominator = arguments.get("x"), arguments.get("y")
    if not isinstance(numerator, Tensor) or not isinstance(denominator, Tensor):
        return None
    total, added = without_addend(denominator, out)
    axis = _reduced_axis(total, numerator, "math.reduce_sum")
    exponent, mask = _operand_of_exp(numerator), None
    masked = masked_factor(numerator)
    if exponent is None and masked is not None:
        exponent, mask = _operand_of_exp(masked[0]), masked[1]
    if exponent is None or axis is None:
        return None
    return _Quotient(exponent, mask, axis, float(np.max(added)))


def _softmax(node: Node, out: Rewriter, logits: Tensor) -> Any:
    softmax = Node(_L.Softmax(name=node.layer.name), node.path, (logits,), {}, node.outputs, node.origin)
    return masked_by_hand(softmax, out) or out.call(softmax.layer, node.path, logits)


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


def _reduced_axis(tensor: Tensor, of: Tensor, symbol: str) -> int | None:
    """The axis, counted from 0, over which a tensor is the sum, or the maximum, of another one, with the axis kept."""
    node = tensor.producer
    if node is None or symbol_of(node) != symbol or node.inputs() != [of]:
        return None
    arguments = arguments_of(node) or {}
    axis = arguments.get("axis")
    if axis is None or np.size(axis) != 1 or not arguments.get("keepdims"):
        return None
    return int(np.ravel(axis)[0]) % len(of.shape)


def _without_maximum(tensor: Tensor, axis: int) -> Tensor | None:
    """The x of x - max(x), with the maximum over an axis; None for any other tensor."""
    node = tensor.producer
    if node is None or not (type(node.layer) is _L.Subtract or symbol_of(node) == "math.subtract"):
        return None
    operands = node.inputs()
    if len(operands) != 2:  # noqa: PLR2004 - x and its maximum
        return None
    maximum = operands[1]
    while maximum.producer is not None and symbol_of(maximum.producer) in {"stop_gradient", "identity"}:
        (maximum,) = maximum.producer.inputs()
    return operands[0] if _reduced_axis(maximum, operands[0], "math.reduce_max") == axis else None
