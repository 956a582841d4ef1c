"""The check that a TFLite file has the zeros that the recipe requires."""

from __future__ import annotations

from tfmot_ops.contract import Recipe
from tfmot_ops.core.graph.ir import Graph, unique_names
from tfmot_ops.core.graph.roles import kernels
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.pruning.sparsity import prunable, required_ratio, tolerance
from tfmot_ops.core.tflite.profile import weight_zeros
from tfmot_ops.core.tflite.scopes import is_within, scopes_of
from tfmot_ops.errors import SparsityLostError


def required_of_quantized(graph: Graph) -> dict[str, tuple[float, int]]:
    """Layer name -> (required fraction of zeros of its kernel in the file, number of weights), from its quantiser."""
    return {
        inner_layer(node.layer).name: (quantizer.required_sparsity, int(variable.shape.num_elements()))
        for node in graph.nodes
        for variable, quantizer, _ in private.weight_variables(node.layer)
        if quantizer.required_sparsity
    }


def required_of_float(graph: Graph, model: keras.Model, recipe: Recipe) -> dict[str, tuple[float, int]]:
    """Layer name -> (required fraction of zeros, number of weights), from the recipe, for a normalised float graph."""
    if recipe.sparsity is None:
        return {}
    chosen = prunable(model, recipe)
    names = unique_names(dict.fromkeys(node.path for node in graph.nodes), graph.input_names.values())
    return {
        # The kernel is the first weight of every layer that has one.
        names[node.path]: (ratio, graph.weights_of(node.layer)[0].size)
        for node in graph.nodes
        for kernel in kernels(node.layer)
        if (ratio := required_ratio(chosen, node, kernel, recipe.sparsity.ratio))
    }


def check_sparsity(data: bytes, required: dict[str, tuple[float, int]], graph: Graph) -> None:
    """Refuse a file in which a kernel has fewer zeros than required.

    Args:
        data: TFLite file.
        required: layer name -> (required fraction of zeros, number of weights of the kernel).
        graph: of the model that was exported.

    Raises:
        SparsityLostError: names the layer.
    """
    if not required:
        return
    scopes = scopes_of(inner_layer(node.layer).name for node in graph.nodes)
    weights = weight_zeros(data)
    named = {name: [w for tensor, w in weights.items() if is_within(tensor, scopes[name])] for name in required}
    # The converter stores equal kernels once, under the name of one of their layers, and a kernel that several calls
    # share under no layer's name. For a layer without a tensor of its name, tensors of the same size are checked.
    shared = [w for tensor, w in weights.items() if "L." not in tensor] + [w for own in named.values() for w in own]
    for name, (ratio, size) in required.items():
        same = max((zeros / size for zeros, count in shared if count == size), default=None)
        found = [zeros / count for zeros, count in named[name]] or ([] if same is None else [same])
        if not found or min(found) < ratio - tolerance(size):
            raise SparsityLostError(
                f"layer {name!r} lost its sparsity in the TFLite file",
                required=f"a fraction of zeros of at least {ratio:.3f}",
                received=f"{min(found):.3f}" if found else f"no weight tensor of {size} weights for this layer",
                remedy="quantise the stripped model with the same recipe, so that the zeros are kept",
            )
