"""The recipe that keeps to a target: its file's input and output types, and the scales of its kernels."""

from __future__ import annotations

from tfmot_ops.contract import Activations, Backend, IoType, Recipe, Target, Weights, WeightScales
from tfmot_ops.errors import SpecError


def adapted(recipe: Recipe, target: Target | None) -> Recipe:
    """The recipe with the numeric types and scales that the target takes.

    Args:
        recipe: what to do.
        target: for which device; None changes nothing.

    Raises:
        SpecError: the recipe gives files that the target does not take.
    """
    if target is None or recipe.quantization is None:
        return recipe
    own = {name: getattr(target, name) for name in ("input_type", "output_type", "operations")}
    changes = {name: value for name, value in own.items() if value is not None}
    if target.weight_scales is WeightScales.PER_TENSOR:
        changes["weight_scales"] = target.weight_scales
    if not changes:
        return recipe
    _require_integers(recipe, target)
    return recipe.model_copy(update={"quantization": recipe.quantization.model_copy(update=changes)})


def _require_integers(recipe: Recipe, target: Target) -> None:
    quantization = recipe.quantization
    if quantization is None:
        return
    wants_integers = {target.input_type, target.output_type} & {IoType.INT8, IoType.UINT8}
    is_int8 = (quantization.weights, quantization.activations) == (Weights.INT8, Activations.INT8)
    if wants_integers and not is_int8:
        raise SpecError(
            f"recipe {recipe.name} is not for target {target.name}",
            required="int8 weights and int8 activations",
            received=f"{quantization.weights} weights and {quantization.activations} activations",
            remedy="take a recipe such as wi8_ai8 or wi8_ai8_ptq, or another target",
        )
    if wants_integers and quantization.keep is not None:
        raise SpecError(
            f"recipe {recipe.name} is not for target {target.name}",
            required="every layer in int8",
            received=f"keep, which leaves up to {quantization.keep.budget:.0%} of the weights in float",
            remedy="take the recipe without `keep`, or another target",
        )
    if quantization.backend is Backend.AI_EDGE_QUANTIZER and target.weight_scales is WeightScales.PER_TENSOR:
        raise SpecError(
            f"recipe {recipe.name} is not for target {target.name}",
            required="one scale per kernel, which the converter makes",
            received=f"backend {quantization.backend}",
            remedy="take the recipe without `aeq`",
        )
