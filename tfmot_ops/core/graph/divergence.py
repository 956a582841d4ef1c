"""Functions that diverge at 0, such as a logarithm: their operand stays in float, as int8 may round it to 0.

Models guard a diverging function by a small constant: `log(maximum(x, 1e-5))`, `n / (d + 1e-7)`. Rounded to one of 256
levels the constant becomes 0, and the result NaN or infinite. So the calls that prepare the operand (here `maximum`
and `+`) are computed in float.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.layers import Affine, AxisMean, Shift
from tfmot_ops.core.graph.roles import activation_name, spec_of
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer

_L = keras.layers
#: TensorFlow function -> position of the operand at whose 0 the function's value or derivative diverges.
_DIVERGING_OPERAND = {
    **dict.fromkeys(("math.log", "math.log1p", "math.reciprocal", "math.reciprocal_no_nan", "math.rsqrt"), 0),
    **dict.fromkeys(("math.sqrt", "math.pow", "math.digamma", "math.lgamma"), 0),
    **dict.fromkeys(("math.truediv", "math.divide", "math.divide_no_nan", "math.xdivy", "math.xlogy"), 1),
}
_DIVERGING_ACTIVATIONS = {"log", "log1p", "reciprocal", "rsqrt", "sqrt"}
#: Operations that prepare such an operand: clipping, sums, squares, reshapes. No operation with a kernel is among them.
_PREPARES = (
    *(Affine, AxisMean, Shift, _L.Maximum, _L.Minimum, _L.Reshape, _L.Flatten, _L.Permute, _L.RepeatVector),
    *("math.maximum", "math.minimum", "clip_by_value", "math.add", "__operators__.add", "math.subtract"),
    *("math.reduce_sum", "math.reduce_mean", "math.reduce_max", "math.reduce_min", "math.square", "math.abs"),
    *("math.reduce_std", "math.reduce_variance", "math.reduce_euclidean_norm", "norm", "linalg.norm"),
    *("math.exp", "math.multiply", "reshape", "expand_dims", "identity", "stop_gradient", "compat.v1.squeeze"),
    *("compat.v1.transpose", "__operators__.getitem", "broadcast_to", "tile", "repeat"),
)


def diverges_at_zero(layer: Layer) -> bool:
    """Whether the function of this layer (the inner one, without wrappers) diverges where an operand is 0."""
    return getattr(layer, "symbol", None) in _DIVERGING_OPERAND or activation_name(layer) in _DIVERGING_ACTIVATIONS


def calls_before_divergence(graph: Graph) -> set[Node]:
    """The calls that prepare the operand of a diverging function, and therefore have to stay in float.

    Args:
        graph: normalised or quantised.
    """
    found: set[Node] = set()
    to_visit = [tensor for node in graph.nodes for tensor in _diverging_operand(node)]
    while to_visit:
        node = to_visit.pop().producer
        if node is None or node in found or not _prepares(node):
            continue
        found.add(node)
        to_visit += node.inputs()
    return found


def diverges_on_result_of(node: Node, float_calls: AbstractSet[Node]) -> bool:
    """Whether a call diverges where the result of one of the calls `float_calls` is 0."""
    return any(tensor.producer in float_calls for tensor in _diverging_operand(node))


def _inner(node: Node) -> Any:
    return getattr(node.layer, "layer", node.layer)


def _diverging_operand(node: Node) -> list[Tensor]:
    """The tensors at whose 0 a call diverges; empty for a call that does not diverge."""
    layer = _inner(node)
    if not diverges_at_zero(layer):
        return []
    place = _DIVERGING_OPERAND.get(getattr(layer, "symbol", ""), 0)
    given = [*node.args, *(value for name, value in node.kwargs.items() if name != "name")]
    # x ** p with p >= 1 does not diverge at 0.
    power = given[1] if getattr(layer, "symbol", None) == "math.pow" and len(given) > 1 else None
    if power is not None and not isinstance(power, Tensor) and np.all(np.asarray(power) >= 1):
        return []
    return tensors(given[place]) if len(given) > place else []


def _prepares(node: Node) -> bool:
    layer = _inner(node)
    if type(layer) is _L.Multiply:
        # x * x only: a product of two different tensors stays int8, with a range of its own.
        return len(set(node.inputs())) == 1
    # A function that TFLite looks up in a table is computed in float before a diverging one: softplus comes close to 0.
    return getattr(layer, "symbol", type(layer)) in _PREPARES or diverges_at_zero(layer) or spec_of(layer).table
