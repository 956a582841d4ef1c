"""Model -> TFLite: configures the converter, reports its errors as ExportError, and checks the file's sparsity."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.contract import Activations, Backend, IoType, Method, Quantization, Recipe, Weights, WeightScales
from tfmot_ops.core.graph.divergence import calls_before_divergence
from tfmot_ops.core.graph.equalization import equalize
from tfmot_ops.core.graph.finite import require_finite_weights
from tfmot_ops.core.graph.ir import Graph, scope_safe_name, tensors, unique_names
from tfmot_ops.core.graph.new_values import extended_to_readers, refuse_outlier_constants, refuse_pads_beyond_float16
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import rebuild
from tfmot_ops.core.graph.rewrite import rewrite
from tfmot_ops.core.graph.rules.padding import pad_by_sum
from tfmot_ops.core.graph.run import infer
from tfmot_ops.core.graph.samples import Calibration, batch_size_of, calibration_batches
from tfmot_ops.core.keras.batches import stateful_layers
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.policies import new_layers_with_policy
from tfmot_ops.core.keras.private import QuantizeLayer, QuantizeWrapper
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.quantization.observers import observer_of
from tfmot_ops.core.quantization.qat import require_kept_layers_chosen
from tfmot_ops.core.quantization.ranges import layers_with_initial_range
from tfmot_ops.core.tflite.convert import insert_after_calibration, make_converter
from tfmot_ops.core.tflite.emit import inference_function
from tfmot_ops.core.tflite.file_ranges import widen_calibrated
from tfmot_ops.core.tflite.kept_float import rounds_activations, scopes_left_in_float
from tfmot_ops.core.tflite.late_weights import LateWeights, LateWeightsError
from tfmot_ops.core.tflite.observed_ranges import observe_calibrated
from tfmot_ops.core.tflite.ptq_ai_edge import quantize_file
from tfmot_ops.core.tflite.scopes import scopes_of
from tfmot_ops.core.tflite.signature import with_model_names
from tfmot_ops.core.tflite.sparsity_check import check_sparsity, required_of_float, required_of_quantized
from tfmot_ops.core.tflite.tables import Tables, TablesError
from tfmot_ops.errors import ExportError, TfmotOpsError

_L = keras.layers
_LOG = logging.getLogger(__name__)
#: Samples of the converter's own calibration. Its ranges are replaced by those that `observed_ranges` finds on all
#: samples, but for tensors that an interpreter cannot read.
_CONVERTER_SAMPLES = 64
#: Layers that a warning names.
_NAMES_SHOWN = 5


@new_layers_with_policy("float32")
def export_tflite(model: keras.Model, recipe: Recipe, calibration: Calibration | None = None) -> bytes:
    """Convert a model to a TFLite file, of the model's batch size where that is fixed, else of 1.

    Layers that keep their state from batch to batch (`stateful=True`) start from 0 in each call of the file.

    Args:
        model: from `quantize` for a QAT recipe; a float model for a PTQ recipe or a recipe without quantisation.
        recipe: sets the numeric types. Float inputs and outputs get the activations' type (int8 or int16), if the
            recipe sets no other; integer inputs keep their type.
        calibration: representative data for PTQ (see `quantize`); for QAT it only gives spatial sizes that
            the model leaves open.

    Returns:
        The flatbuffer, with the signature `serving_default`: the names of the model's inputs and outputs.

    Warns:
        UserWarning: the ranges of a QAT model were set by neither calibration nor training.

    Raises:
        ExportError: the converter refuses the model, PTQ has no calibration data, or a size stays unknown.
        NotFiniteError: a weight or the range of a quantiser is NaN or infinite; names the layer.
        CalibrationError: the calibration data, or a layer's output for it, is NaN or infinite.
        SparsityLostError: an int8 kernel has fewer zeros than the recipe's sparsity; names the layer.
    """
    quantized = any(isinstance(layer, QuantizeWrapper | QuantizeLayer) for layer in model.layers)
    graph = read_graph(model)
    _warn_of_state(graph)
    _check_kind(recipe, quantized)
    require_finite_weights(model)
    float_scopes: tuple[str, ...] = ()
    if quantized:
        _warn_of_ranges_never_set(graph)
        required = required_of_quantized(graph)
    else:
        require_kept_layers_chosen(recipe)
        normal = normalize_graph(graph)
        if recipe.quantization is not None and recipe.quantization.equalize:
            equalize(normal)
        required = required_of_float(normal, model, recipe)
        float_scopes = scopes_left_in_float(graph, normal, recipe)
        _refuse_outlier_constants(normal, recipe, calibration, float_scopes)
        # Rebuilt as a model, as layers that a rule made are not built yet.
        graph = read_graph(rebuild(_with_int16_padding(normal, recipe)))
    data = _converted(graph, recipe, calibration, quantized=quantized, float_scopes=float_scopes)
    if recipe.quantization and recipe.quantization.backend is Backend.AI_EDGE_QUANTIZER:
        rows = lambda: _representative(recipe, graph, calibration)()  # noqa: E731, PLW0108 - lazy
        data = quantize_file(data, recipe, rows, _tensors_in_scopes(data, graph, float_scopes))
    check_sparsity(data, required, graph)
    return with_model_names(data, model, graph)


def _converted(
    graph: Graph, recipe: Recipe, calibration: Calibration | None, *, quantized: bool, float_scopes: tuple[str, ...]
) -> bytes:
    """Convert a graph; again without late weights, or with fewer tables, if a placeholder cannot be replaced.

    If the converter refuses a QAT graph, it is converted again with fewer ranges, see `inference_function`.
    """
    late: LateWeights | None = LateWeights(floats=_writes_float_kernels_late(recipe, quantized))
    tables = Tables(operations=_operations(recipe))
    range_of_reshaped = quantized
    while True:
        try:
            made = tables if quantized else None
            emit = partial(inference_function, tables=made, range_of_reshaped=range_of_reshaped)
            return tables.fill(_convert(graph, recipe, calibration, late, float_scopes, emit=emit))
        except LateWeightsError as error:
            _LOG.info("large kernels cannot be written later (%s): converting with all weights in memory", error)
            late = None
        except TablesError as error:
            _LOG.warning("kept in float, as an int8 result is not finite or the input is float: %s", error)
            tables = Tables(error.names, _operations(recipe))
        except ExportError:
            if not range_of_reshaped:
                raise
            range_of_reshaped = False


def _operations(recipe: Recipe) -> tuple[str, ...] | None:
    """The TFLite operations of the recipe's device; None for all."""
    return recipe.quantization.operations if recipe.quantization else None


