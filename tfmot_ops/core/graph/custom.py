"""Custom layers opened: what their `call` does to tensors becomes calls of the graph.

Keras records TensorFlow functions that are applied to its symbolic tensors, so calling a layer's `call` on such
tensors gives a graph of its own: a layer that multiplies by a weight becomes a multiplication with that weight.
"""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.legacy_keras import keras
from tfmot_ops.core.roles import is_custom


def open_custom_layers(graph: Graph) -> Graph:
    """Replace the calls of custom layers by what they compute, where that can be read.

    Opened are layers whose `call` has no `training` argument (training would lose what it does) and that are called
    once (opened twice, their weights would part).
    """
    calls = graph.calls_per_layer()
    renamed: dict[int, Tensor] = {}
    nodes: list[Node] = []

    def current(tensor: Tensor) -> Tensor:
        return renamed.get(id(tensor), tensor)

    for node in graph.nodes:
        node.args, node.kwargs = map_tensors((node.args, node.kwargs), current)
        inner = _open(node) if is_custom(node.layer) and calls[id(node.layer)] == 1 else None
        if inner is None:
            nodes.append(node)
            continue
        _inline(node, inner, nodes, renamed)
    outputs = map_tensors(graph.outputs, current)
    return Graph(graph.name, graph.input_structure, graph.input_names, outputs, nodes, graph.weights)


def _open(node: Node) -> Graph | None:
    layer = node.layer
    # `_call_spec` is Keras' own record of the signature.
    if layer._call_spec.expects_training_arg or node.kwargs or len(node.args) != 1:  # noqa: SLF001 - see above
        return None
    symbols = map_tensors(node.args[0], lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype))
    logger = logging.getLogger("tensorflow")
    level = logger.level
    try:
        # Keras warns of weights that a recorded function reads; here they become weights of the new layer.
        logger.setLevel(logging.ERROR)
        outputs = layer.call(symbols)
        opened = read_graph(keras.Model(symbols, outputs))
    except Exception:  # noqa: BLE001 - somebody's code that does not take symbolic tensors: it stays one layer
        return None
    finally:
        logger.setLevel(level)
    shapes = [[tensor.shape for tensor in tensors(structure)] for structure in (opened.outputs, node.outputs)]
    return opened if opened.nodes and shapes[0] == shapes[1] and _is_closed(opened, layer) else None


def _is_closed(graph: Graph, layer: Any) -> bool:
    """Whether every weight of the layer is a weight of a call, or an operand that a rule makes one of."""
    held = {id(weight) for node in graph.nodes for weight in node.layer.weights}
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
    return fits and {id(weight) for weight in layer.weights} <= held | {_variable(leaf) for _, leaf in free}


def _variable(leaf: Any) -> int:
    return id(getattr(leaf, "_variable", leaf))


def _inline(node: Node, inner: Graph, nodes: list[Node], renamed: dict[int, Tensor]) -> None:
    bound = {id(inside): outside for inside, outside in zip(inner.inputs(), node.inputs(), strict=True)}

    def current(tensor: Tensor) -> Tensor:
        return bound.get(id(tensor), tensor)

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
        renamed[id(outside)] = current(inside)
