"""Normalisation: same outputs, same weights, weighted layers keep their names.

After it a graph has no nested model, no tensor arithmetic that a standard layer can say, no fused activation, no
separable convolution: few forms, so that quantisers are placed by few rules.
"""

from __future__ import annotations

from tfmot_ops.core.graph.custom import open_custom_layers
from tfmot_ops.core.graph.ir import Graph, Tensor, map_tensors
from tfmot_ops.core.graph.operations import Role
from tfmot_ops.core.graph.rewrite import rewrite
from tfmot_ops.core.graph.roles import activation_name, role
from tfmot_ops.core.graph.rules import RULES


def normalize_graph(graph: Graph) -> Graph:
    """Open the custom layers, apply all rules, then merge equal activations of one tensor."""
    return _merge_twins(rewrite(open_custom_layers(graph), RULES))


def _merge_twins(graph: Graph) -> Graph:
    """Two relus of one tensor become one: common-subexpression elimination, of relus only.

    The converter merges them itself, and would be left with two ranges for one tensor.
    """
    first: dict[tuple[Tensor, str | None], Tensor] = {}
    renamed: dict[Tensor, Tensor] = {}
    nodes = []
    calls = graph.calls_per_layer()
    for node in graph.nodes:
        node.args, node.kwargs = map_tensors((node.args, node.kwargs), lambda t: renamed.get(t, t))
        if role(node.layer) is Role.RELU and calls[node.layer] == 1:
            key = node.inputs()[0], activation_name(node.layer)
            if key in first:
                renamed[node.output()] = first[key]
                continue
            first[key] = node.output()
        nodes.append(node)
    graph.nodes = nodes
    graph.outputs = map_tensors(graph.outputs, lambda t: renamed.get(t, t))
    return graph