def _writes_float_kernels_late(recipe: Recipe, quantized: bool) -> bool:
    """Whether float kernels may be written after the conversion.

    Not for dynamic-range quantisation and float16: there the converter rounds the kernels itself.
    """
    quantization = recipe.quantization
    if quantized or quantization is None or quantization.backend is Backend.AI_EDGE_QUANTIZER:
        return not quantized
    return quantization.weights is Weights.INT8 and quantization.activations is not Activations.FLOAT32


def _with_int16_padding(graph: Graph, recipe: Recipe) -> Graph:
    """A normalised graph, with `tf.pad` rewritten if the activations are int16 (see `pad_by_sum`)."""
    quantization = recipe.quantization
    is_int16 = quantization is not None and quantization.activations is Activations.INT16
    return rewrite(graph, [pad_by_sum]) if is_int16 else graph


def _refuse_outlier_constants(
    graph: Graph, recipe: Recipe, calibration: Calibration | None, float_scopes: tuple[str, ...]
) -> None:
    """For PTQ, refuse constants that leave too few levels for the values they share a range with (`new_values`)."""
    quantization = recipe.quantization
    if quantization is not None and quantization.weights is Weights.FLOAT16:
        refuse_pads_beyond_float16(graph)
    if quantization is None or calibration is None or not _is_calibrated(recipe):
        return
    bits = 16 if quantization.activations is Activations.INT16 else 8
    names = unique_names(dict.fromkeys(node.path for node in graph.nodes), graph.input_names.values())
    scopes = scopes_of(names.values())
    rounds = extended_to_readers(graph, lambda node: scopes[names[node.path]] not in float_scopes)
    batches = calibration_batches(graph, calibration, quantization.calibration_samples)
    compute = lambda node, args, kwargs: infer(node.layer, args, kwargs)  # noqa: E731 - as short as a name for it
    refuse_outlier_constants(graph, batches, compute, rounds, bits=bits)


