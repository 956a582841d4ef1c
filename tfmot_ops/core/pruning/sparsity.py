"""Sparsity of kernels: which kernels a recipe prunes, how many zeros they have, and masks that keep the zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfmot_ops.contract import Recipe
from tfmot_ops.core.graph.ir import Node, layer_paths
from tfmot_ops.core.graph.operations import Kernel
from tfmot_ops.core.graph.roles import kernel_of, kernels
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.keras.values import value_of
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.errors import SparsityLostError
from tfmot_ops.recipes.scope import select

#: How far a kernel's fraction of zeros may be below its ratio: tfmot rounds the number of zeros to a whole weight.
_TOLERANCE = 0.01


def tolerance(size: int) -> float:
    """How far the fraction of zeros of a kernel of `size` weights may be below its ratio: 0.01, or 1 weight if more."""
    return max(_TOLERANCE, 1.0 / max(size, 1))


def prunable(model: keras.Model, recipe: Recipe) -> dict[str, tuple[Any, tuple[Kernel, ...]]]:
    """Path -> (layer, kernels to prune), by the recipe's sparsity scope and the operation table's defaults.

    A frozen layer in a model with trainable layers is pruned only if the scope includes it, as it cannot adapt.

    Raises:
        ScopeError: a selector of the scope matches no layer.
    """
    if recipe.sparsity is None:
        return {}
    layers = list(_inner_paths(model))
    # In a model that is frozen as a whole, `trainable` does not distinguish the layers.
    some_train = any(layer.trainable for _, layer in layers if kernels(layer))
    named = select(recipe.sparsity.scope, [(path, type(layer).__name__) for path, layer in layers])
    chosen: dict[str, tuple[Any, tuple[Kernel, ...]]] = {}
    for path, layer in layers:
        decision = named[path]
        found = tuple(
            kernel
            for kernel in kernels(layer)
            if (decision or (kernel.pruned_by_default and (layer.trainable or not some_train)))
            and _pattern_fits(layer, kernel, recipe)
        )
        if found and decision is not False:
            chosen[path] = (layer, found)
    return chosen


def required_ratio(
    chosen: Mapping[str, tuple[Layer, tuple[Kernel, ...]]], node: Node, kernel: Kernel, ratio: float
) -> float:
    """Fraction of zeros that a kernel of a normalised graph must have: `ratio`, or 0 if the kernel is not pruned.

    Args:
        chosen: from `prunable`, for the model that the graph was read from.
        node: a call of the graph.
        kernel: one of the kernels of the call's layer.
        ratio: the recipe's fraction of zeros.
    """
    _, found = chosen.get(node.origin, (None, ()))
    names = {entry.attribute for entry in found}
    return ratio if (node.source_kernel or kernel.attribute) in names else 0.0


def _path_within(path: str, layer: Layer) -> str:
    """The path of the layer inside a wrapper, to whose name tfmot adds a prefix (`quant_conv` -> `conv`)."""
    inner = inner_layer(layer)
    return path if inner is layer else path.removesuffix(layer.name) + inner.name


def _inner_paths(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer, without the wrappers of tfmot."""
    return ((_path_within(path, layer), inner_layer(layer)) for path, layer in layer_paths(model))


def _pattern_fits(layer: Layer, kernel: Kernel, recipe: Recipe) -> bool:
    """Whether a kernel can take the recipe's sparsity pattern; so can a kernel that is not built yet."""
    value = kernel_of(layer, kernel.attribute)
    return recipe.sparsity is not None and (value is None or recipe.sparsity.fits(tuple(map(int, value.shape))))


def layer_sparsity(model: keras.Model) -> dict[str, float]:
    """Path -> fraction of weights that are exactly 0 in the layer's kernels, for every layer that has kernels."""
    result = {}
    for path, layer in layer_paths(model):
        inner = inner_layer(layer)
        values = [_value(layer, inner, kernel.attribute) for kernel in kernels(inner)]
        size = sum(value.size for value in values)
        if size:
            result[_path_within(path, layer)] = float(sum(int((value == 0).sum()) for value in values) / size)
    return result


def _value(layer: Layer, inner: Layer, attribute: str) -> np.ndarray:
    """A kernel's value, multiplied by the mask if a quantisation wrapper has one."""
    for (variable, _, extra), name in zip(private.weight_variables(layer), _quantized_names(layer), strict=True):
        if name == attribute:
            value = value_of(variable)
            return value * value_of(extra["mask"]) if "mask" in extra else value
    return value_of(kernel_of(inner, attribute))


def _quantized_names(layer: Layer) -> tuple[str, ...]:
    config = getattr(layer, "quantize_config", None)
    return tuple(getattr(config, "weights", ())) if private.weight_variables(layer) else ()


def set_masks_and_clusters(model: keras.Model) -> None:
    """Set masks and cluster indices of a QAT model's weight quantisers from its present weights, in place.

    A mask is 1 where the weight is not 0; a cluster is the set of weights with the same value.
    """
    for layer in model.layers:
        for variable, _, extra in private.weight_variables(layer):
            if "mask" in extra:
                extra["mask"].assign(np.not_equal(value_of(variable), 0).astype(np.float32))
            if "clusters" in extra:
                _, clusters = np.unique(value_of(variable), return_inverse=True)
                extra["clusters"].assign(np.reshape(clusters, variable.shape))


def assert_sparsity(model: keras.Model, recipe: Recipe) -> dict[str, float]:
    """Check that each layer that the recipe prunes has the recipe's fraction of zeros.

    Returns:
        Path -> fraction of zeros, for the layers that the recipe prunes.

    Raises:
        SparsityLostError: a layer has fewer zeros; names the layer.
    """
    if recipe.sparsity is None:
        return {}
    measured = {}
    for path, (layer, found) in prunable(model, recipe).items():
        wrapped = next(outer for p, outer in layer_paths(model) if _path_within(p, outer) == path)
        values = [_value(wrapped, layer, kernel.attribute) for kernel in found]
        require_sparsity(path, values, recipe.sparsity.ratio)
        measured[path] = float(sum((v == 0).sum() for v in values) / sum(v.size for v in values))
    return measured


def require_sparsity(path: str, values: list[np.ndarray], ratio: float) -> None:
    """Check that the arrays together have at least the fraction `ratio` of zeros, up to `tolerance`.

    Raises:
        SparsityLostError: they have fewer; names `path`.
    """
    size = sum(value.size for value in values)
    found = sum(int((value == 0).sum()) for value in values) / size
    if found < ratio - tolerance(size):
        raise SparsityLostError(
            f"layer {path!r} lost its sparsity",
            required=f"a fraction of zeros of at least {ratio:.3f} (tolerance {tolerance(size):.3f})",
            received=f"{found:.3f} in {size} weights",
            remedy="train with core.pruning_callbacks() while pruning, and quantise the stripped model "
            "with the same recipe",
        )
