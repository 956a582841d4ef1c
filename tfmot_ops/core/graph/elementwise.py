"""Finds out by tracing whether a user's function is elementwise; if it is, a lookup table can compute it in int8."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.identity import IdentityKey
from tfmot_ops.core.keras.pinned import keras

#: Operations of TensorFlow that compute each element of the result from the same element of their inputs.
_ELEMENTWISE_OPS = {
    *("Add", "AddV2", "AddN", "Sub", "Mul", "MulNoNan", "RealDiv", "Div", "DivNoNan", "FloorDiv", "FloorMod", "Neg"),
    *("Maximum", "Minimum", "ClipByValue", "Relu", "Relu6", "Elu", "Selu", "LeakyRelu", "Sigmoid", "Tanh", "Softplus"),
    *("Softsign", "Exp", "Expm1", "Log", "Log1p", "Erf", "Erfc", "Sqrt", "Rsqrt", "Square", "SquaredDifference", "Pow"),
    *("Abs", "Sign", "Reciprocal", "Inv", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Atan2", "Sinh", "Cosh"),
    *("Asinh", "Acosh", "Atanh", "Xdivy", "Xlogy", "Floor", "Ceil", "Round", "Rint", "Lgamma", "Digamma"),
    *("Select", "SelectV2", "Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual"),
    *("LogicalAnd", "LogicalOr", "LogicalNot", "IsNan", "IsInf", "IsFinite", "Cast", "ZerosLike", "OnesLike"),
    *("Identity", "IdentityN", "StopGradient", "PreventGradient", "EnsureShape", "FakeQuantWithMinMaxArgs"),
}
#: Operations around them: constants, arguments and function calls. `Shape` is allowed only where `Fill` reads it, as in
#: `tf.ones_like`.
_STRUCTURAL_OPS = {"Const", "Placeholder", "PartitionedCall", "StatefulPartitionedCall", "NoOp", "Shape", "Fill"}
_RANK = 4


def is_elementwise(function: Any) -> bool:
    """Whether a function of one tensor, or the `call` of a layer, computes each element from the same element.

    The function is traced on a float32 tensor of unknown sizes. A function is not elementwise if it reads a variable,
    draws random numbers, mixes elements or reads the shape, and it does not count as elementwise if the trace fails.
    """
    return _traced(IdentityKey(function))


@lru_cache(maxsize=512)
def _traced(key: IdentityKey) -> bool:
    """`is_elementwise`, cached by the identity of the function."""
    try:
        with tf.init_scope():
            concrete = tf.function(_call_of(key.wrapped), autograph=False).get_concrete_function(
                tf.TensorSpec([None] * _RANK, tf.float32)
            )
    except Exception:  # noqa: BLE001 - the user's function may raise anything on a tensor of unknown sizes
        return False
    result = concrete.structured_outputs
    if not tf.is_tensor(result) or result.dtype != tf.float32 or result.shape.rank != _RANK:
        return False
    captured = all(value.dtype != tf.resource and value.shape.num_elements() == 1 for value in concrete.captured_inputs)
    return captured and all(_is_elementwise_op(node) for node in _nodes(concrete.graph))


def _call_of(function: Any) -> Any:
    """A Python function for `tf.function`, which takes no callable object such as a partial."""
    return lambda value: function.call(value) if isinstance(function, keras.layers.Layer) else function(value)


def _nodes(graph: tf.Graph) -> Iterator[Any]:
    """(operation, types of the operations that read it) for a graph and the functions that it calls."""
    definition = graph.as_graph_def()
    yield from _with_readers(definition.node)
    for body in private.function_bodies(graph):
        yield from _with_readers(body.node_def)


def _with_readers(nodes: Any) -> Iterator[Any]:
    readers: dict[str, set[str]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name.lstrip("^").split(":")[0], set()).add(node.op)
    for node in nodes:
        yield node, readers.get(node.name, set())


def _is_elementwise_op(entry: tuple[Any, set[str]]) -> bool:
    node, readers = entry
    match node.op:
        case "Const":
            shape = node.attr["value"].tensor.tensor_shape
            return all(size.size == 1 for size in shape.dim) or readers <= {"Fill"}
        case "Shape":
            return readers <= {"Fill"}
        case _:
            return node.op in _ELEMENTWISE_OPS or node.op in _STRUCTURAL_OPS