def _tensors_in_scopes(data: bytes, graph: Graph, scopes: tuple[str, ...]) -> list[str]:
    """Names of the tensors in a float file whose operations compute a call of one of these name scopes."""
    file = schema.Model.GetRootAs(data, 0).Subgraphs(0)
    # The converter renames the model's output tensors, so they are recognised by their position.
    own = scopes_of(inner_layer(node.layer).name for node in graph.nodes)
    last = {
        file.Outputs(place)
        for place, tensor in enumerate(tensors(graph.outputs))
        if tensor.producer is not None and own[inner_layer(tensor.producer.layer).name] in scopes
    }
    found: list[str] = []
    for op in (file.Operators(place) for place in range(file.OperatorsLength())):
        written = [op.Outputs(place) for place in range(op.OutputsLength())]
        names = [file.Tensors(index).Name().decode() for index in written]
        joined = ";".join(names)
        if last & set(written) or any(part.startswith(scopes) for part in joined.split(";")):
            # The converter names an operation with several results by all their names, joined by `;`.
            found += dict.fromkeys([*names, joined])
    return found


def _convert(
    graph: Graph,
    recipe: Recipe,
    calibration: Calibration | None,
    late: LateWeights | None,
    float_scopes: tuple[str, ...],
    *,
    emit: Callable[..., Callable[..., Any]],
) -> bytes:
    """Convert a graph once by `emit`, which is `inference_function`; the caller replaces the placeholders of tables."""
    finish = {} if late is None else {"finish": late.fill}
    calibrated = _is_calibrated(recipe)
    float_calls = calls_before_divergence(graph) if rounds_activations(recipe) else set()
    per_channel = _is_per_channel(recipe)
    inference = emit(graph, late, float_calls, per_channel=per_channel)
    signature = _signature(graph, calibration)
    converter = make_converter(inference, signature, **finish, calibrated=calibrated, per_channel=per_channel)
    if calibrated:
        find_float_names = (lambda data: _tensors_in_scopes(data, graph, float_scopes)) if float_scopes else None
        change = _chosen_ranges(recipe, graph, calibration)
        insert_after_calibration(converter, change, find_float_names, per_channel=per_channel)
    _configure(converter, recipe, graph, calibration)
    try:
        with warnings.catch_warnings():
            # The converter warns that there is no representative data set; a QAT graph needs none.
            warnings.simplefilter("ignore")
            data: bytes = converter.convert()
    except (LateWeightsError, TfmotOpsError):
        raise
    except Exception as error:  # the converter raises bare Exception subclasses and RuntimeError
        raise ExportError(
            "the TFLite converter refused the model",
            required="operations that TFLite has",
            received=f"{type(error).__name__}: {error}",
            remedy="exclude the layer it names in the recipe's quantization.scope",
        ) from error
    return data


def _chosen_ranges(
    recipe: Recipe, graph: Graph, calibration: Calibration | None
) -> Callable[[bytes, list[str]], bytes]:
    """(calibrated float file, names of the tensors that stay in float) -> the file with the recipe's ranges."""
    observer = observer_of(recipe.quantization or Quantization())

    def change(data: bytes, float_names: list[str]) -> bytes:
        rows = _representative(recipe, graph, calibration)
        return widen_calibrated(observe_calibrated(data, rows(), observer), float_names)

    return change


def _is_calibrated(recipe: Recipe) -> bool:
    """Whether ranges are found by running the float file."""
    quantization = recipe.quantization
    return (
        quantization is not None
        and quantization.method is Method.PTQ
        and quantization.activations is not Activations.FLOAT32
    )


def _is_per_channel(recipe: Recipe) -> bool:
    """Whether int8 kernels get one scale for each output channel."""
    quantization = recipe.quantization
    return quantization is None or quantization.weight_scales is WeightScales.PER_CHANNEL


def _check_kind(recipe: Recipe, quantized: bool) -> None:
    wants = recipe.quantization is not None and recipe.quantization.method is Method.QAT
    if wants != quantized:
        raise ExportError(
            "the model does not fit the recipe",
            required="a model from core.quantize" if wants else "a float model",
            received="a quantised model" if quantized else "a float model",
            remedy="call core.quantize first" if wants else "export the model before core.quantize",
        )


