"""Custom layers opened: what their `call` does to tensors becomes calls of the graph.

Keras records TensorFlow functions that are applied to its symbolic tensors, so calling a layer's `call` on such
tensors gives a graph of its own: a layer that multiplies by a weight becomes a multiplication with that weight.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors
from tfmot_ops.core.graph.read import read_graph, tell_training
from tfmot_ops.core.graph.roles import is_custom
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.identity import Itself
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, TensorLike


def open_custom_layers(graph: Graph, *, masked: bool = False) -> Graph:
    """Replace the calls of custom layers by what they compute, where that can be read; those within them too.

    Opened are layers that are called once (opened twice, their weights would part) and whose `call` does the same in
    training as in inference, but for what it tells the layers within it. Those then learn of training as all layers of
    a model do, so a BatchNormalization goes on with its statistics.

    Args:
        graph: the graph; the layers in it are left as they are.
        masked: whether the tensors it reads may have masks.
    """
    calls = graph.calls_per_layer()
    masked = masked or any(_makes_mask(node.layer) for node in graph.nodes)
    renamed: dict[Tensor, Tensor] = {}
    nodes: list[Node] = []

    def current(tensor: Tensor) -> Tensor:
        return renamed.get(tensor, tensor)

    for node in graph.nodes:
        node.args, node.kwargs = map_tensors((node.args, node.kwargs), current)
        fits = is_custom(node.layer) and calls[node.layer] == 1 and not (masked and _reads_mask(node.layer))
        inner = _open(node) if fits else None
        if inner is None:
            nodes.append(node)
            continue
        _inline(node, open_custom_layers(inner, masked=masked), nodes, renamed)
    outputs = map_tensors(graph.outputs, current)
    return Graph(graph.name, graph.input_structure, graph.input_names, outputs, nodes, graph.weights)


def _makes_mask(layer: Layer) -> bool:
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def _reads_mask(layer: Layer) -> bool:
    """Whether the layer, or one within it, reads a mask: Keras hands masks on beside the tensors a trace shows."""
    return any(private.call_signature(part).expects_mask_arg for part in private.layers_within(layer))


def _open(node: Node) -> Graph | None:
    """The graph of what a call of a custom layer computes; None where the layer has to stay as it is."""
    layer, given = node.layer, node.kwargs.get("training")
    if not _takes_one_input(node) or layer.activity_regularizer is not None:
        return None
    modes = (False, True) if given is None else (given, given)
    try:
        # A layer that computes something else at a second trace has no graph.
        opened, other = (_trace(layer, node.args[0], mode) for mode in modes)
        same = _follows_training(opened, other)
    except Exception:  # noqa: BLE001 - somebody's code that does not take symbolic tensors: it stays one layer
        return None
    if not (same and opened.nodes and _shapes(opened.outputs) == _shapes(node.outputs) and _is_closed(opened, layer)):
        return None
    for call in opened.nodes:
        tell_training(call, given)
    return opened


def _takes_one_input(node: Node) -> bool:
    """Whether a call has no arguments but its input and `training`, and no default of its own for that one."""
    has_own_default = node.kwargs.get("training") is None and private.call_signature(node.layer).default_training_arg
    return len(node.args) == 1 and not node.kwargs.keys() - {"training"} and not has_own_default


def _shapes(structure: object) -> list[tuple[int | None, ...]]:
    return [tensor.shape for tensor in tensors(structure)]


def _trace(layer: Layer, inputs: object, training: bool | TensorLike | None) -> Graph:
    symbols = map_tensors(inputs, lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype))
    mode = {"training": training} if private.call_signature(layer).expects_training_arg else {}
    logger = logging.getLogger("tensorflow")
    level = logger.level
    try:
        # Keras warns of weights that a recorded function reads; here they become weights of the new layer.
        logger.setLevel(logging.ERROR)
        with _as_it_was(layer):
            return read_graph(keras.Model(symbols, layer.call(symbols, **mode)))
    finally:
        logger.setLevel(level)


@contextmanager
def _as_it_was(layer: Layer) -> Iterator[None]:
    """Whatever Keras notes in the layer and those within it for calls in this context is gone afterwards.

    Raises:
        ValueError: the layer adds losses or metrics of its own, which a graph does not show.
    """
    before = [(part, name, len(notes)) for part, name, notes in private.notes_of_calls(layer)]
    try:
        yield
        own = [name for part, name, count in before if part is layer and len(getattr(part, name)) > count]
        if own:
            raise ValueError(f"{layer.name} adds to {own}")
    finally:
        for part, name, count in before:
            if len(getattr(part, name)) > count:
                del getattr(part, name)[count:]


def _follows_training(inference: Graph, training: Graph) -> bool:
    """Whether two traces of a layer are the same, but for calls told that it is inference, and training.

    Such calls of the first are left to learn it from the model.
    """
    if len(inference.nodes) != len(training.nodes):
        return False
    place = _places(inference) | _places(training)
    for call, other in zip(inference.nodes, training.nodes, strict=True):
        if call.kwargs.get("training") is False and other.kwargs.get("training") is True:
            del call.kwargs["training"], other.kwargs["training"]
        if not _calls_the_same(call.layer, other.layer):
            return False
        if not _equal((call.args, call.kwargs), (other.args, other.kwargs), place):
            return False
    return _equal(inference.outputs, training.outputs, place)


def _places(graph: Graph) -> dict[Tensor, int]:
    """Tensor -> its number among all tensors of the graph, in order."""
    results = [tensor for node in graph.nodes for tensor in tensors(node.outputs)]
    return {tensor: number for number, tensor in enumerate([*graph.inputs(), *results])}


def _calls_the_same(layer: Layer, other: Layer) -> bool:
    """Whether two calls are of one layer, or of one function: Keras makes a new layer for each call of a function."""
    function = getattr(layer, "symbol", None)
    return layer is other or (function is not None and function == getattr(other, "symbol", None))


def _equal(first: object, second: object, place: dict[Tensor, int]) -> bool:
    def placed(leaf: object) -> Any:
        return place.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf

    sides = [tf.nest.flatten(structure) for structure in (first, second)]
    return len(sides[0]) == len(sides[1]) and all(
        one is other or (type(one) is type(other) and np.array_equal(placed(one), placed(other)))
        for one, other in zip(*sides, strict=True)
    )


def _is_closed(graph: Graph, layer: Layer) -> bool:
    """Whether every weight of the layer is a weight of a call, or an operand that a rule makes one of."""
    held = {Itself(weight) for node in graph.nodes for weight in node.layer.weights}
    free = [
        (node, leaf)
        for node in graph.nodes
        for leaf in tf.nest.flatten((node.args, node.kwargs))
        if isinstance(leaf, tf.Variable)
    ]
    arithmetic = {"math.add", "__operators__.add", "math.multiply", "math.subtract", "math.truediv", "nn.bias_add"}
    fits = all(
        node.layer.symbol in arithmetic and leaf.shape.num_elements() in {1, node.output().channels}
        for node, leaf in free
    )
    return fits and {Itself(weight) for weight in layer.weights} <= held | {_variable(leaf) for _, leaf in free}


def _variable(leaf: object) -> Itself:
    return Itself(private.plain_variable(leaf))


def _inline(node: Node, inner: Graph, nodes: list[Node], renamed: dict[Tensor, Tensor]) -> None:
    bound = dict(zip(inner.inputs(), node.inputs(), strict=True))

    def current(tensor: Tensor) -> Tensor:
        return bound.get(tensor, tensor)

    seen: dict[str, int] = {}
    for call in inner.nodes:
        call.args, call.kwargs = map_tensors((call.args, call.kwargs), current)
        # Keras numbers recorded functions through the whole process; here they are numbered within the layer.
        kind = call.layer.symbol.replace(".", "_").strip("_") if hasattr(call.layer, "symbol") else call.path
        seen[kind] = seen.get(kind, 0) + 1
        call.path = f"{node.path}/{kind}" + (f"_{seen[kind]}" if seen[kind] > 1 else "")
        call.origin = node.origin
        nodes.append(call)
    for outside, inside in zip(tensors(node.outputs), tensors(inner.outputs), strict=True):
        renamed[outside] = current(inside)
