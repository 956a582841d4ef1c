"""Inlining of custom layers: the TensorFlow functions that a layer's `call` applies become calls of the graph.

Keras records each TensorFlow function that is applied to a symbolic tensor. Calling a layer's `call` on symbolic
tensors therefore yields a graph: a layer that multiplies by a weight becomes a multiplication with that weight.
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
    """Replace the call of each custom layer by the operations in its `call`, recursively, where Keras can record them.

    A layer is opened if it is called once (two copies of a shared layer would no longer share their weights) and if
    its `call` does the same in training and in inference, except for the `training` argument of its inner layers. The
    inner layers then get `training` from the new model, so a BatchNormalization keeps updating its statistics.

    Args:
        graph: the graph; its layers are not changed.
        masked: whether the tensors that the graph reads may carry Keras masks.
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
    """Whether the layer or an inner layer reads a mask: a mask is an attribute of a tensor, which a trace loses."""
    return any(private.call_signature(part).expects_mask_arg for part in private.layers_within(layer))


def _open(node: Node) -> Graph | None:
    """The graph of what a call of a custom layer computes; None where the layer has to stay as it is."""
    layer, given = node.layer, node.kwargs.get("training")
    if not _takes_one_input(node) or layer.activity_regularizer is not None:
        return None
    modes = (False, True) if given is None else (given, given)
    try:
        # Two traces that differ show that the layer keeps state or draws random numbers; no graph can replace it.
        opened, other = (_trace(layer, node.args[0], mode) for mode in modes)
        same = _follows_training(opened, other)
    except Exception:  # noqa: BLE001 - the user's `call` does not take symbolic tensors: the layer stays whole
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
        # Keras warns that a recorded function reads a weight; here the weight becomes a weight of the new layer.
        logger.setLevel(logging.ERROR)
        with _without_recorded_calls(layer):
            return read_graph(keras.Model(symbols, layer.call(symbols, **mode)))
    finally:
        logger.setLevel(level)


@contextmanager
def _without_recorded_calls(layer: Layer) -> Iterator[None]:
    """Undo what calls in this context append to the lists (losses, metrics, nodes) of the layer and its inner layers.

    Raises:
        ValueError: the layer adds losses or metrics of its own, which a graph cannot represent.
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
    """Whether two traces of a layer differ only in `training=False` against `training=True` of inner calls.

    These arguments are removed from the inference trace, so that the inner calls follow the model's training mode.
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
    """Whether every weight of the layer belongs to an inner layer, or is an operand that a rule makes a weight.

    Example of such an operand: `gamma` in `x * gamma`, which the arithmetic rule turns into the scale of an Affine.
    """
    held = {Itself(weight) for node in graph.nodes for weight in node.layer.weights}
    free = [
        (node, leaf)
        for node in graph.nodes
        for leaf in tf.nest.flatten((node.args, node.kwargs))
        if isinstance(leaf, tf.Variable)
    ]
    arithmetic = {"math.add", "__operators__.add", "math.multiply", "math.subtract", "math.truediv", "nn.bias_add"}
    fits = all(
        getattr(node.layer, "symbol", None) in arithmetic and leaf.shape.num_elements() in {1, node.output().channels}
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
        # Keras counts recorded functions over the whole process (`tf.math.multiply_17`); names count within the layer.
        kind = call.layer.symbol.replace(".", "_").strip("_") if hasattr(call.layer, "symbol") else call.path
        seen[kind] = seen.get(kind, 0) + 1
        call.path = f"{node.path}/{kind}" + (f"_{seen[kind]}" if seen[kind] > 1 else "")
        call.origin = node.origin
        nodes.append(call)
    for outside, inside in zip(tensors(node.outputs), tensors(inner.outputs), strict=True):
        renamed[outside] = current(inside)
