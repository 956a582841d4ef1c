"""The PTQ back end `ai_edge_quantizer`: Google's AI Edge Quantizer (package litert-quantizer) on a float TFLite file.

The quantizer works on a file instead of a graph. It runs the converter's float file on the calibration data, takes each
tensor's range as the recipe says, and writes the file with int8 weights and the recipe's type of activations.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.contract import Activations, PtqAlgorithm, Recipe
from tfmot_ops.core.quantization.observers import Extremes, Observer, observer_of
from tfmot_ops.core.quantization.scales import Range
from tfmot_ops.core.tflite.file_ranges import dense_with_own_input, enlarge_scales_for_biases, ranges_to_widen
from tfmot_ops.core.tflite.flatbuffer import file_bytes
from tfmot_ops.core.tflite.observed_ranges import observed_ranges
from tfmot_ops.errors import ExportError, RecipeError

#: The quantizer needs a signature to run a file; a file converted from one function has none, so this one is added.
_SIGNATURE = "serving_default"
#: Type of activations -> the quantizer's built-in recipe; all three have int8 weights with one scale per channel.
_RECIPES = {
    Activations.INT8: "static_wi8_ai8",
    Activations.INT16: "static_wi8_ai16",
    Activations.FLOAT32: "dynamic_wi8_afp32",
}
#: Operations whose weights an algorithm may round in its own way, as the quantizer names them.
_WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE")


def quantize_file(
    data: bytes, recipe: Recipe, rows: Callable[[], Iterable[list[np.ndarray]]], float_names: Iterable[str] = ()
) -> bytes:
    """Quantise a float TFLite file.

    Args:
        data: the file, float32, batch 1.
        recipe: with a PTQ quantisation; its activations choose the quantiser's recipe.
        rows: returns the calibration samples; each sample is a list of one array [1, ...] per input, in the file's
            order. Called only if the activations are integers.
        float_names: names of the tensors whose operations stay in float.

    Returns:
        The file with int8 weights; inputs and outputs have the type of the activations.

    Raises:
        RecipeError: the package is not installed, or the recipe has no quantisation.
        ExportError: the quantiser refuses the file.
    """
    if recipe.quantization is None:
        raise RecipeError(
            f"recipe {recipe.name!r} has no quantisation",
            required="a recipe with quantization.method: ptq",
            received="no quantization",
            remedy="export the float file as it is",
        )
    package = _package()
    float_names = list(float_names)
    algorithm = recipe.quantization.ptq_algorithm or PtqAlgorithm.MIN_MAX
    stock = getattr(package.recipe, _RECIPES[recipe.quantization.activations])()
    weighted = _entries(package, stock[0], algorithm, data)
    floats = [_keep_float(name) for name in float_names]
    quantizer_recipe = [*stock, *weighted, *floats]
    signed, observer = _with_signature(data), observer_of(recipe.quantization)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            # The quantizer warns that reading every tensor takes memory, and draws a progress bar on stderr.
            warnings.simplefilter("ignore")
            quantizer = package.Quantizer(signed, quantizer_recipe)
            ranges = None
            if quantizer.need_calibration:
                ranges = _calibrated(package, signed, [*stock, *floats], rows())
                if algorithm is PtqAlgorithm.GPTQ:
                    _add_second_moments(ranges, _calibrated(package, signed, [*weighted, *floats], rows()))
                _choose(ranges, signed, rows, observer, float_names)
            result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ExportError(
            "the AI Edge Quantizer refused the file",
            required="operations that the AI Edge Quantizer supports",
            received=f"{type(error).__name__}: {error}",
            remedy="use quantization.backend: converter",
        ) from error
    quantized = bytes(result.quantized_model)
    return quantized if ranges is None else enlarge_scales_for_biases(quantized, signed)


def _entries(package: Any, stock: Mapping[str, Any], algorithm: PtqAlgorithm, data: bytes) -> list[dict[str, Any]]:
    """Quantizer recipe entries that quantise operations with weights by an algorithm; none for min_max.

    Args:
        package: the quantizer.
        stock: the entry for all operations, which the other operations keep.
        algorithm: of the recipe.
        data: the float file.

    Raises:
        ExportError: GPTQ can round no operation of the file.
    """
    if algorithm is PtqAlgorithm.MIN_MAX:
        return []
    entry = {**stock, "algorithm_key": algorithm.upper()}
    if algorithm is PtqAlgorithm.GPTQ:
        # Behind an operation such as RESHAPE, version 0.11 loses what GPTQ needs, and writes wrong weights.
        names = dense_with_own_input(data)
        if not names:
            raise ExportError(
                "ptq_algorithm gptq has nothing to round",
                required="a fully connected operation that is not right behind a reshape, padding or pooling",
                received="a model without such an operation",
                remedy="use ptq_algorithm: octav or min_max",
            )
        return [{**entry, "regex": _written_by(name), "operation": "FULLY_CONNECTED"} for name in names]
    registered = package.algorithm_manager.is_op_registered
    return [{**entry, "operation": name} for name in _WEIGHTED if registered(entry["algorithm_key"], name)]


def _keep_float(name: str) -> dict[str, Any]:
    """A quantizer recipe entry that keeps the operation that writes tensor `name` in float; later entries win."""
    return {"regex": _written_by(name), "operation": "*", "algorithm_key": "no_quantize"}


def _written_by(name: str) -> str:
    """A pattern for the operation that writes tensor `name`."""
    # The quantizer matches the pattern against the names of all tensors that an operation writes, joined by `;`.
    return f"(^|;){re.escape(name)}(;|$)"


def _package() -> Any:
    """The package `litert_quantizer`, imported only when it is needed."""
    try:
        import litert_quantizer
        from litert_quantizer import calibrator, recipe, recipe_manager  # noqa: F401 - makes them attributes
        from litert_quantizer.utils import qsv_utils  # noqa: F401 - the same
    except ImportError as error:
        raise RecipeError(
            "the PTQ back end ai_edge_quantizer is not installed",
            required="the package litert-quantizer, version 0.11 or later",
            received=str(error),
            remedy="pip install litert-quantizer, or use quantization.backend: converter",
        ) from error
    return litert_quantizer


def _calibrated(package: Any, data: bytes, recipe: Any, rows: Iterable[list[np.ndarray]]) -> Any:
    """Statistics of each tensor on the samples: minimum and maximum; for GPTQ second moments, too.

    The quantizer's default is a moving average of the extremes, which clips values: on the digits data set the ranges
    were a quarter narrower, and the outputs' SQNR fell from 44 to 35 dB (resnet8) and from 37 to 26 dB
    (mobilenet_like).
    """
    manager = package.recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe)
    calibrator = package.calibrator.Calibrator(data, num_threads=1, qsv_update_func=_joined)
    samples = [{_input_name(place): part for place, part in enumerate(row)} for row in rows]
    calibrator.calibrate({_SIGNATURE: samples}, manager)
    return calibrator.get_model_qsvs()


def _joined(before: Any, new: Any) -> Any:
    """A tensor's statistics with those of one more sample: extremes over all samples, and mean second moments."""
    extremes = {"min": np.minimum(before["min"], new["min"]), "max": np.maximum(before["max"], new["max"])}
    if "hessian" not in new:
        return extremes
    counts = before["num_samples"], new["num_samples"]
    mean = np.average([before["hessian"], new["hessian"]], axis=0, weights=counts)
    return extremes | {"hessian": mean, "num_samples": sum(counts)}


