"""SQNR per layer between float model, QAT model and TFLite file, which shows the layer where an error begins.

SQNR is the signal-to-quantisation-noise ratio of one call's output, in dB.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors, unique_names
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import rebuild
from tfmot_ops.core.graph.run import infer, run_graph
from tfmot_ops.core.keras.batches import fixed_batch_size, match_rank, repeat_to_size
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.policies import new_layers_with_policy
from tfmot_ops.core.keras.private import QuantizeLayer
from tfmot_ops.core.keras.types import Args, Array, Kwargs
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.measure.noise import power_ratio_db, signal_and_noise
from tfmot_ops.core.tflite.interpreter import Detail, Inputs, as_arrays, dequantized, make_interpreter, quantized
from tfmot_ops.core.tflite.scopes import call_scopes

#: Identifies a call: (the layer's name, index among the layer's calls in the graph's order).
_Key = tuple[str, int]
#: The figures of a row: which two forms are compared.
_PAIRS = ("float_qat", "qat_file", "float_file")
#: Samples that are run at once; a memory bound, without effect on the figures.
_BATCH = 16
#: Layers that return their input in inference.
_IDENTITIES = {
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.AlphaDropout,
    keras.layers.ActivityRegularization,
    keras.layers.Identity,
}


@dataclass(frozen=True)
class LayerSqnr:
    """Signal-to-quantisation-noise ratios of one call's output, in dB; infinite if the two outputs are equal.

    A ratio is None if one of the two has no tensor for the call. Example: TFLite computes a convolution and its ReLU as
    one operation, so the file has no tensor for the convolution, and the ratio is given for the ReLU.

    Attributes:
        path: the call's path in the normalised graph (`backbone/conv1`, or `backbone/conv1_relu` for an activation that
            was an argument of that layer); later calls of a shared layer end in `#2`, `#3`, ...
        class_name: name of the layer's class.
        float_to_qat_db: float model against QAT model; the noise includes the changes by training.
        qat_to_tflite_db: QAT model against TFLite file; the noise is added by the export.
        float_to_tflite_db: float model against TFLite file.
    """

    path: str
    class_name: str
    float_to_qat_db: float | None
    qat_to_tflite_db: float | None
    float_to_tflite_db: float | None


@new_layers_with_policy("float32")
def layer_sqnr(
    float_model: keras.Model, quantized_model: keras.Model | None, tflite: bytes | None, x: Inputs
) -> list[LayerSqnr]:
    """Compare a float model, its QAT model and its TFLite file call by call, on the same samples.

    Args:
        float_model: the float model without pruning wrappers.
        quantized_model: the QAT model that `quantize` made from it; None for a recipe without QAT.
        tflite: the file from `export_tflite`; None compares the two models only.
        x: inputs [N, ...], one array, or one per input in the model's order.

    Returns:
        One row for each call of the normalised float model that has exactly one output, a float one; in the graph's
        order.

    Raises:
        ArtifactError: the bytes are no TFLite file.
    """
    # As `quantize` normalises it, so that the calls of the two models correspond.
    normal = normalize_graph(read_graph(float_model), for_qat=quantized_model is not None)
    names = unique_names(dict.fromkeys(node.path for node in normal.nodes), normal.input_names.values())
    paths = {names[node.path]: node.path for node in normal.nodes}
    # Rebuilt as a model, as layers that a rule made are not built yet.
    source = _Calls(read_graph(rebuild(normal)))
    qat = None if quantized_model is None else _Calls(read_graph(quantized_model))
    file = None if tflite is None else _File(tflite, qat or source)
    ratios: dict[tuple[str, _Key], _Ratio] = {}
    for batch in _batches(x, [tensor.shape for tensor in source.graph.inputs()]):
        values = {
            "float": source.run(batch),
            "qat": qat.run(batch) if qat else {},
            "file": file.run(batch) if file else {},
        }
        _compare(values, ratios, source, qat)
    return [
        LayerSqnr(
            _path(paths, key), type(inner_layer(node.layer)).__name__, *(_db(ratios, pair, key) for pair in _PAIRS)
        )
        for key, node in source.nodes.items()
    ]


def _batches(x: Inputs, shapes: list[tuple[int | None, ...]]) -> Iterator[list[Array]]:
    """Batches of the inputs, of a model's own size where its input shapes fix one."""
    parts = [match_rank(part, shape) for part, shape in zip(as_arrays(x), shapes, strict=True)]
    fixed = fixed_batch_size(shapes)
    size = fixed or _BATCH
    for start in range(0, len(parts[0]), size):
        yield [repeat_to_size(part[start : start + size], fixed) for part in parts]


def _db(ratios: dict[tuple[str, _Key], _Ratio], pair: str, key: _Key) -> float | None:
    return ratios[pair, key].db if (pair, key) in ratios else None


