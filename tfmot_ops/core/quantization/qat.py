"""Float model -> quantisation-aware model: normalise, place the quantisers, rebuild once, calibrate."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tfmot_ops.contract import LayerReport, Method, Quantization, Recipe
from tfmot_ops.core.graph.equalization import equalize
from tfmot_ops.core.graph.finite import require_finite_weights
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, free_name, scope_safe_name, tensors, unique_names
from tfmot_ops.core.graph.new_values import extended_to_readers, refuse_outlier_constants, refuse_pads_beyond_float16
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import OnTensor, rebuild
from tfmot_ops.core.graph.samples import Calibration, calibration_batches
from tfmot_ops.core.keras.compiling import compile_like
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.policies import new_layers_with_policy
from tfmot_ops.core.keras.private import QuantizeLayer, QuantizeWrapper
from tfmot_ops.core.keras.types import Layer, TensorLike
from tfmot_ops.core.pruning.sparsity import prunable, required_ratio, set_masks_and_clusters
from tfmot_ops.core.quantization.calibration import calibrate
from tfmot_ops.core.quantization.quantizers import QuantizedLayer
from tfmot_ops.core.quantization.scheme import Plan, RequiredSparsity, make_plan, output_quantizer
from tfmot_ops.core.quantization.without_rounding import call_unrounded
from tfmot_ops.errors import RecipeError, UnsupportedModelError


@new_layers_with_policy("float32")
def normalize(model: keras.Model) -> keras.Model:
    """A flat functional copy of a model with equal outputs and weights; weighted layers keep their names.

    Layers of another float type, as in mixed precision, become float32.

    Args:
        model: float model; it is not changed.

    Returns:
        The normalised model, compiled like the original.

    Raises:
        UnsupportedModelError: the model has no layer graph, or a layer cannot be copied.
    """
    flat = rebuild(normalize_graph(read_graph(model)))
    compile_like(flat, model)
    return flat


@new_layers_with_policy("float32")
def quantize(
    model: keras.Model, recipe: Recipe, calibration: Calibration | None = None
) -> tuple[keras.Model, list[LayerReport]]:
    """Insert the recipe's quantisers into a copy of a model and set their ranges.

    The copy computes in float32, also where the model has layers of another float type, as in mixed precision.

    Args:
        model: float model without pruning wrappers (see `strip`). If the recipe has a sparsity, zeros in the kernels
            stay zero during QAT.
        recipe: a recipe with quantization.method: qat.
        calibration: an array [N, ...], a list or dict of arrays, one per input, or a tf.data.Dataset of such batches.
            None leaves the activation ranges at their initial -6 to 6 until the model is trained; `export_tflite` warns
            if it was not.

    Returns:
        The QAT model, compiled like the original, and one report per layer.

    Raises:
        RecipeError: the recipe has no QAT quantisation.
        UnsupportedModelError: the model is quantised already, has pruning wrappers, a Lambda layer or string tensors,
            or has no layer graph.
        CalibrationError: the data does not fit the model's inputs, or a value is NaN or infinite.
        NotFiniteError: a weight is NaN or infinite; names the layer.
    """
    if recipe.quantization is None or recipe.quantization.method is not Method.QAT:
        raise RecipeError(
            "quantize inserts quantisers for training",
            required="a recipe with quantization.method: qat",
            received=f"recipe {recipe.name!r} with quantization {recipe.quantization}",
            remedy="call export_tflite directly for a PTQ or float recipe",
        )
    require_kept_layers_chosen(recipe)
    source = read_graph(model)
    require_finite_weights(model)
    with _without_garbage_collection():
        quantized, reports = _with_quantisers(model, source, recipe)
    if calibration is not None:
        samples = recipe.quantization.calibration_samples
        _refuse_outlier_constants(read_graph(quantized), calibration, samples)
        calibrate(quantized, calibration, samples, recipe.quantization)
    compile_like(quantized, model)
    return quantized, reports


def require_kept_layers_chosen(recipe: Recipe) -> None:
    """Refuse a recipe whose `quantization.keep` has not been carried out: the layers to keep are not chosen yet."""
    if recipe.quantization is not None and recipe.quantization.keep is not None:
        raise RecipeError(
            "the layers that quantization.keep leaves in float are not chosen yet",
            required="the recipe that core.keep_sensitive returns",
            received=f"recipe {recipe.name!r} with quantization.keep",
            remedy="call core.keep_sensitive(model, recipe, calibration), and go on with its recipe",
        )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection while the graph is built.

    Nothing becomes garbage then, and each collection would scan all of TensorFlow's objects. Quantising NASNetMobile
    takes an eighth less CPU time without collections.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _with_quantisers(model: keras.Model, source: Graph, recipe: Recipe) -> tuple[keras.Model, list[LayerReport]]:
    """The QAT model with initial ranges, not compiled, and one report per layer; `source` is the graph of `model`."""
    _refuse_unsupported_layers(source)
    graph = normalize_graph(source, for_qat=True)
    if recipe.quantization is not None and recipe.quantization.equalize:
        equalize(graph)
    _refuse_lambdas(graph)
    refuse_pads_beyond_float16(graph)
    plan = make_plan(graph, source, recipe.quantization or Quantization(), _required_sparsity(model, recipe))

    def wrap(layer: Layer, node: Node) -> Any:
        config = plan.configs.get(node.layer)
        return layer if config is None else QuantizedLayer(layer, config)

    quantized = rebuild(graph, wrap, _on_tensor(graph, plan))
    set_masks_and_clusters(quantized)
    return quantized, plan.reports


def _refuse_outlier_constants(graph: Graph, calibration: Calibration, samples: int) -> None:
    rounds = extended_to_readers(graph, lambda node: output_quantizer(node.layer) is not None)
    refuse_outlier_constants(graph, calibration_batches(graph, calibration, samples), call_unrounded, rounds)


def _on_tensor(graph: Graph, plan: Plan) -> OnTensor:
    """The function that `rebuild` calls for each tensor: it inserts the QuantizeLayers of the plan."""
    #: Tensor -> (the graph input or layer that produces it, which of its results it is).
    places: dict[Tensor, tuple[Tensor | Layer, int]] = {t: (t, 0) for t in graph.input_names}
    layers = unique_names(dict.fromkeys(node.path for node in graph.nodes), graph.input_names.values())
    for node in graph.nodes:
        places |= {tensor: (node.layer, index) for index, tensor in enumerate(tensors(node.outputs))}
    used = {*layers.values(), *graph.input_names.values()}
    made: dict[tuple[Tensor | Layer, int], Any] = {}

    def on_tensor(tensor: Tensor, value: TensorLike) -> Any:
        quantizer = plan.tensors.get(tensor)
        if quantizer is None:
            return value
        key = places[tensor]
        # A shared layer has one range for all its calls.
        if key not in made:
            producer = graph.input_names[tensor] if tensor.producer is None else layers[tensor.producer.path]
            made[key] = QuantizeLayer(quantizer, name=free_name(_quantizer_name(producer), key[1], used))
        return made[key](value)

    return on_tensor


def _quantizer_name(producer: str) -> str:
    """A quantiser's name; without dots, at which Keras splits the names of variables when it loads a SavedModel."""
    return f"quantize_{scope_safe_name(producer)}".replace(".", "_")


