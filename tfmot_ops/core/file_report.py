"""What became of each layer in a TFLite file that was quantised without training: read from the file itself."""

from __future__ import annotations

from tfmot_ops.contract import LayerReport, Outcome
from tfmot_ops.core.emit import scope_name
from tfmot_ops.core.evaluate import make_interpreter
from tfmot_ops.core.graph.ir import unique_names
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.legacy_keras import keras

#: Types of values that were quantised; a bias is int32 in an int8 layer, so it tells nothing.
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
    names = unique_names(dict.fromkeys(node.path for node in graph.nodes))
    scopes: dict[str, set[str]] = {path: set() for path in kinds}
    for node in graph.nodes:
        scopes[node.origin].add(f"{scope_name(names[node.path])}/")
    tensors = [(entry["name"], entry["dtype"].__name__) for entry in make_interpreter(data).get_tensor_details()]
    return [
        _report(path, kinds[path], {kind for name, kind in tensors if any(scope in name for scope in wanted)})
        for path, wanted in scopes.items()
    ]


def _report(path: str, class_name: str, types: set[str]) -> LayerReport:
    held = ", ".join(sorted(types - {"int32"}))
    if types & _QUANTIZED:
        outcome, reason = Outcome.QUANTIZED, f"{held} in the file"
    elif held:
        outcome, reason = Outcome.KEPT_FLOAT, f"{held} in the file: the converter's choice"
    else:
        outcome, reason = Outcome.ABSORBED, "no tensor of its own in the file: computed by the layers around it"
    return LayerReport(path=path, class_name=class_name, outcome=outcome, reason=reason)
