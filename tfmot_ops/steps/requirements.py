"""What a step requires of the model it is given and of the file it made; refused by name before more work is done."""

from __future__ import annotations

from typing import Any

from tfmot_ops.contract import Activations, LayerReport, Method, Outcome, Recipe, Weights
from tfmot_ops.errors import ExportError, SparsityLostError, SpecError

#: Layer classes that multiply and accumulate, and that TFLite computes in int8.
_INT8_CLASSES = frozenset(
    {
        *("Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Dense", "EinsumDense", "MultiHeadAttention"),
        *("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"),
    }
)


def is_being_pruned(model: Any) -> bool:
    """Whether a layer of the model has a pruning wrapper."""
    return bool(_wrapped(model))


def require_pruning_wrappers(step: str, model: Any, recipe: Recipe) -> None:
    """Refuse a model without pruning wrappers where the recipe prunes: the step before was left out.

    Raises:
        SpecError: no layer of the model is wrapped.
    """
    if recipe.sparsity is not None and not is_being_pruned(model):
        raise SpecError(
            f"{step}: recipe {recipe.name} prunes, but nothing in the model is being pruned",
            required="the model that a prune step with this recipe gave, which holds pruning wrappers",
            received=f"model {model.name} without pruning wrappers",
            remedy=f"put a prune step before {step}, or use a recipe without sparsity",
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
            remedy="give the model from before its quantize step",
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
            required="the model that a strip step gave",
            received=f"pruning wrappers around {len(wrapped)} layers, the first {wrapped[0]}",
            remedy=f"put a strip step between fine_tune and {step}",
        )


def require_pruned(step: str, model: Any, recipe: Recipe) -> None:
    """Refuse a model that does not hold the zeros of its recipe.

    Raises:
        SpecError: a layer holds fewer zeros than the recipe asks for.
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
            required="a layer with a kernel that is in the recipe's scope and takes its pattern",
            received=f"{len(layers)} layers: {'; '.join(reasons)}",
            remedy="name layers in the recipe's sparsity.scope, change its pattern, or use a recipe without sparsity",
        )


def require_int8(recipe: Recipe, layers: list[LayerReport], profile: Any) -> None:
    """Refuse a file in which nothing is int8 although its recipe asks for int8 weights and activations.

    A file is right to be in float where no layer has an int8 form (an LSTM has none), where the recipe's scope leaves
    all of those out, or where quantisation-aware training kept them in float and reports why.

    Args:
        recipe: the recipe.
        layers: what became of each layer.
        profile: `core.TFLiteProfile` of the file.

    Raises:
        ExportError: no multiply-accumulate of the file is int8.
    """
    types = recipe.quantization and (recipe.quantization.weights, recipe.quantization.activations)
    if types != (Weights.INT8, Activations.INT8) or not profile.macs or profile.int8_mac_fraction > 0.0:
        return
    expected = [layer.path for layer in layers if _is_to_be_int8(layer, recipe, layers)]
    if expected:
        raise ExportError(
            f"the TFLite file is not what recipe {recipe.name} says: nothing in it is computed in int8",
            required=f"int8 in {len(expected)} layers, the first {expected[0]}",
            received=f"{profile.macs} multiply-accumulates, all in float",
            remedy="check the model's weights and the calibration samples for NaN and infinity",
        )


def _is_to_be_int8(layer: LayerReport, recipe: Recipe, layers: list[LayerReport]) -> bool:
    from tfmot_ops.core.scope import select

    quantization = recipe.quantization
    if quantization is None or layer.class_name not in _INT8_CLASSES:
        return False
    if quantization.method is Method.QAT:
        return layer.outcome is Outcome.QUANTIZED
    # After training the converter quantises what the scope does not exclude; the report only says what it did.
    return select(quantization.scope, [(each.path, each.class_name) for each in layers])[layer.path] is not False


def _wrapped(model: Any) -> list[str]:
    from tfmot_ops.core.graph.ir import layer_paths

    return [path for path, layer in layer_paths(model) if hasattr(layer, "pruning_vars")]