def layer_sqnr_csv(rows: list[LayerSqnr]) -> str:
    """The rows as CSV with a header, in dB; an empty field stands for None (no tensor), `inf` for equal outputs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LayerSqnr.__dataclass_fields__)
    for row in rows:
        figures = (row.float_to_qat_db, row.qat_to_tflite_db, row.float_to_tflite_db)
        writer.writerow([row.path, row.class_name, *("" if db is None else f"{db:.2f}" for db in figures)])
    return text.getvalue()


@dataclass
class _Ratio:
    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Array, other: Array) -> None:
        signal, noise = signal_and_noise(reference, other)
        self.signal += signal
        self.noise += noise

    @property
    def db(self) -> float:
        return power_ratio_db(self.signal, self.noise)


def _compare(
    values: dict[str, dict[_Key, Array]], ratios: dict[tuple[str, _Key], _Ratio], source: _Calls, qat: _Calls | None
) -> None:
    for key in source.nodes:
        # Calls match if their keys and the calls they read from are equal: calls of a shared layer may be reordered.
        same = qat is None or (key in qat.nodes and source.reads(key) == qat.reads(key))
        sides = {side: outputs[key] for side, outputs in values.items() if key in outputs and (same or side == "float")}
        for first, second in (("float", "qat"), ("qat", "file"), ("float", "file")):
            if first in sides and second in sides and sides[first].shape == sides[second].shape:
                ratios.setdefault((f"{first}_{second}", key), _Ratio()).add(sides[first], sides[second])


def _path(paths: dict[str, str], key: _Key) -> str:
    name, call = key
    return paths.get(name, name) + (f"#{call + 1}" if call else "")


@dataclass
class _Calls:
    """The calls of a graph that have exactly one output, a float one; by key, in the graph's order."""

    graph: Graph
    nodes: dict[_Key, Node] = field(default_factory=dict)
    keys: dict[Node, _Key] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: Counter[str] = Counter()
        for node in self.graph.nodes:
            name = inner_layer(node.layer).name
            self.keys[node] = key = (name, seen[name])
            seen[name] += 1
            outputs = tensors(node.outputs)
            if len(outputs) == 1 and outputs[0].is_float and not isinstance(node.layer, QuantizeLayer):
                self.nodes[key] = node

    def reads(self, key: _Key) -> list[_Key | None]:
        """Keys of the calls that a call reads from; None for a graph input, also if it is quantised."""
        return [self._producer(tensor) for tensor in self.nodes[key].inputs()]

    def _producer(self, tensor: Tensor) -> _Key | None:
        node = tensor.producer
        return None if node is None or isinstance(node.layer, QuantizeLayer) else self.keys[node]

    def run(self, batch: list[Array]) -> dict[_Key, Array]:
        """Key -> output [N, ...] of each call, in inference."""
        outputs: dict[_Key, Array] = {}

        def compute(node: Node, args: Args, kwargs: Kwargs) -> Any:
            result = infer(node.layer, args, kwargs)
            key = self.keys[node]
            if key in self.nodes:
                (value,) = tf.nest.flatten(result)
                outputs[key] = np.asarray(value)
            return result

        inputs = [tf.cast(part, tensor.dtype) for part, tensor in zip(batch, self.graph.inputs(), strict=True)]
        run_graph(self.graph, inputs, compute)
        return outputs

    def positions(self) -> dict[str, int]:
        """Name scope in the file -> position of the call in the graph."""
        scopes = call_scopes(self.graph)
        return {scopes[node]: position for position, node in enumerate(self.graph.nodes)}


class _File:
    """A TFLite file whose intermediate tensors can be read, matched to the calls that they are the output of."""

    def __init__(self, data: bytes, calls: _Calls) -> None:
        # XNNPACK would replace many operations by one, without tensors between them.
        self._interpreter = make_interpreter(data, xnnpack=False, keep_tensors=True)
        self._interpreter.allocate_tensors()
        self._details = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        #: Key of a call -> index of its output tensor in the file.
        self.matched: dict[_Key, int] = {}
        for position, index in _match(self._interpreter, self._details, _written_tensors(data), calls).items():
            key = calls.keys[calls.graph.nodes[position]]
            if key in calls.nodes and _fits(self._details[index], calls.nodes[key].output()):
                self.matched[key] = index

    def run(self, batch: list[Array]) -> dict[_Key, Array]:
        """Key -> output [N, ...] of each matched call, dequantised."""
        rows: dict[_Key, list[Array]] = {key: [] for key in self.matched}
        details = self._interpreter.get_input_details()
        size = int(details[0]["shape"][0])
        for row in range(0, len(batch[0]), size):
            for detail, part in zip(details, batch, strict=True):
                self._interpreter.set_tensor(detail["index"], quantized(part[row : row + size], detail))
            self._interpreter.invoke()
            for key, index in self.matched.items():
                rows[key].append(dequantized(self._interpreter.get_tensor(index), self._details[index]))
        # A tensor without a batch axis, such as the maximum over all samples, becomes one row.
        return {key: np.concatenate([np.atleast_1d(part) for part in parts]) for key, parts in rows.items()}


