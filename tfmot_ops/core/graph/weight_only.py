"""Calls whose results depend on weights alone, not on the model's inputs: they are constants in a TFLite file."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors
from tfmot_ops.core.graph.layers import LearnedTensor
from tfmot_ops.core.keras.private import QuantizeLayer


def weight_only_calls(graph: Graph) -> set[Node]:
    """The calls of LearnedTensors, and the calls that read only their results, such as a gather from a learned table.

    Args:
        graph: normalised or quantised. A quantiser of such a result is not among the calls, those that read it are.
    """
    found: set[Node] = set()
    known: set[Tensor] = set()
    for node in graph.nodes:
        read = node.inputs()
        if isinstance(node.layer, LearnedTensor) or (read and known.issuperset(read)):
            known.update(tensors(node.outputs))
            if not isinstance(node.layer, QuantizeLayer):
                found.add(node)
    return found


def weight_only_value(tensor: Tensor, graph: Graph) -> Any:
    """The present values of a tensor that depends on weights alone.

    Args:
        tensor: the result of one of the calls that `weight_only_calls` finds, or of a quantiser of such a result, which
            is passed through.
        graph: holds the weights.
    """
    node = tensor.producer
    if node is None:
        raise ValueError("an input of the graph does not depend on weights alone")
    with tf.init_scope():
        if isinstance(node.layer, LearnedTensor):
            return np.asarray(graph.weights_of(node.layer)[0])
        args, kwargs = map_tensors((node.args, node.kwargs), lambda operand: weight_only_value(operand, graph))
        return np.asarray(args[0] if isinstance(node.layer, QuantizeLayer) else node.layer(*args, **kwargs))
