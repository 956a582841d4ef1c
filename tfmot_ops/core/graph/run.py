"""Runs a graph call by call; a callback computes each call, so that it can observe, round or replace results.

Used to calibrate, to measure layers, to set batch statistics, and to emit a graph as TensorFlow operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.batches import with_zero_state
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
    # A tensor is released after its last reader, so that memory holds only the tensors that are still needed.
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


def infer(layer: Layer, args: Args, kwargs: Kwargs, *, training: bool = False) -> Any:
    """Call a layer in inference, or in training if `training` is set; a stateful layer starts from the state 0.

    `training` is passed to every layer that takes it: without the argument, Keras' augmentation layers would augment.
    """
    if private.call_signature(layer).expects_training_arg:
        kwargs = kwargs | {"training": training}
    with with_zero_state(layer):
        return layer(*args, **kwargs)