def _add_second_moments(found: Any, moments: Any) -> None:
    """Add to each tensor the second moments of its values that GPTQ needs, from a calibration of their own.

    In one calibration the quantizer reads a tensor once, by the algorithm of the operation that writes it.
    """
    for name, entry in moments.items():
        found[name] |= {key: entry[key] for key in ("hessian", "num_samples") if key in entry}


def _choose(
    found: Any,
    data: bytes,
    rows: Callable[[], Iterable[list[np.ndarray]]],
    observer: Callable[[], Observer],
    float_names: Iterable[str],
) -> None:
    """Replace the ranges in the statistics of `_calibrated` by those that an observer chooses, wide enough for int8."""
    extremes = {name: (float(np.min(entry["min"])), float(np.max(entry["max"]))) for name, entry in found.items()}
    if observer is not Extremes:
        chosen = observed_ranges(data, rows(), observer, found.keys())
        _set(found, chosen)
        extremes |= chosen
    _set(found, ranges_to_widen(data, extremes, float_names))


def _set(found: Any, ranges: Mapping[str, Range]) -> None:
    for name, chosen in ranges.items():
        for extreme, value in zip(("min", "max"), chosen, strict=True):
            found[name][extreme] = np.full_like(found[name][extreme], value)


def _input_name(place: int) -> str:
    return f"input_{place}"


def _with_signature(data: bytes) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = _SIGNATURE, 0
    signature.inputs = [_named(_input_name(place), index) for place, index in enumerate(graph.inputs)]
    signature.outputs = [_named(f"output_{place}", index) for place, index in enumerate(graph.outputs)]
    model.signatureDefs = [signature]
    return file_bytes(model, len(data))


def _named(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, int(index)
    return entry
