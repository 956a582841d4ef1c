"""The rewriter: one forward pass over a graph, in which rules replace calls and later calls read the new tensors.

Called by `normalize` with the rules in `rules`, and with single rules by pruning and by the export to int16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors
from tfmot_ops.core.graph.layers import Affine
from tfmot_ops.core.graph.weight_only import weight_only_calls
from tfmot_ops.core.keras.types import Array, Layer
from tfmot_ops.core.keras.values import value_of


class Rewriter:
    """Collects the calls of the new graph; a rule uses it to emit the calls that replace an old one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        #: Path of the user's layer whose call is being rewritten.
        self.origin = ""
        #: The call of the old graph that is being rewritten; it reads tensors of the old graph.
        self.original: Node | None = None
        self._calls = graph.calls_per_layer()
        self._made: dict[tuple[Layer, str], Any] = {}
        #: Tensor of the old graph -> how often calls and the outputs of the graph read it.
        self.reads = Counter(tensor for node in graph.nodes for tensor in node.inputs())
        self.reads.update(tensors(graph.outputs))
        #: The calls that depend on weights alone; they are kept as they are.
        self.weight_only: set[Node] = set()

    def is_called_once(self, layer: Layer) -> bool:
        """Whether a layer has one call in the old graph; each call of a shared one reads the same weights."""
        return self._calls[layer] <= 1

    def keep(self, node: Node) -> Any:
        """Add a call unchanged; returns its outputs."""
        self.nodes.append(node)
        return node.outputs

    def shared_layer(self, layer: Layer, part: str, make: Callable[[], object]) -> Any:
        """The new layer that is a certain part (`depthwise`) of a layer's replacement, made at the first request.

        All calls of a shared layer get the same new layer, so that its weights stay shared.
        """
        key = (layer, part)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def call(
        self,
        layer: Layer,
        path: str,
        inputs: object,
        *,
        shape: Iterable[int | None] | None = None,
        weights: list[Array] | None = None,
        source_kernel: str = "",
    ) -> Tensor:
        """Emit a call of a new layer with one output.

        Args:
            layer: the new layer, not yet built.
            path: path of the call in the new graph.
            inputs: a tensor, or a list of tensors.
            shape: shape of the output; defaults to the first input's.
            weights: the layer's weight arrays, in Keras' order.
            source_kernel: see `Node`.
        """
        first = tensors(inputs)[0]
        if weights is not None:
            self.graph.weights[layer] = weights
        node = Node(layer, path, (inputs,), {}, None, self.origin, source_kernel)
        node.outputs = result = Tensor(first.shape if shape is None else tuple(shape), first.dtype, node)
        self.nodes.append(node)
        return result

    def affine(
        self,
        path: str,
        tensor: Tensor,
        scale: npt.ArrayLike,
        offset: npt.ArrayLike,
        divisor: npt.ArrayLike = 1.0,
        *,
        trainable: bool = False,
    ) -> Tensor:
        """Emit (x * scale + offset) / divisor per channel; two frozen affines in a row are merged to one."""
        channels = tensor.channels or 1
        values = [np.broadcast_to(np.asarray(value, np.float32), (channels,)) for value in (scale, offset, divisor)]
        before = tensor.producer
        frozen = before is not None and isinstance(before.layer, Affine) and not before.layer.trainable
        if frozen and before is not None and not trainable:
            values = _composed(self.graph.weights_of(before.layer), values)
            (tensor,) = before.inputs()
        layer = Affine(name=path.rsplit("/", 1)[-1], trainable=trainable)
        return self.call(layer, path, tensor, weights=values)


def _composed(first: Sequence[Array], second: Sequence[Array]) -> list[Any]:
    """[scale, offset, divisor] of second(first(x)).

    The second divisor is kept as a divisor, so that Rescaling followed by Normalization keeps Keras' exact division.
    """
    (scale, offset, divisor), (next_scale, next_offset, next_divisor) = first, second
    next_scale = next_scale / divisor
    return [scale * next_scale, offset * next_scale + next_offset, next_divisor]


#: (call, rewriter) -> new outputs, in the structure of the call's outputs; None where the rule does not apply.
Rule = Callable[[Node, Rewriter], Any]


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """Apply to each call the first rule that does not return None; a call that no rule replaces is kept."""
    rewriter = Rewriter(graph)
    constant = weight_only_calls(graph)
    renamed: dict[Tensor, Tensor] = {}

    def current(tensor: Tensor) -> Tensor:
        return renamed.get(tensor, tensor)

    for old in graph.nodes:
        args, kwargs = map_tensors((old.args, old.kwargs), current)
        node = Node(old.layer, old.path, args, kwargs, old.outputs, old.origin, old.source_kernel)
        rewriter.origin, rewriter.original = old.origin, old
        for tensor in tensors(node.outputs):
            tensor.producer = node
        if old in constant:
            rewriter.weight_only.add(node)
            rewriter.keep(node)
            continue
        result = next((out for rule in rules if (out := rule(node, rewriter)) is not None), None)
        if result is None:
            rewriter.keep(node)
            continue
        renamed |= zip(tensors(node.outputs), tensors(result), strict=True)
    outputs = map_tensors(graph.outputs, current)
    new = Graph(graph.name, graph.input_structure, graph.input_names, outputs, rewriter.nodes, graph.weights)
    return new.without_dead_calls()


def channel_constant(value: object, tensor: Tensor) -> np.ndarray | None:
    """A constant operand as an array [channels] or [1]; None if it is not a constant, or varies along another axis."""
    if isinstance(value, Tensor) or value is None:
        return None
    array = np.asarray(value_of(value), np.float32)
    if array.ndim > len(tensor.shape) or array.size not in {1, tensor.channels}:
        return None
    if array.size > 1 and array.shape[-1] != array.size:
        return None
    return array.reshape(-1)