def _configure(
    converter: tf.lite.TFLiteConverter, recipe: Recipe, graph: Graph, calibration: Calibration | None
) -> None:
    """Set the converter's numeric types, and its calibration data for PTQ."""
    quantization = recipe.quantization
    if quantization is None or quantization.backend is Backend.AI_EDGE_QUANTIZER:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization.weights is Weights.FLOAT16:
        converter.target_spec.supported_types = [tf.float16]
    if quantization.activations is Activations.FLOAT32:
        return
    integer = tf.int8 if quantization.activations is Activations.INT8 else tf.int16
    if any(tensor.is_float for tensor in graph.inputs()) and (_is_calibrated(recipe) or _rounds_an_input(graph)):
        converter.inference_input_type = _io_type(quantization.input_type, integer)
    converter.inference_output_type = _io_type(quantization.output_type, integer)
    if integer is tf.int16:
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
    if _is_calibrated(recipe):
        converter.representative_dataset = _representative(recipe, graph, calibration, _CONVERTER_SAMPLES)


def _io_type(wanted: IoType | None, activations: tf.DType) -> tf.DType:
    """The type of inputs or outputs: the recipe's, else that of the activations."""
    return activations if wanted is None else tf.dtypes.as_dtype(str(wanted))


def _rounds_an_input(graph: Graph) -> bool:
    """Whether a quantiser reads an input of a QAT graph; none does where all inputs hold integers."""
    return any(isinstance(node.layer, QuantizeLayer) and node.inputs()[0].producer is None for node in graph.nodes)


def _representative(
    recipe: Recipe, graph: Graph, calibration: Calibration | None, most: int | None = None
) -> Callable[[], Iterator[list[np.ndarray]]]:
    """A function that yields the recipe's number of calibration samples, `most` at most."""
    samples = recipe.quantization.calibration_samples if recipe.quantization else 0
    samples = samples if most is None else min(samples, most)
    if calibration is None:
        raise ExportError(
            f"recipe {recipe.name!r} quantises after training",
            required="calibration data",
            received="none",
            remedy="pass calibration data as the argument calibration",
        )

    size = batch_size_of(graph) or 1

    def rows() -> Iterator[list[np.ndarray]]:
        for batch in calibration_batches(graph, calibration, samples):
            for row in range(0, len(batch[0]), size):
                yield [part[row : row + size].astype(t.dtype) for part, t in zip(batch, graph.inputs(), strict=True)]

    return rows


def _signature(graph: Graph, calibration: Calibration | None) -> list[tf.TensorSpec]:
    """Shape and dtype of each input of the file; unknown spatial sizes are taken from the calibration data."""
    shapes = [list(tensor.shape) for tensor in graph.inputs()]
    if calibration is not None and any(None in shape[1:] for shape in shapes):
        batch = next(iter(calibration_batches(graph, calibration, 1)))
        shapes = [list(part.shape) for part in batch]
    specs, size = [], batch_size_of(graph) or 1
    for tensor, shape in zip(graph.inputs(), shapes, strict=True):
        name = graph.input_names[tensor]
        if None in shape[1:]:
            raise ExportError(
                f"input {name!r} has no fixed size",
                required="a size for every axis but the batch",
                received=str(shape),
                remedy="give calibration data of the size the device will use",
            )
        specs.append(tf.TensorSpec([size, *shape[1:]], tensor.dtype, name=scope_safe_name(name)))
    return specs


def _warn_of_state(graph: Graph) -> None:
    names = [inner_layer(node.layer).name for node in graph.nodes if stateful_layers(node.layer)]
    if names:
        _LOG.warning(
            "%s keep their state from batch to batch (stateful=True); the file does not: each call starts from 0",
            ", ".join(dict.fromkeys(names)),
        )


def _warn_of_ranges_never_set(graph: Graph) -> None:
    """Warn if the ranges of a QAT model were set by neither calibration nor training."""
    names = layers_with_initial_range(graph)
    if names:
        shown = ", ".join(names[:_NAMES_SHOWN]) + (
            f" and {more} more" if (more := len(names) - _NAMES_SHOWN) > 0 else ""
        )
        warnings.warn(
            f"the activation ranges were never set: {shown} are still at the initial -6 to 6, which the int8 values of "
            "the file will cover. Before the export, pass calibration= (inputs like those of the training) to "
            "core.quantize, or train the quantised model",
            stacklevel=4,
        )
