"""Inputs that hold integers, such as the token indices of an Embedding, but are declared as float32.

Keras' default dtype is float32, and an Embedding casts its input to integers. Quantised to int8, such an input would
have only 256 levels over its range, and most indices would become other indices. So it gets the dtype int32, which no
quantiser rounds; or, where it is also used as a real number, it stays float without a quantiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.layers import Affine, Shift
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.wrapped import inner_layer

_L = keras.layers
#: Reason in the report for a call that stays in float because its values are integers.
INTEGER_VALUES_REASON = "its values are used as integers too, which rounding to int8 would change"
#: Calls that only move the elements of their one tensor.
_MOVING_FUNCTIONS = {
    *("reshape", "expand_dims", "compat.v1.squeeze", "compat.v1.transpose", "__operators__.getitem", "slice"),
    *("strided_slice", "split", "unstack", "identity", "stop_gradient", "tile", "repeat", "broadcast_to"),
}
_MOVING_LAYERS = (_L.Reshape, _L.Flatten, _L.Permute, _L.RepeatVector, _L.Cropping1D, _L.Identity)
#: Elementwise layers that may stand between an input and its cast to integers, as in `tf.cast(x * 10, tf.int32)`.
_ELEMENTWISE_LAYERS = (Affine, Shift, Pointwise)
_COMPARISONS = {"math.not_equal", "math.equal", "__operators__.ne", "__operators__.eq"}


def with_integer_inputs(graph: Graph) -> Graph:
    """Give the dtype int32 to the float inputs that are used as integers only; changes the graph's tensors in place.

    Args:
        graph: after `inline_custom_layers`.
    """
    readers = graph.readers()
    results = set(tensors(graph.outputs))
    for source in graph.inputs():
        found = _tensors_with_same_elements(source, readers) if source.is_float else []
        reading = {node for tensor in found for node in readers.get(tensor, []) if not _is_move(node)}
        if any(reads_integer_values(node) for node in reading) and results.isdisjoint(found):
            only = all(reads_integer_values(node) or _compares(node) for node in reading)
            for tensor in found if only else []:
                tensor.dtype = "int32"
    return graph


def integer_valued_tensors(graph: Graph) -> set[Tensor]:
    """The float inputs that are used as integers, and the elementwise results between an input and that use.

    These tensors get no quantiser, as it would change the integers. A tensor that other calls compute does get one,
    also before a cast to integers.

    Args:
        graph: normalised or quantised.
    """
    found: set[Tensor] = set()
    for node in graph.nodes:
        for tensor in node.inputs() if reads_integer_values(node) else []:
            chain = _chain_before(tensor)
            if chain[-1].producer is None and tensor.is_float:
                found.update(chain)
    return found


def uses_integer_values(node: Node, exact: AbstractSet[Tensor]) -> bool:
    """Whether a call reads or returns a tensor of `exact`; False for the lookup or cast that uses it as integers.

    Args:
        node: the call.
        exact: from `integer_valued_tensors`.
    """
    return not exact.isdisjoint((*node.inputs(), *tensors(node.outputs))) and not reads_integer_values(node)


def _chain_before(tensor: Tensor) -> list[Tensor]:
    """The tensor and those before it, while each has the elements of the one before, moved or changed elementwise."""
    chain = [tensor]
    while (node := chain[-1].producer) is not None and (_is_move(node) or type(node.layer) in _ELEMENTWISE_LAYERS):
        chain += node.inputs()[:1]
    return chain


def reads_integer_values(node: Node) -> bool:
    """Whether a call uses its operand as integers: an Embedding, or a cast to an integer type."""
    layer = inner_layer(node.layer)
    if getattr(layer, "symbol", None) == "cast":
        return all(tf.as_dtype(tensor.dtype).is_integer for tensor in tensors(node.outputs))
    return isinstance(layer, _L.Embedding | _L.CategoryEncoding)


def _is_move(node: Node) -> bool:
    is_moving = getattr(node.layer, "symbol", None) in _MOVING_FUNCTIONS or type(node.layer) in _MOVING_LAYERS
    return is_moving and len(node.inputs()) == 1


def _tensors_with_same_elements(tensor: Tensor, readers: Mapping[Tensor, list[Node]]) -> list[Tensor]:
    """A tensor, and the tensors that hold the same elements in another order or shape."""
    found = [tensor]
    for current in found:
        moves = [node for node in readers.get(current, []) if _is_move(node)]
        found += [result for node in dict.fromkeys(moves) for result in tensors(node.outputs)]
    return found


def _compares(node: Node) -> bool:
    """Whether a call compares a tensor with an integer, as masks do."""
    leaves = tf.nest.flatten((node.args, node.kwargs))
    numbers = [leaf for leaf in leaves if isinstance(leaf, int | np.integer) and not isinstance(leaf, bool)]
    others = [leaf for leaf in leaves if leaf is not None and not isinstance(leaf, Tensor | str)]
    return getattr(node.layer, "symbol", None) in _COMPARISONS and len(numbers) == len(others) == 1
