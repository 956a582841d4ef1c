"""Run a graph call by call, with a say in what each call computes and what goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.types import Args, Kwargs, Layer, TensorLike

#: (call, args, kwargs) -> the result, of the same structure as the call's outputs.
Compute = Callable[[Node, Args, Kwargs], Any]


def run_graph(graph: Graph, inputs: Sequence[TensorLike], compute: Compute) -> Any:
    """Compute a graph's outputs.

    Args:
        graph: the graph.
        inputs: one value for each graph input, in order.
        compute: `(call, args, kwargs) -> result`, same structure as the call's outputs.

    Returns:
        The graph's output structure with values as leaves.
    """
    values: dict[Tensor, Any] = dict(zip(graph.inputs(), inputs, strict=True))
    # Call by call, memory holds what is still to be read only.
    last_read: dict[Tensor, Node | None] = {tensor: node for node in graph.nodes for tensor in node.inputs()}
    last_read |= dict.fromkeys(tensors(graph.outputs))
    for node in graph.nodes:
        args, kwargs = map_tensors((node.args, node.kwargs), lambda tensor: values[tensor])
        result = compute(node, args, kwargs)
        values.update(zip(tensors(node.outputs), tf.nest.flatten(result), strict=True))
        for tensor in set(node.inputs()):
            if last_read[tensor] is node:
                del values[tensor]
    return map_tensors(graph.outputs, lambda tensor: values[tensor])


def infer(layer: Layer, args: Args, kwargs: Kwargs) -> Any:
    """What a call of a layer gives in inference; without the word Keras' augmentation layers augment."""
    if private.call_signature(layer).expects_training_arg:
        kwargs = kwargs | {"training": False}
    return layer(*args, **kwargs)
