"""Replaces masks of attention that a model adds to the scores before a softmax by the layer `MaskedScores`.

Models add a large negative number to the scores that do not count: `softmax(scores + (1 - mask) * -1e9)`. In int8 the
range of such a sum would have one level for all scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor, map_tensors, tensors
from tfmot_ops.core.graph.layers import Affine, LearnedTensor, MaskedScores, scale_and_offset
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.roles import activation_name
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.graph.static_values import static_value
from tfmot_ops.core.graph.weight_only import weight_only_value
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import TFOpLambda
from tfmot_ops.core.keras.types import Args, Function, Layer
from tfmot_ops.core.keras.values import value_of

_L = keras.layers
#: A score at or below this is masked. Swin transformers use -100, float16 models -1e4, the others -1e9; beside other
#: scores, the softmax of each is 0 in float32.
_MASKED = -50.0
#: Functions that only move elements. A rule that replaces an additive mask by a boolean one applies them to that one.
_MOVES = {"reshape", "expand_dims", "compat.v1.squeeze", "compat.v1.transpose", "__operators__.getitem", "tile"}
_MOVES |= {"broadcast_to", "repeat", "identity", "stop_gradient"}
#: TensorFlow function -> the sign of its second operand.
_SUMS = {"math.add": 1.0, "__operators__.add": 1.0, "math.subtract": -1.0}
_MAXIMA = {_L.GlobalMaxPooling1D, _L.GlobalMaxPooling2D, _L.GlobalMaxPooling3D}
#: True where a score counts: a tensor of the graph, or a constant.
Mask = Tensor | npt.NDArray[np.bool_]


def masked_by_hand(node: Node, out: Rewriter) -> Any:
    """softmax(scores + large negative numbers), softmax(tf.where(mask, scores, -1e9)) -> MaskedScores, softmax.

    Between the sum and the softmax, the scores may be moved, as by a reshape.
    """
    if not _is_softmax(node) or len(node.inputs()) != 1:
        return None
    moves, before = _moves_before(node.inputs()[0])
    factor = _factor(before, out)
    if before is not None and factor != 1.0:
        further, before = _moves_before(before.inputs()[0])
        moves += further
    found = None if before is None else _masked_sum(before, out) or _masked_choice(before, out)
    if before is None or found is None:
        return None
    scores, mask = found
    if factor != 1.0:
        # The scores are scaled before they are masked, as the masked ones have no place in a range.
        scores = out.affine(f"{node.path}_scaled", scores, factor, 0.0)
    made = _masked(node, out, scores, mask)
    for move in reversed(moves):
        made = _moved(move, made, out, "masked")
    return out.call(_L.Softmax(name=node.layer.name), node.path, made)


def masked_maximum(node: Node, out: Rewriter) -> Any:
    """The maximum of tf.where(mask, x, -1e9), or of x + (1 - mask) * -1e9 -> the maximum of MaskedScores."""
    if type(node.layer) not in _MAXIMA and symbol_of(node) != "math.reduce_max":
        return None
    if out.original is not None and any(out.reads[tensor] > 1 for tensor in out.original.inputs()):
        return None  # probably the x - max(x) of a softmax, which `softmax_by_hand` replaces as a whole
    inputs = node.inputs()
    before = inputs[0].producer if len(inputs) == 1 else None
    found = None if before is None else _masked_sum(before, out) or _masked_choice(before, out)
    if found is None:
        return None
    made = _masked(node, out, *found)
    result = out.call(node.layer, node.path, made, shape=node.output().shape)
    if result.producer is not None:
        args, kwargs = map_tensors((node.args, node.kwargs), lambda _: made)
        result.producer.args, result.producer.kwargs = args, kwargs
    return result


def masked_product(node: Node, out: Rewriter) -> Any:
    """Values * tf.cast(mask, tf.float32) -> tf.where(mask, values, 0): TFLite casts booleans in float only."""
    is_product = type(node.layer) is _L.Multiply or symbol_of(node) == "math.multiply"
    operands = node.inputs() if is_product else []
    for values, factor in (operands, operands[::-1]) if len(operands) == 2 else ():  # noqa: PLR2004 - both orders
        known = values.is_float and values.shape == node.output().shape
        mask = boolean_source(factor, out) if known else None
        if mask is None:
            continue
        layer = TFOpLambda(tf.where, name=node.layer.name)
        result = out.call(layer, node.path, values, shape=values.shape)
        if result.producer is not None:
            result.producer.args = (mask, values, 0.0)
        return result
    return None


def masked_factor(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """(x, mask) of the tf.where(mask, x, 0) that `masked_product` makes; None for any other tensor."""
    node = tensor.producer
    if node is None or symbol_of(node) != "where" or len(node.args) != 3:  # noqa: PLR2004 - condition and two values
        return None
    mask, values, other = node.args
    is_mask = isinstance(mask, Tensor) and isinstance(values, Tensor) and not isinstance(other, Tensor)
    return (values, mask) if is_mask and np.all(np.asarray(other) == 0.0) else None


def _factor(node: Node | None, out: Rewriter) -> float:
    """The one positive number that a call multiplies all elements by; 1 for any other call."""
    if node is None or not isinstance(node.layer, Affine) or node.layer.trainable:
        return 1.0
    scale, offset = scale_and_offset(out.graph.weights_of(node.layer))
    return float(scale[0]) if np.all(scale == scale[0]) and scale[0] > 0 and not np.any(offset) else 1.0


def _moves_before(tensor: Tensor) -> tuple[list[Node], Node | None]:
    """(calls that only move elements, last one first; the call whose result they move, or None for an input)."""
    moves: list[Node] = []
    while (node := tensor.producer) is not None and symbol_of(node) in _MOVES and len(node.inputs()) == 1:
        moves.append(node)
        (tensor,) = node.inputs()
    return moves, node


def _masked(node: Node, out: Rewriter, scores: Tensor, mask: Mask) -> Tensor:
    """Emit MaskedScores before the softmax `node`."""
    name, path = f"{node.layer.name}_masked", f"{node.path}_masked"
    if isinstance(mask, np.ndarray):
        if _is_causal(mask, scores):
            return out.call(MaskedScores(causal=True, name=name), path, scores)
        layer = LearnedTensor(mask.shape, "bool", name=f"{name}_positions", trainable=False)
        mask = out.call(layer, f"{path}_positions", scores, shape=mask.shape, weights=[mask])
        mask.dtype = "bool"
    return out.call(MaskedScores(name=name), path, [scores, mask], shape=scores.shape)


def _is_causal(mask: npt.NDArray[np.bool_], scores: Tensor) -> bool:
    """Whether a mask lets position t of [..., T, S] read the positions s <= t, as MaskedScores can without the mask."""
    last = mask.shape[-2:]
    return (
        mask.size == np.prod(last) and last == scores.shape[-2:] and np.array_equal(mask.reshape(last), np.tri(*last))
    )


def _is_softmax(node: Node) -> bool:
    if symbol_of(node) == "nn.softmax":
        axis = (arguments_of(node) or {}).get("axis")
        return axis is None or int(axis) in {-1, len(node.output().shape) - 1}
    return activation_name(node.layer) == "softmax" and node.kwargs.get("mask") is None


def _masked_sum(node: Node, out: Rewriter) -> tuple[Tensor, Mask] | None:
    """(scores, mask) of a sum of scores and an additive mask, which is 0 or a large negative number."""
    operands: list[Any]
    if type(node.layer) in {_L.Add, _L.Subtract}:
        operands, sign = node.inputs(), 1.0 if type(node.layer) is _L.Add else -1.0
    elif symbol_of(node) in _SUMS:
        given = arguments_of(node) or {}
        operands, sign = [given.get("x"), given.get("y")], _SUMS[symbol_of(node)]
    else:
        return None
    if len(operands) != 2:  # noqa: PLR2004 - scores and additive mask
        return None
    for scores, additive in (operands, operands[::-1])[: 2 if sign > 0 else 1]:
        if not isinstance(scores, Tensor) or scores.shape != node.output().shape:
            continue
        mask: Mask | None = None
        if (constant := _constant(additive, out)) is not None:
            mask = _mask_of_constant(sign * constant)
        elif isinstance(additive, Tensor):
            mask = _mask_of(additive, out, sign)
        if mask is not None:
            return scores, mask
    return None


def _masked_choice(node: Node, out: Rewriter) -> tuple[Tensor, Mask] | None:
    """(scores, mask) of `tf.where(mask, scores, -1e9)`, or with scores and constant exchanged."""
    if symbol_of(node) != "where":
        return None
    arguments = arguments_of(node) or {}
    condition, chosen, other = (arguments.get(name) for name in ("condition", "x", "y"))
    constant = _constant(condition, out)
    mask: Any = condition if constant is None else constant
    if mask is None or mask.dtype != "bool":
        return None
    for scores, low, inverted in ((chosen, other, False), (other, chosen, True)):
        if isinstance(scores, Tensor) and scores.shape == node.output().shape and _is_low(low, out):
            return scores, mask if not inverted else ~mask if constant is not None else _inverted(mask, out, node)
    return None


def _constant(value: object, out: Rewriter) -> npt.NDArray[Any] | None:
    """A constant, a weight that is not trained, or what follows from known sizes; None for any other tensor."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return np.asarray(value_of(value))
    if value.producer not in out.weight_only:
        return static_value(value, out.graph)
    if any(weight.trainable for weight in _weights_before(value)):
        return None
    return np.asarray(weight_only_value(value, out.graph))


