"""Inlines the custom layers of a model, so that the layers inside them can be pruned."""

from __future__ import annotations

from tfmot_ops.core.graph.custom import inline_custom_layers, is_spectral_normalization, should_inline
from tfmot_ops.core.graph.ir import is_graph_model, layer_paths
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import rebuild
from tfmot_ops.core.graph.rewrite import rewrite
from tfmot_ops.core.graph.rules.products import einsum, product
from tfmot_ops.core.keras.compiling import compile_like
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.wrapped import inner_layer


def with_inlined_layers(model: keras.Model) -> keras.Model:
    """A copy of a model with its custom layers inlined; the model itself if no custom layer has weights."""
    blocks = [
        layer
        for _, layer in layer_paths(model)
        if should_inline(inner_layer(layer)) and not is_spectral_normalization(layer)
    ]
    if is_graph_model(model) and not any(block.weights for block in blocks):
        return model
    # A product with a weight that is written by hand becomes a layer with a kernel, which can be pruned.
    inlined = rebuild(rewrite(inline_custom_layers(read_graph(model)), (product, einsum)))
    compile_like(inlined, model)
    return inlined
