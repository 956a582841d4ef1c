"""The fraction of zeros in a TFLite file's tensors that hold the pruned kernels of a model."""

from __future__ import annotations

import math

from tfmot_ops.contract import Recipe
from tfmot_ops.core.graph.roles import kernel_of
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, Model
from tfmot_ops.core.pruning.sparsity import prunable
from tfmot_ops.core.tflite.profile import TFLiteProfile


def pruned_kernels_in_file(profile: TFLiteProfile, model: Model, recipe: Recipe) -> list[tuple[int, float]]:
    """(number of weights, fraction of zeros) of each tensor of a file that holds a kernel that the recipe prunes.

    The export puts the layer's name into the tensor's name. A kernel that several calls share, as the steps of a
    recurrent layer do, has no layer's name: it is a tensor without one, of the kernel's size.

    Args:
        profile: of the file.
        model: from which the file was exported, without pruning wrappers.
        recipe: with a sparsity.
    """
    unnamed = [name for name in profile.sparsity if "L." not in name]
    found: list[str] = []
    for layer, chosen in prunable(model, recipe).values():
        named = [name for name in profile.sparsity if any(scope in name for scope in _scopes(layer))]
        for kernel in chosen:
            size = math.prod(kernel_of(layer, kernel.attribute).shape)
            own = [name for name in named if profile.weight_sizes[name] == size and name not in found]
            shared = [name for name in unnamed if profile.weight_sizes[name] == size and name not in found]
            # Where several have the size, the one with the most zeros is the pruned one.
            candidates = own or shared or [name for name in named if name not in found]
            if candidates:
                found.append(max(candidates, key=profile.sparsity.__getitem__))
    return [(profile.weight_sizes[name], profile.sparsity[name]) for name in found]


def _scopes(layer: Layer) -> list[str]:
    """How the names of a layer's tensors begin."""
    if isinstance(layer, keras.layers.Bidirectional):
        parts = (layer.forward_layer, layer.backward_layer)
        return [f"L.{layer.name}_{part.name}/" for part in parts]
    return [f"L.{layer.name}/"]
