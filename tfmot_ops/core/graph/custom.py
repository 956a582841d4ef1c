"""Inlining of custom layers: the layers and functions that a layer's `call` applies become calls of the graph.

Keras records each TensorFlow function that is applied to a symbolic tensor. Calling a layer's `call` on symbolic
tensors therefore yields a graph: a layer that multiplies by a weight becomes a multiplication with that weight.
Called by `normalize` for quantisation and export, and by `pruning.opened`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.base_class import BaseClassReplacer
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors
from tfmot_ops.core.graph.layers import LearnedTensor
from tfmot_ops.core.graph.read import pass_training, read_graph
from tfmot_ops.core.graph.roles import is_custom
from tfmot_ops.core.graph.trace import LearnedTensors, record
from tfmot_ops.core.graph.trial import computes_the_same
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.keras.weights import variable_key


def inline_custom_layers(graph: Graph) -> Graph:
    """Replace the call of each custom layer by the operations in its `call`, recursively, where Keras can record them.

    These are layers of other packages, subclassed models within the model, Lambda layers, TimeDistributed around any
    layer but a Dense, and SpectralNormalization, whose kernel keeps its present normalised values.

    A layer is inlined if its `call` does the same in training and in inference, except for the `training` argument of
    its inner layers. These get `training` from the new model, so a BatchNormalization keeps updating its statistics.

    A weight that a function reads becomes the result of a `LearnedTensor`, which all calls of a shared layer share.

    Args:
        graph: the graph; its layers are not changed.
    """
    inliner = _Inliner(masked=any(_makes_mask(node.layer) for node in graph.nodes))
    inlined = inliner.inline(graph)
    _connect_learned_tensors(inlined)
    return inlined


def _connect_learned_tensors(graph: Graph) -> None:
    """Make each LearnedTensor read the first input of the graph: Keras requires an input, and its value is not used."""
    for node in graph.nodes:
        if isinstance(node.layer, LearnedTensor):
            node.args = (graph.inputs()[0],)


class _Inliner:
    """Inlines the custom layers of a graph; the calls of one layer share inner layers and learned tensors.

    Args:
        masked: whether the tensors that the graph reads may carry Keras masks.
    """

    def __init__(self, *, masked: bool) -> None:
        self._masked = masked
        self._learned = LearnedTensors()
        self._bases = BaseClassReplacer()

    def inline(self, graph: Graph) -> Graph:
        """The graph with its custom layers inlined, recursively."""
        renamed: dict[Tensor, Tensor] = {}
        nodes: list[Node] = []

        def current(tensor: Tensor) -> Tensor:
            return renamed.get(tensor, tensor)

        for called in graph.nodes:
            called.args, called.kwargs = map_tensors((called.args, called.kwargs), current)
            node = self._bases.replace(called)
            self._replace_weights(node, nodes)
            found = self._recorded(node) if self._may_inline(node.layer) else None
            if found is None:
                nodes.append(node)
                continue
            inner, read = found
            _append_inlined(node, self.inline(inner), read, nodes, renamed)
        outputs = map_tensors(graph.outputs, current)
        return Graph(graph.name, graph.input_structure, graph.input_names, outputs, nodes, graph.weights)

    def _may_inline(self, layer: Layer) -> bool:
        return should_inline(layer) and layer.activity_regularizer is None and not (self._masked and _reads_mask(layer))

    def _recorded(self, node: Node) -> tuple[Graph, list[Tensor]] | None:
        """(recorded graph of a call, the tensors that the call reads); None if the layer cannot be inlined."""
        layer, given = node.layer, node.kwargs.get("training")
        spec = private.call_signature(layer)
        if not node.inputs() or (given is None and spec.default_training_arg):
            return None
        modes = (False, True) if given is None else (given, given)
        try:
            # Two traces that differ show that the layer keeps state or draws random numbers; no graph can replace it.
            (recorded, read), (other, _) = (self._trace(node, mode) for mode in modes)
            same = _follows_training(recorded, other) and (given or computes_the_same(node, recorded, read))
        except Exception:  # noqa: BLE001 - the user's `call` does not take symbolic tensors: it is not inlined
            return None
        if not (same and _shapes(recorded.outputs) == _shapes(node.outputs) and self._has_weights(recorded, layer)):
            return None
        if not recorded.nodes:
            return _identity_graph(node, recorded, read)
        for call in recorded.nodes:
            pass_training(call, given)
        return recorded, read

    def _trace(self, node: Node, training: object) -> tuple[Graph, list[Tensor]]:
        kwargs = {name: value for name, value in node.kwargs.items() if name != "training"}
        if private.call_signature(node.layer).expects_training_arg:
            kwargs["training"] = training
        model, read = record(node.layer, node.args, kwargs, self._learned)
        return read_graph(model), read

    def _replace_weights(self, node: Node, nodes: list[Node]) -> None:
        """Let a call read LearnedTensors in place of weights among its arguments; appends their calls to `nodes`."""

        def tensor_of(leaf: object) -> Any:
            if not isinstance(leaf, tf.Variable):
                return leaf
            layer = self._learned.layer(leaf)
            call = Node(layer, f"{node.path}/{layer.name}", (), {}, None, node.origin)
            call.outputs = Tensor(tuple(layer.sizes), layer.weight_dtype, call)
            nodes.append(call)
            return call.outputs

        if any(isinstance(leaf, tf.Variable) for leaf in tf.nest.flatten((node.args, node.kwargs))):
            node.args, node.kwargs = tf.nest.map_structure(tensor_of, (node.args, node.kwargs))

    def _has_weights(self, graph: Graph, layer: Layer) -> bool:
        """Whether a recorded graph uses every weight of a layer: in one of its layers, or as a LearnedTensor.

        A missing weight is held by a plain Python object instead of an attribute of the layer, so the recording turned
        it into a constant.
        """
        leaves = tf.nest.flatten([(node.args, node.kwargs) for node in graph.nodes])
        found = [leaf for leaf in leaves if isinstance(leaf, tf.Variable)]
        found += [weight for node in graph.nodes for weight in node.layer.weights]
        present = {variable_key(weight) for weight in found}
        used = layer.layer if isinstance(layer, keras.layers.SpectralNormalization) else layer
        return all(self._learned.has(weight) for weight in used.weights if variable_key(weight) not in present)


def _identity_graph(node: Node, recorded: Graph, read: list[Tensor]) -> tuple[Graph, list[Tensor]] | None:
    """The graph of a layer that returns its input, as one call of Identity; None where it has several results."""
    if not isinstance(recorded.outputs, Tensor):
        return None
    call = Node(keras.layers.Identity(name=node.layer.name), node.layer.name, (recorded.outputs,), {}, None)
    call.outputs = recorded.outputs = Tensor(recorded.outputs.shape, recorded.outputs.dtype, call)
    recorded.nodes = [call]
    return recorded, read


def should_inline(layer: Layer) -> bool:
    """Whether a layer hides calls that normalisation has to see: in its `call`, its function or its inner layer."""
    if type(layer) is keras.layers.TimeDistributed:
        return type(layer.layer) is not keras.layers.Dense  # a rule makes it a Dense over the last axis
    return is_custom(layer) or type(layer) is keras.layers.Lambda or is_spectral_normalization(layer)


def is_spectral_normalization(layer: Layer) -> bool:
    """Whether a layer wraps another layer and normalises the kernel of that layer at each training step."""
    return type(layer) is keras.layers.SpectralNormalization


def _makes_mask(layer: Layer) -> bool:
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def _reads_mask(layer: Layer) -> bool:
    """Whether an inner layer reads a mask: a mask is an attribute of a tensor, which a trace loses.

    The layer's own mask is an argument of its call in the graph, so a trace has it.
    """
    inner = (part for part in private.layers_within(layer) if part is not layer)
    return any(private.call_signature(part).expects_mask_arg for part in inner)


def _shapes(structure: object) -> list[tuple[int | None, ...]]:
    return [tensor.shape for tensor in tensors(structure)]


def _follows_training(inference: Graph, training: Graph) -> bool:
    """Whether two traces of a layer differ only in `training=False` against `training=True` of inner calls.

    These arguments are removed from the inference trace, so that the inner calls follow the model's training mode.
    """
    if len(inference.nodes) != len(training.nodes):
        return False
    number_of = _tensor_numbers(inference) | _tensor_numbers(training)
    for call, other in zip(inference.nodes, training.nodes, strict=True):
        if call.kwargs.get("training") is False and other.kwargs.get("training") is True:
            del call.kwargs["training"], other.kwargs["training"]
        if not _calls_the_same(call.layer, other.layer):
            return False
        if not _equal((call.args, call.kwargs), (other.args, other.kwargs), number_of):
            return False
    return _equal(inference.outputs, training.outputs, number_of)


def _tensor_numbers(graph: Graph) -> dict[Tensor, int]:
    """Tensor -> its number among all tensors of the graph, in order."""
    results = [tensor for node in graph.nodes for tensor in tensors(node.outputs)]
    return {tensor: number for number, tensor in enumerate([*graph.inputs(), *results])}


def _calls_the_same(layer: Layer, other: Layer) -> bool:
    """Whether two calls are of one layer, of one function, or of equal layers without weights.

    Keras makes a new layer for each call of a function. A `call` that makes layers (`keras.layers.add([x, y])`) makes
    new ones at each trace.
    """
    if layer is other:
        return True
    function = getattr(layer, "symbol", None)
    if function is not None:
        return bool(function == getattr(other, "symbol", None))
    return type(layer) is type(other) and not (layer.weights or other.weights) and _config(layer) == _config(other)


def _config(layer: Layer) -> dict[str, Any]:
    return {name: value for name, value in layer.get_config().items() if name != "name"}


def _equal(first: object, second: object, number_of: dict[Tensor, int]) -> bool:
    def placed(leaf: object) -> Any:
        return number_of.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf

    sides = [tf.nest.flatten(structure) for structure in (first, second)]
    return len(sides[0]) == len(sides[1]) and all(
        one is other or (type(one) is type(other) and np.array_equal(placed(one), placed(other)))
        for one, other in zip(*sides, strict=True)
    )


def _append_inlined(
    node: Node, inner: Graph, read: list[Tensor], nodes: list[Node], renamed: dict[Tensor, Tensor]
) -> None:
    bound = dict(zip(inner.inputs(), read, strict=True))

    def current(tensor: Tensor) -> Tensor:
        return bound.get(tensor, tensor)

    seen: dict[str, int] = {}
    for call in inner.nodes:
        call.args, call.kwargs = map_tensors((call.args, call.kwargs), current)
        # Keras counts recorded functions over the whole process (`tf.math.multiply_17`); names count within the layer.
        kind = call.layer.symbol.replace(".", "_").strip("_") if hasattr(call.layer, "symbol") else call.path
        seen[kind] = seen.get(kind, 0) + 1
        call.path = f"{node.path}/{kind}" + (f"_{seen[kind]}" if seen[kind] > 1 else "")
        call.origin = node.origin
        nodes.append(call)
    for outside, inside in zip(tensors(node.outputs), tensors(inner.outputs), strict=True):
        renamed[outside] = current(inside)
