"""Per-layer reports of a TFLite file made by PTQ, read from the types of the file's tensors.

For QAT the report comes from `quantization.scheme`, before the file exists. Also checks that a file has the types that
its recipe requires.
"""

from __future__ import annotations

from collections.abc import Sequence

from tfmot_ops.contract import Activations, IoType, LayerReport, Method, Outcome, Quantization, Recipe
from tfmot_ops.core.graph.integer_inputs import INTEGER_VALUES_REASON
from tfmot_ops.core.graph.ir import unique_names
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.operations import LAYERS, Role
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.tflite.interpreter import make_interpreter
from tfmot_ops.core.tflite.profile import TFLiteProfile
from tfmot_ops.core.tflite.scopes import is_within, scopes_of
from tfmot_ops.errors import ExportError
from tfmot_ops.recipes.scope import select

#: Names of the layer classes with a kernel that TFLite can compute in int8.
_WEIGHTED = {
    layer.__name__
    for layer, spec in LAYERS.items()
    if spec.kernels and (spec.role is Role.CONVOLUTION or spec.rewritten_to_int8)
}
#: Types that only quantised tensors have. int32 is not among them: shapes and indices are int32 too.
_QUANTIZED = {"int8", "int16", "float16"}


def report_file(model: keras.Model, data: bytes) -> list[LayerReport]:
    """One report per layer of a float model, from the tensors that `export_tflite` named after it.

    Args:
        model: the float model that was exported.
        data: the TFLite file made from it.
    """
    source = read_graph(model)
    kinds = {node.path: type(node.layer).__name__ for node in source.nodes}
    graph = normalize_graph(source)
    names = unique_names(dict.fromkeys(node.path for node in graph.nodes), graph.input_names.values())
    scope_of = scopes_of(names.values())
    scopes: dict[str, set[str]] = {path: set() for path in kinds}
    for node in graph.nodes:
        scopes[node.origin].add(scope_of[names[node.path]])
    tensors = [(entry["name"], entry["dtype"].__name__) for entry in make_interpreter(data).get_tensor_details()]
    types = {
        path: {kind for name, kind in tensors if any(is_within(name, scope) for scope in own_scopes)}
        for path, own_scopes in scopes.items()
    }
    return [_report(path, kinds[path], held) for path, held in types.items()]


def require_recipe(profile: TFLiteProfile, recipe: Recipe, reports: Sequence[LayerReport]) -> None:
    """Refuse a file with float inputs or outputs, or without any int8 multiplication, where the recipe requires int8.

    Accepted without int8 multiplications: a model that has no multiplications, or none in a layer with an int8 form,
    and a model whose layers with a kernel all stay in float by the recipe's scope or the report of `quantize`.

    Args:
        profile: the file's profile.
        recipe: the recipe that the file was exported with.
        reports: one report per layer, from `quantize` for QAT and from `report_file` for PTQ.

    Raises:
        ExportError: the file does not have the recipe's types; names what is required and what the file has.
    """
    quantization = recipe.quantization
    if quantization is None or quantization.activations is Activations.FLOAT32:
        return
    # A recipe may say that inputs or outputs are float. An input that is used as integers and reals stays float.
    may_be_float = quantization.input_type is IoType.FLOAT32 or any(
        report.reason == INTEGER_VALUES_REASON for report in reports
    )
    types = {
        *(profile.input_dtypes if not may_be_float else ()),
        *(profile.output_dtypes if quantization.output_type is not IoType.FLOAT32 else ()),
    }
    if any(name.startswith("float") for name in types):
        raise ExportError(
            f"the file does not match recipe {recipe.name!r}: its inputs or outputs are float",
            required=f"{_types_of(quantization)}, or the integer type that the model has there",
            received=f"inputs of {', '.join(profile.input_dtypes)}, outputs of {', '.join(profile.output_dtypes)}",
            remedy="export the model again with core.export_tflite and this recipe",
        )
    if quantization.activations is not Activations.INT8 or not profile.macs or profile.int8_mac_fraction:
        return
    expected = _expected_int8(quantization, reports)
    if expected:
        raise ExportError(
            f"the file does not match recipe {recipe.name!r}: it computes nothing in int8",
            required=f"multiplications in int8 in {', '.join(expected[:5])}"
            + (f" and {len(expected) - 5} more layers" if len(expected) > 5 else ""),  # noqa: PLR2004 - a readable line
            received=f"0 of {profile.macs} multiplications in int8",
            remedy="look for extremely large weights or calibration data, or exclude these layers by the recipe's "
            "quantization.scope if they are meant to stay in float",
        )


def _expected_int8(quantization: Quantization, reports: Sequence[LayerReport]) -> list[str]:
    """Paths of the layers whose kernel should be int8 in the file."""
    weighted = [row for row in reports if row.class_name in _WEIGHTED and row.outcome is not Outcome.ABSORBED]
    if quantization.method is Method.QAT:
        return [row.path for row in weighted if row.outcome is Outcome.QUANTIZED]
    chosen = select(quantization.scope, [(row.path, row.class_name) for row in reports])
    return [row.path for row in weighted if chosen[row.path] is not False]


def _report(path: str, class_name: str, types: set[str]) -> LayerReport:
    held = ", ".join(sorted(types - {"int32"}))
    if types & _QUANTIZED:
        outcome, reason = Outcome.QUANTIZED, f"{held} in the file"
    elif held:
        outcome, reason = Outcome.KEPT_FLOAT, f"{held} in the file: the converter's choice"
    else:
        outcome, reason = Outcome.ABSORBED, "no tensor of its own in the file: computed by the layers around it"
    return LayerReport(path=path, class_name=class_name, outcome=outcome, reason=reason)


def _types_of(quantization: Quantization) -> str:
    """The types of inputs and outputs for people."""
    inputs, outputs = (kind or quantization.activations for kind in (quantization.input_type, quantization.output_type))
    return f"inputs and outputs of {inputs}" if inputs == outputs else f"inputs of {inputs} and outputs of {outputs}"
