"""Graph normalisation: rewrites a graph to fewer kinds of calls with equal outputs, weights and weighted layers' names.

A normalised graph has no nested model, no tensor arithmetic that a layer can compute, no activation inside another
layer and no separable convolution, so that few rules are enough to place the quantisers. Called before QAT
(`quantization.qat`) and before export (`tflite.export`). It places no quantisers itself.
"""

from __future__ import annotations

from tfmot_ops.core.graph.clusters import fuse_pointwise
from tfmot_ops.core.graph.custom import inline_custom_layers
from tfmot_ops.core.graph.factors import divide_by_tables
from tfmot_ops.core.graph.integer_inputs import with_integer_inputs
from tfmot_ops.core.graph.ir import Graph, Tensor, map_tensors
from tfmot_ops.core.graph.operations import Role
from tfmot_ops.core.graph.precision import in_float32
from tfmot_ops.core.graph.rewrite import rewrite
from tfmot_ops.core.graph.roles import activation_name, role
from tfmot_ops.core.graph.rules import QAT_RULES, RULES
from tfmot_ops.core.keras.policies import new_layers_with_policy


@new_layers_with_policy("float32")
def normalize_graph(graph: Graph, *, for_qat: bool = False) -> Graph:
    """Convert to float32, inline custom layers, fuse elementwise functions, apply all rules, merge equal ReLUs.

    Args:
        graph: from `read_graph`.
        for_qat: whether QAT follows. Then calls that the converter computes in float after training become int8 calls.
    """
    inlined = with_integer_inputs(inline_custom_layers(in_float32(graph)))
    if for_qat:
        divide_by_tables(inlined)
    return _merge_equal_relus(rewrite(fuse_pointwise(inlined, for_qat=for_qat), QAT_RULES if for_qat else RULES))


def _merge_equal_relus(graph: Graph) -> Graph:
    """Merge equal ReLUs of one tensor: common-subexpression elimination, for ReLUs only.

    The converter merges equal ReLUs too; with a quantiser on each, the merged tensor would have two ranges.
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