def _written_tensors(data: bytes) -> list[int]:
    """Indices of the tensors that the main graph's operations write, in the order of execution."""
    graph = schema.Model.GetRootAs(data, 0).Subgraphs(0)
    operations = [graph.Operators(place) for place in range(graph.OperatorsLength())]
    return [op.Outputs(place) for op in operations for place in range(op.OutputsLength())]


def _match(interpreter: Interpreter, details: dict[int, Detail], written: list[int], calls: _Calls) -> dict[int, int]:
    """Position of a call -> index of the tensor that holds its output.

    A tensor's name contains the scopes of all calls that its operation computes; its value is the last call's output.
    """
    found, named = _by_name(details, written, calls)
    nodes = calls.graph.nodes
    place = {node: position for position, node in enumerate(nodes)}
    outputs = _output_tensors(interpreter, calls.graph, place)
    last_calls = {tensor.producer for tensor in tensors(calls.graph.outputs)}
    stops = {node for node in nodes if place[node] in named | outputs.keys()}
    readers = calls.graph.readers()
    ends: dict[int, int] = {}
    for position, index in found.items():
        for node in _calls_in_one_tensor(nodes[position], last_calls, stops, readers):
            ends[place[node]] = index
    return ends | outputs


def _by_name(details: dict[int, Detail], written: list[int], calls: _Calls) -> tuple[dict[int, int], set[int]]:
    """(position of a call -> the tensor with its name, positions of all calls that some tensor's name has)."""
    positions = calls.positions()
    found: dict[int, int] = {}
    named: set[int] = set()
    for index in written:
        named_calls = {
            position
            for part in details[index]["name"].split(";")
            if (position := _call_named_by(part, positions)) is not None
        }
        named |= named_calls
        for position in named_calls:
            # An earlier operation with this name computed a part of the call, not yet its output.
            found.pop(position, None)
        if named_calls:
            found[max(named_calls)] = index
    return found, named


def _call_named_by(name: str, positions: dict[str, int]) -> int | None:
    """Position of the call whose scope a tensor's name begins with; the scope of a further call has two parts."""
    parts = name.split("/")
    return positions.get("/".join(parts[:2]) + "/", positions.get(parts[0] + "/"))


def _calls_in_one_tensor(
    node: Node, last_calls: AbstractSet[Node | None], stops: AbstractSet[Node], readers: dict[Tensor, list[Node]]
) -> list[Node]:
    """The calls whose output is in one tensor: a call, or the call computed with it, and the identities after it.

    Args:
        node: the call whose name the tensor has.
        last_calls: the calls whose results are outputs of the model.
        stops: the calls that have a tensor of their own.
        readers: tensor -> the calls that read it.
    """
    path = [node]
    while path[-1] not in last_calls:
        following = _computed_with(path[-1], readers)
        if following is None or following in stops:
            break
        # An identity shares the tensor; a call that changes the values takes the tensor over.
        path = [*path, following] if type(following.layer) in _IDENTITIES else [following]
    return path


def _output_tensors(interpreter: Interpreter, graph: Graph, place: dict[Node, int]) -> dict[int, int]:
    """Position -> tensor index for the calls that compute the model's outputs, which the converter may rename."""
    results, details = tensors(graph.outputs), interpreter.get_output_details()
    if len(results) != len(details):
        return {}
    pairs = zip(results, details, strict=True)
    return {place[tensor.producer]: detail["index"] for tensor, detail in pairs if tensor.producer is not None}


def _computed_with(node: Node, consumers: dict[Tensor, list[Node]]) -> Node | None:
    """The next call if TFLite may compute it in the same operation as `node`, such as a folded BatchNormalization.

    The shape has to stay: padding, for example, is computed with the operation after it instead.
    """
    outputs = tensors(node.outputs)
    readers = consumers.get(outputs[0], []) if len(outputs) == 1 else []
    if len(readers) != 1 or len(readers[0].inputs()) != 1:
        return None
    following = tensors(readers[0].outputs)
    return readers[0] if len(following) == 1 and following[0].shape == outputs[0].shape else None


def _fits(detail: Detail, tensor: Tensor) -> bool:
    """Whether the shapes [batch, ...] of a file's tensor and a graph's tensor agree, apart from the batch."""
    in_file, in_graph = [int(size) for size in detail["shape"]][1:], tensor.shape[1:]
    return len(in_file) == len(in_graph) and all(
        size in {None, file_size} for size, file_size in zip(in_graph, in_file, strict=True)
    )
