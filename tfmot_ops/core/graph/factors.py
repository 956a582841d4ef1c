"""Products and quotients of one tensor with functions of another one, regrouped: x * f(n) / g(n) as x * (f(n) / g(n)).

The functions of n then become one lookup table, and x is multiplied once. Without regrouping, x * f(n) would be rounded
to int8 first. Example: in the squash of a capsule network, x * n with n = sum(x * x) grows with the third power of x,
and rounding it lowered the SQNR by 15 dB. Called by `normalize` before QAT.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from tfmot_ops.core.graph.clusters import PointwiseClusters
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.pointwise import DIVISIONS
from tfmot_ops.core.keras.private import TFOpLambda
from tfmot_ops.core.keras.types import Function


class _Scaled(NamedTuple):
    """A result that is base * factor, or base / factor.

    Attributes:
        base: the tensor that is scaled.
        factor: a function, element by element, of `source`.
        source: the tensor that the factor is computed from.
        divides: whether the base is divided by the factor.
    """

    base: Tensor
    factor: Tensor
    source: Tensor
    divides: bool


def divide_by_tables(graph: Graph) -> None:
    """Replace x / y by x * (1 / y), in place, where 1 / y fits a table: TFLite divides in float only.

    Example: in x / (1 + n) with a sum of squares n, the table has 1 / (1 + n) for each int8 value of n.
    """
    _regroup(graph)
    clusters = PointwiseClusters(graph, for_qat=True)
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _as_product(node, clusters) or [node]
    graph.nodes = nodes


def _regroup(graph: Graph) -> None:
    """Regroup products and quotients in place: each with a factor that can be combined with the factor before it."""
    clusters = PointwiseClusters(graph, for_qat=True)
    readers, results = graph.readers(), set(tensors(graph.outputs))
    known: dict[Tensor, _Scaled] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        scaled = _scaled(node, clusters)
        before = known.get(scaled.base) if scaled is not None else None
        is_inner = scaled is not None and len(readers[scaled.base]) == 1 and scaled.base not in results
        call = _combined(node, before, scaled, clusters) if scaled and before and is_inner else None
        if scaled is None or before is None or call is None:
            nodes.append(node)
        else:
            scaled = scaled._replace(base=before.base, factor=call.output())
            apply = tf.divide if scaled.divides else tf.multiply
            nodes += [call, _call(apply, node.path, (scaled.base, scaled.factor), node)]
        if scaled is not None:
            known[node.output()] = scaled
    graph.nodes = nodes


def _combined(node: Node, before: _Scaled, after: _Scaled, clusters: PointwiseClusters) -> Node | None:
    """The call that makes one factor of two; None if a table of it is too coarse, or their source tensors differ."""
    same = before.source is after.source and before.factor.shape == after.factor.shape
    if not same or not (before.divides or after.divides):
        return None
    # (x / f) / g = x / (f * g); (x * f) / g = x / (g / f); (x / f) * g = x * (g / f).
    function = tf.multiply if before.divides == after.divides else tf.divide
    call = _call(function, f"{node.path}_factor", (after.factor, before.factor), node, after.factor)
    clusters.sources[call] = after.source
    steps = clusters.steps(call)
    if clusters.fits_table(call, _inverted(steps) if after.divides else steps):
        return call
    del clusters.sources[call]
    return None


def _inverted(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*steps, {"function": "math.reciprocal", "args": [{"value": len(steps)}], "kwargs": {}}]


def _scaled(node: Node, clusters: PointwiseClusters) -> _Scaled | None:
    """A product or quotient of a tensor and a function of another tensor; None for any other call."""
    symbol = getattr(node.layer, "symbol", None)
    operands: Any = node.args if symbol in {"math.multiply", *DIVISIONS} else ()
    if len(operands) != 2 or node in clusters.sources or node.inputs() != list(operands):  # noqa: PLR2004 - a pair
        return None
    base, factor = operands
    if symbol == "math.multiply" and base.shape != node.output().shape:
        base, factor = factor, base
    if base.shape != node.output().shape or not base.is_float:
        return None
    return _Scaled(base, factor, clusters.origin(factor), symbol in DIVISIONS)


def _as_product(node: Node, clusters: PointwiseClusters) -> list[Node]:
    """The calls that compute a quotient of two tensors as a product; none where its divisor has to stay in float."""
    operands: Any = node.args if getattr(node.layer, "symbol", None) in DIVISIONS else ()
    if len(operands) != 2 or node in clusters.sources:  # noqa: PLR2004 - dividend and divisor
        return []
    dividend, divisor = operands
    if not isinstance(divisor, Tensor) or not isinstance(dividend, Tensor) or not dividend.is_float:
        return []
    before = divisor.producer
    if before is None or clusters.source_of(before) is None:
        return []
    if not clusters.fits_table(before, _inverted(clusters.steps(before))):
        return []
    call = _call(tf.math.reciprocal, f"{node.path}_inverse", (divisor,), node, divisor)
    return [call, _call(tf.math.multiply, node.path, (dividend, call.output()), node)]


def _call(function: Function, path: str, args: tuple[Tensor, ...], replaced: Node, like: Tensor | None = None) -> Node:
    """A call that computes a part of the call `replaced`: its result, or a new tensor of the shape of `like`."""
    name = replaced.layer.name if like is None else path.rsplit("/", 1)[-1]
    result = replaced.output() if like is None else Tensor(like.shape, like.dtype)
    result.producer = Node(TFOpLambda(function, name=name), path, args, {}, result, replaced.origin)
    return result.producer