def _required_sparsity(model: keras.Model, recipe: Recipe) -> RequiredSparsity | None:
    if recipe.sparsity is None:
        return None
    chosen, ratio = prunable(model, recipe), recipe.sparsity.ratio
    return lambda node, kernel: required_ratio(chosen, node, kernel, ratio)


def _refuse_lambdas(graph: Graph) -> None:
    """Refuse the Lambda layers that normalisation could not replace by what their function computes."""
    for node in graph.nodes:
        if isinstance(node.layer, keras.layers.Lambda):
            raise UnsupportedModelError(
                f"layer {node.path!r}: what the function of this Lambda layer computes cannot be recorded",
                required="a function made of TensorFlow functions on tensors, without variables or NumPy",
                received="a Lambda layer whose function does not take symbolic tensors, or does something else at "
                "each call",
                remedy="call the function on the tensors themselves, or make it a Layer with get_config, registered by "
                "register_keras_serializable",
            )


def _refuse_unsupported_layers(graph: Graph) -> None:
    """Refuse pruning wrappers, string tensors, and layers that are quantised already."""
    for node in graph.nodes:
        if isinstance(node.layer, keras.layers.Wrapper) and hasattr(node.layer, "pruning_vars"):
            raise UnsupportedModelError(
                f"layer {node.path!r} still has its pruning wrapper",
                required="a stripped model",
                received=type(node.layer).__name__,
                remedy="call core.strip(model) first",
            )
        if "string" in {tensor.dtype for tensor in (*node.inputs(), *tensors(node.outputs))}:
            raise UnsupportedModelError(
                f"layer {node.path!r} works on strings, which an int8 model cannot process",
                required="numbers as inputs of the model",
                received=type(node.layer).__name__,
                remedy="do the lookup before the model: in the data, or in a separate model that runs before this one",
            )
        if isinstance(node.layer, QuantizeWrapper | QuantizeLayer):
            raise UnsupportedModelError(
                f"layer {node.path!r} is quantised already",
                required="a float model",
                received=type(node.layer).__name__,
                remedy="start from the model before quantize",
            )
