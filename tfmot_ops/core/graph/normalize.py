"""Normalisation: same outputs, same weights, weighted layers keep their names.

After it a graph has no nested model, no tensor arithmetic that a standard layer can say, no fused activation, no
separable convolution: few forms, so that quantisers are placed by few rules.
"""

from __future__ import annotations

from tfmot_ops.core.graph.custom import open_custom_layers
from tfmot_ops.core.graph.ir import Graph
from tfmot_ops.core.graph.rewrite import rewrite
from tfmot_ops.core.graph.rules import RULES


def normalize_graph(graph: Graph) -> Graph:
    """Open the custom layers, then apply all rules, in one pass each."""
    return rewrite(open_custom_layers(graph), RULES)
