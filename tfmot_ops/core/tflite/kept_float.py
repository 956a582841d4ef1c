"""The calls that PTQ leaves in float: excluded ones, masked attention, and those around functions that diverge at 0."""

from __future__ import annotations

from tfmot_ops.contract import Activations, Backend, Recipe
from tfmot_ops.core.graph.divergence import calls_before_divergence, diverges_on_result_of
from tfmot_ops.core.graph.ir import Graph, Node, unique_names
from tfmot_ops.core.graph.layers import MaskedScores
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.tflite.scopes import scopes_of
from tfmot_ops.errors import RecipeError
from tfmot_ops.recipes.scope import select

_L = keras.layers
_MASKED_IN_FLOAT = (
    *(_L.MultiHeadAttention, _L.Attention, _L.AdditiveAttention, _L.Softmax),
    *(_L.RNN, _L.Bidirectional, _L.TimeDistributed),
)


def scopes_left_in_float(source: Graph, normal: Graph, recipe: Recipe) -> tuple[str, ...]:
    """Name scopes of the calls that PTQ leaves in float.

    These are the calls that the recipe's scope excludes, masked attention and recurrent layers (`_stays_float`), and
    diverging functions with the calls that prepare their operand (`divergence.calls_before_divergence`).

    Args:
        source: graph of the user's model; the recipe's scope refers to its layers.
        normal: the same graph after `normalize_graph`.
        recipe: the recipe.
    """
    quantization = recipe.quantization
    if quantization is None:
        return ()
    layers = [(node.path, type(node.layer).__name__) for node in source.nodes]
    excluded = {path for path, chosen in select(quantization.scope, layers).items() if chosen is False}
    types = f"{quantization.weights} weights and {quantization.activations} activations"
    if excluded and quantization.backend is Backend.CONVERTER and quantization.activations is not Activations.INT8:
        raise RecipeError(
            f"recipe {recipe.name!r}: the TFLite converter quantises all layers or none to {types}",
            required="no quantization.scope, or int8 activations",
            received=f"a scope that excludes {', '.join(sorted(excluded))}",
            remedy="remove the scope, use activations: int8, or (int8 weights) backend: ai_edge_quantizer",
        )
    names = unique_names(dict.fromkeys(node.path for node in normal.nodes), normal.input_names.values())
    float_calls = calls_before_divergence(normal) if rounds_activations(recipe) else set()
    masked = _around_masked_scores(normal)
    kept = [
        node
        for node in normal.nodes
        if node.origin in excluded
        or _stays_float(node)
        or node in float_calls | masked
        or diverges_on_result_of(node, float_calls)
    ]
    scopes = scopes_of(names.values())
    return tuple(dict.fromkeys(scopes[names[node.path]] for node in kept))


def _around_masked_scores(graph: Graph) -> set[Node]:
    """The calls that mask scores, those that compute the scores, and those that read masked ones.

    A calibrated range of masked scores has -1e9 in it. The converter's calibration also finds it for the scores
    themselves, as their sum with -1e9 is written to the same memory.
    """
    masking = {node for node in graph.nodes if isinstance(node.layer, MaskedScores)}
    before = {tensor.producer for node in masking for tensor in node.inputs() if tensor.is_float and tensor.producer}
    after = {node for node in graph.nodes if any(tensor.producer in masking for tensor in node.inputs())}
    return masking | before | after


def rounds_activations(recipe: Recipe) -> bool:
    """Whether activations become int8."""
    return recipe.quantization is not None and recipe.quantization.activations is Activations.INT8


def _stays_float(node: Node) -> bool:
    """Whether PTQ to int8 breaks a call: a function that may diverge, or a layer with a mask.

    Masked attention adds -1e9 to the scores of masked positions: in a range that contains -1e9, all other scores round
    to one level. A masked recurrent layer selects between old and new state: in int8, XNNPACK (ai-edge-litert 2.3)
    crashes on it.
    """
    masks = [node.kwargs.get(name) for name in ("mask", "attention_mask", "use_causal_mask")]
    if isinstance(node.layer, Pointwise) and node.layer.diverges:
        return True
    return isinstance(node.layer, _MASKED_IN_FLOAT) and not all(mask is None or mask is False for mask in masks)