def _weights_before(tensor: Tensor) -> list[Layer]:
    """The LearnedTensors that a tensor of weights is computed from."""
    node = tensor.producer
    if node is None or isinstance(node.layer, LearnedTensor):
        return [] if node is None else [node.layer]
    return [layer for operand in node.inputs() for layer in _weights_before(operand)]


def _mask_of_constant(additive: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """True where an additive mask is 0; None if the mask has other values than 0 and large negative ones."""
    low = additive <= _MASKED
    return ~low if additive.ndim and np.any(low) and np.all(low | (additive == 0.0)) else None


def _is_low(value: object, out: Rewriter) -> bool:
    """Whether a value is a large negative number everywhere: a constant, or `tf.fill`, `tf.ones_like(x) * -1e9`."""
    constant = _constant(value, out)
    if constant is not None:
        return constant.dtype.kind == "f" and bool(np.all(constant <= _MASKED))
    _, node = _moves_before(value) if isinstance(value, Tensor) else ([], None)
    if node is None:
        return False
    if symbol_of(node) == "fill":
        return _is_low((arguments_of(node) or {}).get("value"), out)
    of = node.inputs()[0].producer if isinstance(node.layer, Affine) else None
    if of is None or symbol_of(of) not in {"ones_like", "zeros_like", "ones", "zeros"}:
        return False
    scale, offset = scale_and_offset(out.graph.weights_of(node.layer))
    return bool(np.all(offset + scale * symbol_of(of).startswith("ones") <= _MASKED))


def _mask_of(additive: Tensor, out: Rewriter, sign: float) -> Tensor | None:
    """A boolean mask, true where an additive mask is 0; None if that is not computed from a mask of 0 and 1.

    Args:
        additive: what is added to the scores.
        out: the rewriter.
        sign: -1 where the additive mask is subtracted.
    """
    moves: list[Node] = []
    scale, offset = sign, 0.0
    tensor = additive
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
    mask = _as_bool(tensor, out, additive)
    for move in reversed(moves):
        mask = _moved(move, mask, out)
    last = additive.producer
    return mask if at_one > at_zero or last is None else _inverted(mask, out, last)


def boolean_source(tensor: Tensor, out: Rewriter) -> Tensor | None:
    """The boolean tensor that a tensor is a cast of, moved as the tensor was; None for any other tensor."""
    moves, node = _moves_before(tensor)
    if node is None or symbol_of(node) != "cast" or len(node.inputs()) != 1 or node.inputs()[0].dtype != "bool":
        return None
    (mask,) = node.inputs()
    for move in reversed(moves):
        mask = _moved(move, mask, out)
    return mask


def _as_bool(tensor: Tensor, out: Rewriter, additive: Tensor) -> Tensor:
    """A tensor of zeros and ones as bool: what was cast to float, or whether the float is above 0.5."""
    path = additive.producer.path if additive.producer is not None else "mask"
    before = tensor.producer.inputs()[0] if tensor.producer is not None else tensor
    if before.dtype == "bool":
        return before
    is_float = before.is_float
    compare, bound = (tf.greater, 0.5) if is_float else (tf.not_equal, 0)
    return _function(compare, f"{path}_bool", out, (before, bound), before.shape)


def _moved(move: Node, tensor: Tensor, out: Rewriter, role: str = "of_mask") -> Tensor:
    """Emit a call that moves another tensor as `move` moves its own."""
    args, kwargs = map_tensors((move.args, move.kwargs), lambda _: tensor)
    # The same class: Keras has one of its own for slices.
    layer = type(move.layer)(move.layer.function, name=f"{move.layer.name}_{role}")
    result = out.call(layer, f"{move.path}_{role}", tensor, shape=move.output().shape)
    if result.producer is not None:
        result.producer.args, result.producer.kwargs = args, kwargs
    return result


def _inverted(mask: Tensor, out: Rewriter, node: Node) -> Tensor:
    return _function(tf.logical_not, f"{node.path}_inverted", out, (mask,), mask.shape)


def _function(function: Function, path: str, out: Rewriter, args: Args, shape: tuple[int | None, ...]) -> Tensor:
    """Emit a call of a TensorFlow function with a result of type bool."""
    layer = TFOpLambda(function, name=path.rsplit("/", 1)[-1])
    result = out.call(layer, path, tensors(args), shape=shape)
    result.dtype = "bool"
    if result.producer is not None:
        result.producer.args = args
    return result
