"""Calls whose results depend on weights alone, not on the model's inputs: they are constants in a TFLite file."""

from __future__ import annotations

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.layers import LearnedTensor
from tfmot_ops.core.keras.private import QuantizeLayer


def calls_of_weights(graph: Graph) -> set[Node]:
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
