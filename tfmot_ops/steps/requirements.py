"""Checks of a step's input model. A refusal names the step that is missing before this one."""

from __future__ import annotations

from typing import Any

from tfmot_ops.contract import LayerReport, Outcome, Recipe
from tfmot_ops.errors import SparsityLostError, SpecError

#: Difference between two fractions of zeros that are meant to be equal.
_TOLERANCE = 1e-3


def is_being_pruned(model: Any) -> bool:
    """Whether a layer of the model has a pruning wrapper."""
    return bool(_wrapped(model))


def require_pruning_wrappers(step: str, model: Any, recipe: Recipe) -> None:
    """Refuse a model without pruning wrappers when the recipe prunes: the prune step was left out.

    Raises:
        SpecError: no layer of the model is wrapped, or the wrappers are those of a recipe with fewer zeros.
    """
    require_wrappers_of(step, model, recipe)
    if recipe.sparsity is not None and not is_being_pruned(model):
        raise SpecError(
            f"{step}: recipe {recipe.name} prunes, but nothing in the model is being pruned",
            required="the output of a prune step with this recipe, which has pruning wrappers",
            received=f"model {model.name} without pruning wrappers",
            remedy=f"put a prune step before {step}, or use a recipe without sparsity",
        )


def require_wrappers_of(step: str, model: Any, recipe: Recipe) -> None:
    """Refuse pruning wrappers whose schedules end at fewer zeros than the recipe requires; a training cannot mend it.

    Raises:
        SpecError: a wrapper is of another recipe.
    """
    from tfmot_ops.core.graph.ir import layer_paths

    if recipe.sparsity is None:
        return
    for path, layer in layer_paths(model):
        schedule = getattr(layer, "pruning_schedule", None)
        target = getattr(schedule, "final_sparsity", getattr(schedule, "target_sparsity", None))
        if target is not None and target < recipe.sparsity.ratio - _TOLERANCE:
            raise SpecError(
                f"{step}: the model is being pruned by another recipe than {recipe.name}",
                required=f"pruning wrappers that end at {recipe.sparsity.ratio:.3g} zeros",
                received=f"a wrapper that ends at {target:.3g} zeros, {path}",
                remedy=f"put strip, and prune with the recipe {recipe.name}, before {step}, or take the first recipe",
            )


def require_float(step: str, model: Any) -> None:
    """Refuse a model with quantisers.

    Raises:
        SpecError: layers of the model are quantised.
    """
    from tfmot_ops.core.graph.ir import layer_paths

    quantized = [path for path, layer in layer_paths(model) if hasattr(layer, "quantize_config")]
    if quantized:
        raise SpecError(
            f"{step}: the model is quantised already",
            required="a float model",
            received=f"quantisers in {len(quantized)} layers, the first {quantized[0]}",
            remedy="use the model that was the input of the quantize step",
        )


def require_stripped(step: str, model: Any) -> None:
    """Refuse a model with pruning wrappers.

    Raises:
        SpecError: layers of the model are wrapped.
    """
    wrapped = _wrapped(model)
    if wrapped:
        raise SpecError(
            f"{step}: the model still has its pruning wrappers",
            required="the output of a strip step",
            received=f"pruning wrappers around {len(wrapped)} layers, the first {wrapped[0]}",
            remedy=f"put a strip step between fine_tune and {step}",
        )


def require_pruned(step: str, model: Any, recipe: Recipe) -> None:
    """Refuse a model whose kernels have fewer zeros than the recipe requires.

    Raises:
        SpecError: a kernel has fewer zeros than the recipe requires.
    """
    from tfmot_ops import core

    try:
        core.assert_sparsity(model, recipe)
    except SparsityLostError as error:
        raise SpecError(
            f"{step}: recipe {recipe.name} prunes, but the model is not pruned: {error.summary}",
            required=error.required,
            received=error.received,
            remedy=f"put the steps prune, fine_tune and strip, with this recipe, before {step}, "
            "or use a recipe without sparsity",
        ) from error


def require_pruned_layers(layers: list[LayerReport], recipe: Recipe) -> None:
    """Refuse a recipe that prunes no layer of the model.

    Raises:
        SpecError: no report says `pruned`.
    """
    if not any(layer.outcome is Outcome.PRUNED for layer in layers):
        reasons = sorted({layer.reason for layer in layers})
        raise SpecError(
            f"prune: recipe {recipe.name} prunes no layer of the model",
            required="a layer whose kernel is in the recipe's scope and whose shape allows the recipe's pattern",
            received=f"{len(layers)} layers: {'; '.join(reasons)}",
            remedy="name layers in the recipe's sparsity.scope, change its pattern, or use a recipe without sparsity",
        )


def _wrapped(model: Any) -> list[str]:
    from tfmot_ops.core.graph.ir import layer_paths

    return [path for path, layer in layer_paths(model) if hasattr(layer, "pruning_vars")]
