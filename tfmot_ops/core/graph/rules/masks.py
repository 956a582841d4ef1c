"""Replaces masks of attention that a model adds to the scores before a softmax by the layer `MaskedScores`.

Models add a large negative number to the scores that do not count: `softmax(scores + (1 - mask) * -1e9)`. In int8 the
range of such a sum would have one level for all scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor, map_tensors, tensors
from tfmot_ops.core.graph.layers import Affine, MaskedScores, scale_and_offset
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.roles import activation_name
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import TFOpLambda
from tfmot_ops.core.keras.types import Args, Function, Layer

_L = keras.layers
#: A score at or below this is masked: float16 models use -1e4, the others -1e9. Scores themselves are far smaller.
_MASKED = -1e3
#: Functions that only move elements. A rule that replaces the adder by the mask applies them to the mask instead.
_MOVES = {"reshape", "expand_dims", "compat.v1.squeeze", "compat.v1.transpose", "__operators__.getitem", "tile"}
_MOVES |= {"broadcast_to", "repeat", "identity", "stop_gradient"}


def masked_by_hand(node: Node, out: Rewriter) -> Any:
    """softmax(scores + large negative numbers), softmax(tf.where(mask, scores, -1e9)) -> MaskedScores, softmax."""
    if not _is_softmax(node) or len(node.inputs()) != 1:
        return None
    before = node.inputs()[0].producer
    found = None if before is None else _masked_sum(before, out) or _masked_choice(before, out)
    if found is None:
        return None
    scores, mask = found
    name = f"{node.layer.name}_masked"
    made = out.call(MaskedScores(name=name), f"{node.path}_masked", [scores, mask], shape=node.inputs()[0].shape)
    return out.call(_L.Softmax(name=node.layer.name), node.path, made)


def _is_softmax(node: Node) -> bool:
    if symbol_of(node) == "nn.softmax":
        arguments = arguments_of(node) or {}
        return arguments.get("axis", -1) in {None, -1}
    return activation_name(node.layer) == "softmax" and node.kwargs.get("mask") is None


def _masked_sum(node: Node, out: Rewriter) -> tuple[Tensor, Tensor] | None:
    """(scores, mask) of an Add of scores and an adder that is 0 or a large negative number."""
    parts = node.inputs()
    if type(node.layer) not in {_L.Add, _L.Subtract} or len(parts) != 2:  # noqa: PLR2004 - scores and adder
        return None
    sign = 1.0 if type(node.layer) is _L.Add else -1.0
    for scores, adder in (parts, parts[::-1])[: 2 if sign > 0 else 1]:
        if scores.shape == node.output().shape and (mask := _mask_of(adder, out, sign)) is not None:
            return scores, mask
    return None


def _masked_choice(node: Node, out: Rewriter) -> tuple[Tensor, Tensor] | None:
    """(scores, mask) of `tf.where(mask, scores, -1e9)`, or with scores and constant exchanged."""
    if symbol_of(node) != "where":
        return None
    arguments = arguments_of(node) or {}
    mask, chosen, other = (arguments.get(name) for name in ("condition", "x", "y"))
    if not isinstance(mask, Tensor) or mask.dtype != "bool":
        return None
    for scores, constant, inverted in ((chosen, other, False), (other, chosen, True)):
        is_low = not isinstance(constant, Tensor | None) and np.size(constant) == 1 and np.all(constant <= _MASKED)
        if isinstance(scores, Tensor) and scores.shape == node.output().shape and is_low:
            return scores, _inverted(mask, out, node) if inverted else mask
    return None


def _mask_of(adder: Tensor, out: Rewriter, sign: float) -> Tensor | None:
    """A mask of type bool, true where the adder is 0; None if the adder is not computed from a mask of 0 and 1.

    Args:
        adder: what is added to the scores.
        out: the rewriter.
        sign: -1 where the adder is subtracted.
    """
    moves: list[Node] = []
    scale, offset = sign, 0.0
    tensor = adder
    while (node := tensor.producer) is not None and symbol_of(node) != "cast":
        if isinstance(node.layer, Affine):
            more = [np.unique(values) for values in scale_and_offset(out.graph.weights_of(node.layer))]
            if any(values.size > 1 for values in more):
                return None
            scale, offset = scale * float(more[0][0]), scale * float(more[1][0]) + offset
        elif symbol_of(node) in _MOVES and len(node.inputs()) == 1:
            moves.append(node)
        else:
            return None
        (tensor,) = node.inputs()
    at_zero, at_one = offset, scale + offset
    if min(at_zero, at_one) > _MASKED or abs(max(at_zero, at_one)) > 1.0:
        return None
    mask = _as_bool(tensor, out, adder)
    for move in reversed(moves):
        mask = _moved(move, mask, out)
    last = adder.producer
    return mask if at_one > at_zero or last is None else _inverted(mask, out, last)


def _as_bool(tensor: Tensor, out: Rewriter, adder: Tensor) -> Tensor:
    """A tensor of zeros and ones as bool: what was cast to float, or whether the float is above 0.5."""
    path = adder.producer.path if adder.producer is not None else "mask"
    before = tensor.producer.inputs()[0] if tensor.producer is not None else tensor
    if before.dtype == "bool":
        return before
    is_float = before.is_float
    compare, bound = (tf.greater, 0.5) if is_float else (tf.not_equal, 0)
    return _function(compare, f"{path}_bool", out, (before, bound), before.shape)


def _moved(move: Node, mask: Tensor, out: Rewriter) -> Tensor:
    args, kwargs = map_tensors((move.args, move.kwargs), lambda _: mask)
    # The same class: Keras has one of its own for slices.
    layer = type(move.layer)(move.layer.function, name=f"{move.layer.name}_of_mask")
    result = _call(layer, f"{move.path}_of_mask", out, args, move.output().shape)
    if result.producer is not None:
        result.producer.kwargs = kwargs
    return result


def _inverted(mask: Tensor, out: Rewriter, node: Node) -> Tensor:
    return _function(tf.logical_not, f"{node.path}_inverted", out, (mask,), mask.shape)


def _function(function: Function, path: str, out: Rewriter, args: Args, shape: tuple[int | None, ...]) -> Tensor:
    return _call(TFOpLambda(function, name=path.rsplit("/", 1)[-1]), path, out, args, shape)


def _call(layer: Layer, path: str, out: Rewriter, args: Args, shape: tuple[int | None, ...]) -> Tensor:
    """Emit a call with a result of type bool."""
    result = out.call(layer, path, tensors(args), shape=shape)
    result.dtype = "bool"
    if result.producer is not None:
        result.producer.args = args
    return result
