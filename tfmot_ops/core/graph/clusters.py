"""Clusters of calls that together compute a function of one number: each becomes one `Pointwise` layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.of_weights import weight_only_calls
from tfmot_ops.core.graph.pointwise import (
    DIVISIONS,
    ELEMENTWISE_FUNCTIONS,
    INT8,
    INT8_BY_DEFAULT,
    Pointwise,
    may_diverge,
)
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.signs import is_never_negative
from tfmot_ops.core.graph.steepness import (
    ROOT_FLOOR,
    has_bounded_slope,
    is_accurate_on_rounded_inputs,
    is_inverse_of_root,
)
from tfmot_ops.core.keras.pinned import keras

#: Comparisons, logic, and casts of their results.
_BOOLEAN_FUNCTIONS = {
    *("math.greater", "math.greater_equal", "math.less", "math.less_equal", "__operators__.eq", "__operators__.ne"),
    *("math.equal", "math.not_equal", "math.logical_and", "math.logical_or", "math.logical_not", "math.logical_xor"),
    *("cast", "identity", "stop_gradient"),
}
#: Functions between truth values and the large number that they are multiplied by.
_MASK_FUNCTIONS = {
    *("math.subtract", "math.add", "__operators__.add", "math.multiply", "math.negative", "__operators__.getitem"),
    *("reshape", "expand_dims", "compat.v1.transpose", "compat.v1.squeeze", "tile", "broadcast_to"),
}
#: A number that only masks are multiplied by.
_MASK_FACTOR = 1e3
#: These are fused into the convolution before them, which a table could not be.
_FUSED_INTO_CONVOLUTION = {"nn.relu", "nn.relu6"}
#: Arguments of a choice: condition, and two values.
_SELECT_OPERANDS = 3


def fuse_pointwise(graph: Graph, *, for_qat: bool = False) -> Graph:
    """Replace calls that together compute a function of one number by one `Pointwise` layer.

    Only where a call has no int8 form of its own: TFLite fuses a ReLU or a scale into a convolution, which is better
    than a table. Calls that other calls read too stay beside the new layer.

    Args:
        graph: with the custom layers opened, before the rules of normalisation.
        for_qat: whether QAT follows, which trains with the roundings of int8. Then roots and powers of tensors that are
            never negative become tables too.
    """
    clusters = PointwiseClusters(graph, for_qat=for_qat)
    readers = graph.readers()
    results = set(tensors(graph.outputs))
    constant = weight_only_calls(graph)
    fused: dict[Node, Node] = {}
    for node in graph.nodes:
        # The rules of normalisation look for masks, and for what they are made of.
        if node in constant or _is_mask(node, clusters, readers):
            continue
        if node not in clusters.sources or not node.output().is_float:
            continue
        is_read = any(clusters.source_of(reader) is not clusters.sources[node] for reader in readers[node.output()])
        if (is_read or node.output() in results) and clusters.needs_table(node):
            fused[node] = clusters.fused_call(node)
    # Only now, as several new layers may contain one call.
    for call in fused.values():
        call.output().producer = call
    graph.nodes = [fused.get(node, node) for node in graph.nodes]
    return graph.without_dead_calls()


def _is_mask(node: Node, clusters: PointwiseClusters, readers: Mapping[Tensor, list[Node]]) -> bool:
    """Whether a call gives truth values as floats, which are multiplied by a large number, as in an attention mask."""
    calls = clusters.calls(node) if node in clusters.sources else []
    if not calls or any(call.layer.symbol not in _BOOLEAN_FUNCTIONS | _MASK_FUNCTIONS for call in calls):
        return False
    if not any(call.layer.symbol in _BOOLEAN_FUNCTIONS for call in calls):
        return False
    waiting = [call for call in calls if call.layer.symbol in _MASK_FUNCTIONS] + readers.get(node.output(), [])
    while waiting:
        reader = waiting.pop()
        if getattr(reader.layer, "symbol", None) in _MASK_FUNCTIONS:
            leaves = tf.nest.flatten((reader.args, reader.kwargs))
            if any(_is_mask_factor(leaf) for leaf in leaves):
                return True
            waiting += [further for tensor in tensors(reader.outputs) for further in readers.get(tensor, [])]
    return False


def _is_mask_factor(leaf: Any) -> bool:
    """Whether an argument is a large number; `10000.0 * x` records the number as a scalar tensor."""
    if leaf is None or isinstance(leaf, Tensor | str | tf.DType) or not _is_plain(leaf):
        return False
    return bool(abs(float(leaf)) >= _MASK_FACTOR)


def record_pointwise(function: Any, name: str) -> Pointwise | None:
    """A layer that calls what a user's function calls, so that a saved model does not need the function.

    Args:
        function: takes a tensor.
        name: of the layer.

    Returns:
        None where Keras cannot record the function's calls on a symbolic tensor, as with a gradient of its own, where
        they are no functions of single elements, or where one may diverge.
    """
    inputs = keras.Input((None,), dtype="float32")
    try:
        graph = read_graph(keras.Model(inputs, function(inputs)))
    except Exception:  # noqa: BLE001 - the user's function may raise anything on a symbolic tensor
        return None
    result = graph.outputs.producer if isinstance(graph.outputs, Tensor) else None
    clusters = PointwiseClusters(graph, for_qat=False)
    if result is None or clusters.source_of(result) is not graph.inputs()[0] or not result.output().is_float:
        return None
    layer = Pointwise(clusters.steps(result), name=name)
    return None if layer.diverges else layer


class PointwiseClusters:
    """The calls of functions of single elements, with the one tensor that each depends on."""

    def __init__(self, graph: Graph, *, for_qat: bool) -> None:
        self._for_qat = for_qat
        #: Call -> the tensor that its result is a function of, element by element.
        self.sources: dict[Node, Tensor] = {}
        for node in graph.nodes:
            source = self._source(node) if _is_elementwise_call(node) else None
            if source is not None and source.dtype == "float32":
                self.sources[node] = source

    def source_of(self, node: Node) -> Tensor | None:
        """The tensor that a call's result is a function of; None for any other call."""
        return self.sources.get(node)

    def origin(self, tensor: Tensor) -> Tensor:
        """The tensor that another one is a function of, element by element; the tensor itself where there is none."""
        return tensor if tensor.producer is None else self.sources.get(tensor.producer, tensor)

    def _source(self, node: Node) -> Tensor | None:
        found = {self.origin(tensor) for tensor in node.inputs()}
        if len(found) != 1:
            return None
        (source,) = found
        is_direct = source in node.inputs()
        return (
            None
            if is_direct and node.layer.symbol in _FUSED_INTO_CONVOLUTION and source.producer is not None
            else source
        )

    def calls(self, node: Node) -> list[Node]:
        """The calls that a call's result is computed by from its source, in order, the call itself last."""
        found: dict[Node, None] = {}

        def visit(call: Node) -> None:
            for tensor in call.inputs():
                if tensor is not self.sources[node] and tensor.producer is not None and tensor.producer not in found:
                    visit(tensor.producer)
            found[call] = None

        visit(node)
        return list(found)

    def needs_table(self, node: Node) -> bool:
        """Whether a call's result needs a function that has no int8 form, or an exponential that is not the last call.

        An exponential grows so fast that its int8 values serve further calls badly: in `where(x > 0, x, exp(x) - 1)`
        they had 24 dB.
        """
        calls = self.calls(node)
        needs = any(not _has_int8_form(call) for call in calls)
        inner_exponential = any(call.layer.symbol == "math.exp" for call in calls[:-1])
        if not (needs or inner_exponential):
            return False
        return not self._diverges(node) or self.fits_table(node, self.steps(node))

    def _diverges(self, node: Node) -> bool:
        return any(may_diverge(call.layer.symbol, call.args) for call in self.calls(node))

    def fits_table(self, node: Node, steps: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a function that may diverge is no worse as a table of 256 entries than in float.

        Args:
            node: the call whose source the function reads.
            steps: the function.
        """
        source = self.sources[node]
        if has_bounded_slope(steps):
            return True
        if not self._for_qat:
            return False
        lowest = 0.0 if is_never_negative(source) else -1.0
        is_inverse = not lowest and is_inverse_of_root(source, steps)
        return (
            is_inverse or has_bounded_slope(steps, lowest=lowest) or is_accurate_on_rounded_inputs(steps, lowest=lowest)
        )

    def fused_call(self, node: Node) -> Node:
        """One call that computes what a call and those before it compute from its source."""
        layer = Pointwise(self.steps(node), name=node.layer.name)
        return Node(layer, node.path, (self.sources[node],), {}, node.outputs, node.origin)

    def steps(self, node: Node) -> list[dict[str, Any]]:
        """What a call and those before it compute from its source, as `Pointwise` takes it."""
        source = self.sources[node]
        # QAT rounds small values to 0, where the slope of a root is infinite.
        guarded = self._for_qat and self._diverges(node) and is_never_negative(source)
        steps = [{"function": "math.maximum", "args": [{"value": 0}, ROOT_FLOOR], "kwargs": {}}] if guarded else []
        places: dict[Tensor, int] = {source: len(steps)}
        for call in self.calls(node):
            args = [_encoded(arg, places) for arg in call.args]
            kwargs = {name: _encoded(arg, places) for name, arg in call.kwargs.items() if name != "name"}
            steps.append({"function": call.layer.symbol, "args": args, "kwargs": kwargs})
            places[call.output()] = len(steps)
        return steps


def _is_elementwise_call(node: Node) -> bool:
    """Whether a call applies a function of single elements to tensors of one shape and to plain numbers."""
    if getattr(node.layer, "symbol", None) not in ELEMENTWISE_FUNCTIONS or not isinstance(node.outputs, Tensor):
        return False
    if node.layer.symbol in {"where", "compat.v1.where"} and len(node.args) + len(node.kwargs) < _SELECT_OPERANDS:
        return False  # the indices of what is true
    if node.layer.symbol in {*DIVISIONS, "math.pow"} and {"x", "y"} & node.kwargs.keys():
        return False  # operands by name; `may_diverge` reads them by position
    shape = node.output().shape
    if not node.inputs() or any(tensor.shape != shape for tensor in node.inputs()):
        return False
    return all(_is_plain(leaf) for leaf in tf.nest.flatten((node.args, node.kwargs)))


def _is_plain(leaf: Any) -> bool:
    if leaf is None or isinstance(leaf, Tensor | bool | int | float | str | tf.DType | np.number | np.bool_):
        return True
    # A variable is trained, so that no table of today's values can replace it.
    return not isinstance(leaf, tf.Variable) and tf.is_tensor(leaf) and hasattr(leaf, "numpy") and leaf.shape.rank == 0


def _encoded(argument: Any, places: Mapping[Tensor, int]) -> Any:
    """An argument as the JSON value that `Pointwise` takes."""
    if isinstance(argument, list | tuple):
        return [_encoded(part, places) for part in argument]
    if isinstance(argument, Tensor):
        return {"value": places[argument]}
    if isinstance(argument, tf.DType):
        return {"dtype": argument.name}
    if tf.is_tensor(argument) or isinstance(argument, np.generic):
        array = np.asarray(argument)
        return {"number": array.item(), "dtype": array.dtype.name}
    return argument


def _has_int8_form(node: Node) -> bool:
    symbol = node.layer.symbol
    if symbol in DIVISIONS:
        return len(node.args) > 1 and not tensors(node.args[1])
    if symbol == "cast" and [tensor.dtype for tensor in node.inputs()] == [node.output().dtype]:
        return True  # a rule of normalisation leaves it out
    constants = [leaf for leaf in tf.nest.flatten((node.args[1:], node.kwargs)) if leaf is not None]
    return symbol in INT8 or (symbol in INT8_BY_DEFAULT and not constants)
