"""Deviations, norms and logarithms of sums of exponentials, as reductions that TFLite has in int8.

Example: `tf.math.reduce_std(x, 1)` -> mean, x - mean, its square, mean, and a table of roots. Each of these results has
a range of its own. For QAT only: the converter computes the functions themselves in float after training (PTQ).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.graph.rules.emitting import Emitter, reduced
from tfmot_ops.core.graph.steepness import MIN_ELEMENTS, ROOT_FLOOR
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers


class _Reduction(NamedTuple):
    """A call that reduces some axes of a tensor.

    Attributes:
        emit: emits the calls that replace it.
        tensor: what it reduces.
        axes: which axes, in ascending order; the batch axis is not among them.
        arguments: the call's arguments by name.
    """

    emit: Emitter
    tensor: Tensor
    axes: list[int]
    arguments: dict[str, Any]

    @property
    def elements(self) -> int | None:
        """How many elements one result is made of; None where it is unknown."""
        sizes = [self.tensor.shape[axis] for axis in self.axes]
        return None if None in sizes else math.prod(size for size in sizes if size)


def reduction(node: Node, out: Rewriter) -> Any:
    """A standard deviation, variance, norm or logarithm of a sum of exponentials, over any axes but the batch."""
    make = _FORMS.get(symbol_of(node))
    found = None if make is None else _reduction(node, out)
    if make is None or found is None:
        return None
    keeps = bool(found.arguments.get("keepdims"))
    result = make(found, "" if keeps else "kept")
    return result if keeps or result is None else found.emit.squeeze("", result, found.axes)


def _reduction(node: Node, out: Rewriter) -> _Reduction | None:
    arguments, inputs = arguments_of(node), node.inputs()
    if arguments is None or arguments.get("axis") is None or len(inputs) != 1 or not inputs[0].is_float:
        return None
    (tensor,) = inputs
    axes = sorted({int(axis) % len(tensor.shape) for axis in np.ravel(arguments["axis"])})
    return None if 0 in axes else _Reduction(Emitter(node, out), tensor, axes, arguments)


def _variance(found: _Reduction, last: str) -> Tensor:
    emit, tensor = found.emit, found.tensor
    centred = emit.merge("centred", _L.Subtract, tensor, emit.mean("mean", tensor, found.axes))
    return emit.mean(last, emit.squared("squared", centred), found.axes)


def _deviation(found: _Reduction, last: str) -> Tensor:
    variance = _variance(found, "variance")
    return found.emit.table(last, variance, ("math.maximum", ROOT_FLOOR), ("math.sqrt",))


def _length(found: _Reduction, last: str) -> Tensor | None:
    """The Euclidean norm, as a root of n * mean(x * x)."""
    if found.elements is None:
        return None
    mean = found.emit.mean("mean", found.emit.squared("squared", found.tensor), found.axes)
    scaled = ("math.multiply", float(found.elements or 1))
    return found.emit.table(last, mean, scaled, ("math.maximum", ROOT_FLOOR), ("math.sqrt",))


def _norm(found: _Reduction, last: str) -> Tensor | None:
    """`tf.norm` by its argument `ord`: the Euclidean norm, the sum or the maximum of the magnitudes."""
    emit, order = found.emit, found.arguments.get("ord", "euclidean")
    if order == "euclidean" or (order == "fro" and len(found.axes) > 1) or (order == 2 and len(found.axes) == 1):  # noqa: PLR2004
        return _length(found, last)
    reduce = {1: tf.reduce_sum, np.inf: tf.reduce_max}.get(order) if len(found.axes) == 1 else None
    if reduce is None:
        return None
    magnitudes = emit.function("magnitudes", tf.abs, (found.tensor,), {}, shape=found.tensor.shape)
    return _reduce(found, last, reduce, magnitudes)


def _log_sum_exp(found: _Reduction, last: str) -> Tensor:
    """The maximum m plus log(sum(exp(x - m))): the sum is 1 or more, where the logarithm is flat."""
    emit, tensor = found.emit, found.tensor
    maximum = _reduce(found, "maximum", tf.reduce_max, tensor)
    centred = emit.merge("centred", _L.Subtract, tensor, maximum)
    powers = emit.call("powers", lambda name: _L.Activation("exponential", name=name), centred, centred.shape)
    total = _reduce(found, "total", tf.reduce_sum, powers)
    logarithm = emit.table("logarithm", total, ("math.maximum", 1.0), ("math.log",))
    return emit.merge(last, _L.Add, maximum, logarithm)


def _reduce(found: _Reduction, part: str, function: Callable[..., Any], tensor: Tensor) -> Tensor:
    """Emit a reduction that TFLite has in int8; the axes stay with size 1."""
    kwargs = {"axis": found.axes, "keepdims": True}
    return found.emit.function(part, function, (tensor,), kwargs, shape=reduced(tensor, found.axes))


def unit_length(node: Node, out: Rewriter) -> Any:
    """`tf.linalg.normalize(x, axis=...)` -> (x / norm, norm), both from one norm."""
    found = _reduction(node, out) if symbol_of(node) == "linalg.normalize" else None
    if found is None or found.arguments.get("ord", "euclidean") != "euclidean":
        return None
    if (found.elements or 0) < MIN_ELEMENTS:
        return None
    emit = found.emit
    mean = emit.mean("mean", emit.squared("squared", found.tensor), found.axes)
    steps = ("math.multiply", float(found.elements or 1)), ("math.maximum", ROOT_FLOOR)
    inverse = emit.table("inverse", mean, *steps, ("math.rsqrt",))
    norm = emit.table("norm", mean, *steps, ("math.sqrt",))
    return [emit.merge("", _L.Multiply, found.tensor, inverse), norm]


#: TensorFlow's function -> (reduction, part that the last call is) -> the result with the reduced axes kept, or None.
_FORMS: dict[str, Callable[[_Reduction, str], Tensor | None]] = {
    "math.reduce_variance": _variance,
    "math.reduce_std": _deviation,
    "math.reduce_euclidean_norm": _length,
    **dict.fromkeys(("norm", "linalg.norm", "compat.v1.norm"), _norm),
    "math.reduce_logsumexp": _log_sum_exp,
}
