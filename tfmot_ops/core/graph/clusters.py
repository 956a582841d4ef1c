"""Fuses calls that together compute one elementwise function of one tensor into a single `Pointwise` layer.

A cluster is a set of calls between a source tensor and a result, such that each element of the result depends on the
same element of the source only. Export writes a `Pointwise` layer as a lookup table with 256 int8 entries. Called by
`normalize`. These clusters of calls are not the clusters of equal weights that `quantization.keep_clusters` is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
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
from tfmot_ops.core.graph.weight_only import weight_only_calls
from tfmot_ops.core.keras.pinned import keras

#: Comparisons, logical functions, and casts of their results.
_BOOLEAN_FUNCTIONS = {
    *("math.greater", "math.greater_equal", "math.less", "math.less_equal", "__operators__.eq", "__operators__.ne"),
    *("math.equal", "math.not_equal", "math.logical_and", "math.logical_or", "math.logical_not", "math.logical_xor"),
    *("cast", "identity", "stop_gradient"),
}
#: Functions that may stand between a boolean mask and the large number that the mask is multiplied by.
_MASK_FUNCTIONS = {
    *("math.subtract", "math.add", "__operators__.add", "math.multiply", "math.negative", "__operators__.getitem"),
    *("reshape", "expand_dims", "compat.v1.transpose", "compat.v1.squeeze", "tile", "broadcast_to"),
}
#: Smallest magnitude of a factor that is taken for the large number of an attention mask (-1e4 or -1e9 in most models).
_MASK_FACTOR = 1e3
#: Functions that TFLite fuses into the convolution before them; a lookup table cannot be fused.
_FUSED_INTO_CONVOLUTION = {"nn.relu", "nn.relu6"}
#: Number of arguments with which `tf.where` selects: a condition and two values. With fewer it returns indices.
_SELECT_OPERANDS = 3


def fuse_pointwise(graph: Graph, *, for_qat: bool = False) -> Graph:
    """Replace calls that together compute one elementwise function by one `Pointwise` layer.

    Clusters whose calls all have an int8 form stay as they are: TFLite fuses a ReLU or a scale into a convolution,
    which is better than a table. A call whose result is read outside of its cluster stays beside the new layer.

    Args:
        graph: after `inline_custom_layers`, before the rules of normalisation.
        for_qat: whether QAT follows, so that the model is trained with tensors rounded to int8. Then roots and powers
            of tensors that are never negative become tables too.
    """
    clusters = PointwiseClusters(graph, for_qat=for_qat)
    readers = graph.readers()
    results = set(tensors(graph.outputs))
    constant = weight_only_calls(graph)
    fused: dict[Node, Node] = {}
    for node in graph.nodes:
        # Attention masks are not fused: a rule of normalisation (`rules.masks`) recognises them by their calls.
        if node in constant or _is_mask(node, clusters, readers):
            continue
        if node not in clusters.sources or not node.output().is_float:
            continue
        is_read = any(clusters.source_of(reader) is not clusters.sources[node] for reader in readers[node.output()])
        if (is_read or node.output() in results) and clusters.needs_table(node):
            fused[node] = clusters.fused_call(node)
    # Producers are set after the loop, as one call may be a part of several clusters.
    for call in fused.values():
        call.output().producer = call
    graph.nodes = [fused.get(node, node) for node in graph.nodes]
    return graph.without_dead_calls()


def _is_mask(node: Node, clusters: PointwiseClusters, readers: Mapping[Tensor, list[Node]]) -> bool:
    """Whether a call turns booleans into floats that are multiplied by a large number, as an attention mask does."""
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
    """Record a user's activation function as a layer, so that a saved model can be loaded without the function.

    Args:
        function: takes a tensor.
        name: of the layer.

    Returns:
        The layer; None if Keras cannot record the function on a symbolic tensor (one with `tf.custom_gradient`, for
        example), if the function is not elementwise, or if it may diverge.
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
    """The elementwise calls of a graph, with the one tensor (the source) that the result of each depends on."""

    def __init__(self, graph: Graph, *, for_qat: bool) -> None:
        self._for_qat = for_qat
        #: Elementwise call -> its source: the tensor of which its result is an elementwise function.
        self.sources: dict[Node, Tensor] = {}
        for node in graph.nodes:
            source = self._source(node) if _is_elementwise_call(node) else None
            if source is not None and source.dtype == "float32":
                self.sources[node] = source

    def source_of(self, node: Node) -> Tensor | None:
        """The source of an elementwise call; None for any other call."""
        return self.sources.get(node)

    def origin(self, tensor: Tensor) -> Tensor:
        """The source of the call that produces a tensor; the tensor itself if no elementwise call produces it."""
        return tensor if tensor.producer is None else self.sources.get(tensor.producer, tensor)

    def _source(self, node: Node) -> Tensor | None:
        """The one tensor that all operands of an elementwise call are functions of; None if there are several."""
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
        """The calls that compute a call's result from its source, in order; the call itself is the last."""
        found: dict[Node, None] = {}

        def visit(call: Node) -> None:
            for tensor in call.inputs():
                if tensor is not self.sources[node] and tensor.producer is not None and tensor.producer not in found:
                    visit(tensor.producer)
            found[call] = None

        visit(node)
        return list(found)

    def needs_table(self, node: Node) -> bool:
        """Whether a cluster has a function without an int8 form, or an exponential that is not the last call.

        An exponential grows so fast that rounding it to int8 costs the calls after it much accuracy:
        `where(x > 0, x, exp(x) - 1)` had an SQNR of 24 dB.
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
        """Whether a lookup table with 256 entries is accurate enough for a function that may diverge.

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
        """A call of a new `Pointwise` layer that computes a call's result from its source."""
        layer = Pointwise(self.steps(node), name=node.layer.name)
        return Node(layer, node.path, (self.sources[node],), {}, node.outputs, node.origin)

    def steps(self, node: Node) -> list[dict[str, Any]]:
        """The cluster that ends with a call, as the argument `steps` of `Pointwise`."""
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
    """Whether a call applies an elementwise function to tensors of one shape; its other arguments are scalars."""
    if getattr(node.layer, "symbol", None) not in ELEMENTWISE_FUNCTIONS or not isinstance(node.outputs, Tensor):
        return False
    if node.layer.symbol in {"where", "compat.v1.where"} and len(node.args) + len(node.kwargs) < _SELECT_OPERANDS:
        return False  # returns the indices of the true elements
    if node.layer.symbol in {*DIVISIONS, "math.pow"} and {"x", "y"} & node.kwargs.keys():
        return False  # operands are passed by name, and `may_diverge` reads them by position
    shape = node.output().shape
    if not node.inputs() or any(tensor.shape != shape for tensor in node.inputs()):
        return False
    return all(_is_plain(leaf) for leaf in tf.nest.flatten((node.args, node.kwargs)))


def _is_plain(leaf: Any) -> bool:
    if leaf is None or isinstance(leaf, Tensor | bool | int | float | str | tf.DType | np.number | np.bool_):
        return True
    # Training changes a variable, and a table of its present values would no longer fit.
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
        return True  # a rule of normalisation (`rules.casts`) removes such a cast
    constants = [leaf for leaf in tf.nest.flatten((node.args[1:], node.kwargs)) if leaf is not None]
    return symbol in INT8 or (symbol in INT8_BY_DEFAULT and not constants)
