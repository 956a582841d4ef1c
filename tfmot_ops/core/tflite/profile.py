"""Profile of a TFLite file: operations, multiply-accumulates, types, sparsity and size.

The flatbuffer is parsed directly, as the interpreter shows one delegate operation instead of the file's operations.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.core.tflite.flatbuffer import OP_NAMES
from tfmot_ops.core.tflite.interpreter import damage_as_artifact_error, make_interpreter, read_file
from tfmot_ops.core.tflite.scopes import layers_of
from tfmot_ops.errors import ArtifactError

_TYPE_NAMES: dict[int, str] = {
    code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)
}
_FLOAT_TYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
#: Types of weights whose values fill whole bytes, so that zeros can be counted; int4 is not among them.
_WEIGHT_DTYPES = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "float16": np.float16, "float32": np.float32}
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})


@dataclass(frozen=True)
class TFLiteProfile:
    """Counts of a TFLite file, for a batch of 1 if the file has a variable batch.

    Attributes:
        int8_mac_fraction: share of the multiply-accumulates whose data, weight and output are all int8, in [0, 1];
            0 in a file without multiply-accumulates.
        macs: multiply-accumulates of convolutions, fully connected layers and matrix products.
        float_ops: TFLite ops that read or write a float activation, except conversions at the graph's boundary.
        requantize_ops: QUANTIZE and DEQUANTIZE ops on activations inside the graph; those that read a graph input
            or write a graph output do not count.
        size_bytes: size of the file in bytes.
        gzip_bytes: size in bytes after gzip at its default level 6, which shows how much zeros save in a download.
        sparsity: weight tensor name -> share of zeros, in [0, 1].
        weight_sizes: weight tensor name -> number of weights.
        op_counts: TFLite op name (`CONV_2D`) -> number of ops.
        input_dtypes: type (`int8`) of each graph input.
        output_dtypes: type of each graph output.
    """

    int8_mac_fraction: float
    macs: int
    float_ops: int
    requantize_ops: int
    size_bytes: int
    gzip_bytes: int
    sparsity: dict[str, float]
    weight_sizes: dict[str, int]
    op_counts: dict[str, int]
    input_dtypes: tuple[str, ...]
    output_dtypes: tuple[str, ...]

    @property
    def weight_sparsity(self) -> float:
        """Share of zeros among all weights, in [0, 1]; 0 without weights."""
        total = sum(self.weight_sizes.values())
        zeros = sum(self.sparsity[name] * size for name, size in self.weight_sizes.items())
        return zeros / total if total else 0.0


def profile_tflite(data: bytes) -> TFLiteProfile:
    """Profile a TFLite file.

    The file is run only if a shape is known only at run time, as after a reshape of a variable batch: then one
    inference on zeros gives the shapes. If that fails, each unknown size counts as 1.

    Args:
        data: the file's bytes.

    Raises:
        ArtifactError: the bytes are no TFLite file.
    """
    tally, main = _read(data)
    return TFLiteProfile(
        int8_mac_fraction=tally.int8_macs / tally.macs if tally.macs else 0.0,
        macs=tally.macs,
        float_ops=tally.float_ops,
        requantize_ops=tally.requantize_ops,
        size_bytes=len(data),
        gzip_bytes=gzip_size(data),
        sparsity={name: zeros / size for name, (zeros, size) in tally.weights.items()},
        weight_sizes={name: size for name, (_, size) in tally.weights.items()},
        op_counts=dict(sorted(tally.op_counts.items())),
        input_dtypes=tuple(main.dtype(index) for index in main.inputs),
        output_dtypes=tuple(main.dtype(index) for index in main.outputs),
    )


def layers_by_operation(data: bytes) -> dict[str, list[str]]:
    """TFLite operation -> names of the layers that it computes in a file of `export_tflite`, each once.

    Raises:
        ArtifactError: the bytes are no TFLite file.
    """
    found: dict[str, list[str]] = {}
    with damage_as_artifact_error(data):
        model = read_file(data)
        for graph in (_Graph(data, model, index) for index in range(model.SubgraphsLength())):
            for op in graph.ops:
                names = [name for output in op.outputs for name in layers_of(graph.name(output))]
                found[op.name] = list(dict.fromkeys([*found.get(op.name, []), *names]))
    return found


def weight_zeros(data: bytes) -> dict[str, tuple[int, int]]:
    """Weight tensor name -> (zeros, weights) of a TFLite file.

    Raises:
        ArtifactError: the bytes are no TFLite file.
    """
    return _read(data)[0].weights


def _read(data: bytes) -> tuple[_Tally, _Graph]:
    """(counts over all subgraphs of a file, main graph)."""
    if data[4:8] != b"TFL3":
        raise ArtifactError(
            "the TFLite file cannot be read",
            required="a flatbuffer with the identifier TFL3",
            received=f"{len(data)} bytes that start with {data[:8]!r}",
            remedy="export the model again",
        )
    with damage_as_artifact_error(data):
        return _tally_graphs(data, read_file(data))


def _tally_graphs(data: bytes, model: Any) -> tuple[_Tally, _Graph]:
    graphs = [_Graph(data, model, index) for index in range(model.SubgraphsLength())]
    tally = _Tally()
    if graphs[0].has_unknown_sizes():
        graphs[0].resolved = _shapes_at_run_time(data)
    for graph in graphs:
        for op in graph.ops:
            _count(tally, graph, op)
    return tally, graphs[0]


def gzip_size(data: bytes) -> int:
    """Bytes of a file after gzip at its default level, 6; level 9 took five times as long for 0.7 % less."""
    return len(gzip.compress(data, 6, mtime=0))


@dataclass(frozen=True)
class _Op:
    """One op of the file: its name, tensor indices (-1: an optional input that is absent), and the flatbuffer table."""

    name: str
    inputs: list[int]
    outputs: list[int]
    table: Any


@dataclass
class _Tally:
    macs: int = 0
    int8_macs: int = 0
    float_ops: int = 0
    requantize_ops: int = 0
    op_counts: Counter[str] = field(default_factory=Counter)
    weights: dict[str, tuple[int, int]] = field(default_factory=dict)


class _Graph:
    """One subgraph of a file, with its tensors' types, shapes and constants."""

    def __init__(self, data: bytes, model: Any, index: int) -> None:
        self._data = data
        self._model = model
        self._graph = model.Subgraphs(index)
        graph = self._graph
        self.inputs = [graph.Inputs(place) for place in range(graph.InputsLength())]
        self.outputs = [graph.Outputs(place) for place in range(graph.OutputsLength())]
        # Inputs and outputs of a subgraph that control flow calls are inside the model, so it has no boundary.
        self.boundary = frozenset((*self.inputs, *self.outputs)) if index == 0 else frozenset()
        #: Tensor index -> shape found by running the file, where the file has unknown sizes.
        self.resolved: dict[int, list[int]] = {}
        self.ops = [self._read_op(graph.Operators(place)) for place in range(graph.OperatorsLength())]
        #: Output of a DEQUANTIZE or DENSIFY -> the constant that it unpacks.
        self._unpacked = {
            op.outputs[0]: op.inputs[0]
            for op in self.ops
            if op.name in {"DEQUANTIZE", "DENSIFY"} and self._stored(op.inputs[0]) is not None
        }

    def _read_op(self, table: Any) -> _Op:
        code = self._model.OperatorCodes(table.OpcodeIndex())
        # Old converters wrote codes up to 127 into the deprecated field only.
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = OP_NAMES.get(builtin, f"BUILTIN_{builtin}")
        if name == "CUSTOM" and code.CustomCode():
            name = code.CustomCode().decode()
        inputs = [table.Inputs(place) for place in range(table.InputsLength())]
        return _Op(name, inputs, [table.Outputs(place) for place in range(table.OutputsLength())], table)

    def dtype(self, index: int) -> str:
        """Type of a tensor, as NumPy spells it."""
        code = self._graph.Tensors(index).Type()
        return _TYPE_NAMES.get(code, f"type_{code}")

    def name(self, index: int) -> str:
        """Name of a tensor in the file."""
        return str(self._graph.Tensors(index).Name() or b"", encoding="utf-8")

    def shape(self, index: int) -> list[int]:
        """Shape of a tensor, with 1 for each unknown size."""
        tensor = self._graph.Tensors(index)
        return self.resolved.get(index) or [max(1, tensor.Shape(axis)) for axis in range(tensor.ShapeLength())]

    def has_unknown_sizes(self) -> bool:
        """Whether an op that multiplies has an operand with an unknown size on another axis than the first (batch)."""
        places = [index for op in self.ops if _operands(op).macs is not None for index in (*op.inputs, *op.outputs)]
        tensors = [self._graph.Tensors(index) for index in places if index >= 0]
        return any(
            tensor.ShapeSignature(axis) < 0 for tensor in tensors for axis in range(1, tensor.ShapeSignatureLength())
        )

    def weight(self, index: int) -> int | None:
        """Index of the constant in a tensor, or of the one that DEQUANTIZE or DENSIFY unpacks to it; None otherwise."""
        index = self._unpacked.get(index, index)
        return None if self._stored(index) is None else index

    def zeros(self, index: int) -> tuple[int, int] | None:
        """(zeros, size) of a constant; None for a type whose values do not fill whole bytes."""
        dtype = _WEIGHT_DTYPES.get(self.dtype(index))
        stored = self._stored(index)
        if dtype is None or stored is None:
            return None
        quantization = self._graph.Tensors(index).Quantization()
        zero_point = quantization.ZeroPoint(0) if quantization and quantization.ZeroPointLength() else 0
        # Nonzeros are counted and subtracted, as a tensor in sparse encoding does not store its zeros.
        size = int(np.prod(self.shape(index)))
        return size - int(np.count_nonzero(stored.view(dtype) != zero_point)), size

    def _stored(self, index: int) -> npt.NDArray[np.uint8] | None:
        buffer = self._model.Buffers(self._graph.Tensors(index).Buffer())
        if buffer.DataLength():
            return np.asarray(buffer.DataAsNumpy(), np.uint8)
        # Files over 2 GB store buffers after the flatbuffer, at `Offset`; 0 and 1 mean that there is no buffer.
        if buffer.Offset() > 1:
            return np.frombuffer(self._data, np.uint8, buffer.Size(), buffer.Offset())
        return None


def _shapes_at_run_time(data: bytes) -> dict[int, list[int]]:
    """Shape of each tensor of the main graph after an inference with a batch of 1; empty if the file cannot be run."""
    # A delegate would replace many ops by one, without shapes for the tensors inside.
    interpreter = make_interpreter(data, xnnpack=False)
    try:
        interpreter.allocate_tensors()
        interpreter.invoke()
    except (RuntimeError, ValueError):
        return {}
    return {detail["index"]: [int(size) for size in detail["shape"]] for detail in interpreter.get_tensor_details()}


def _count(tally: _Tally, graph: _Graph, op: _Op) -> None:
    """Add one operation to the counts."""
    tally.op_counts[op.name] += 1
    activations = [index for index in (*op.inputs, *op.outputs) if index >= 0 and graph.weight(index) is None]
    if op.name in _CONVERSIONS and op.inputs:
        if not activations or graph.boundary.intersection((op.inputs[0], op.outputs[0])):
            return
        tally.requantize_ops += 1
    if any(graph.dtype(index) in _FLOAT_TYPES for index in activations):
        tally.float_ops += 1
    operands = _operands(op)
    if operands.weight is None or _is_lookup_table(graph, op):
        return
    weight = op.inputs[operands.weight]
    _count_weights(tally, graph, weight)
    if operands.macs is not None:
        data = op.inputs[operands.data]
        macs = operands.macs(graph, op, graph.shape(data), graph.shape(weight))
        tally.macs += macs
        if {graph.dtype(index) for index in (data, weight, op.outputs[0])} == {"int8"}:
            tally.int8_macs += macs


def _is_lookup_table(graph: _Graph, op: _Op) -> bool:
    """Whether a GATHER computes a function by a table (see `tflite.tables`), which holds no weights."""
    return op.name == "GATHER" and len(graph.shape(op.inputs[0])) == 1


def _count_weights(tally: _Tally, graph: _Graph, weight: int) -> None:
    constant = graph.weight(weight)
    counted = None if constant is None else graph.zeros(constant)
    if constant is not None and counted is not None:
        tally.weights[graph.name(constant)] = counted


def _outputs(graph: _Graph, op: _Op) -> int:
    return int(np.prod(graph.shape(op.outputs[0])))


def _matmul_depth(op: _Op, data: list[int]) -> int:
    """The k of a BATCH_MATMUL of [..., m, k] with [..., k, n]: products per output value."""
    options = schema.BatchMatMulOptions()
    table = op.table.BuiltinOptions()
    if table is not None:
        options.Init(table.Bytes, table.Pos)
    # With adj_x the first operand is stored as [..., k, m].
    return data[-2 if table is not None and options.AdjX() else -1]


class _Operands(NamedTuple):
    """The operands of a TFLite operation with a weight.

    Attributes:
        weight: position of the weight among the inputs; None for an operation without a weight.
        data: position of the data that is multiplied with the weight.
        macs: (graph, operation, shape of the data, shape of the weight) -> multiply-accumulates: outputs times products
            per output (for a transposed convolution: inputs times products per input). None for a table lookup.
    """

    weight: int | None = None
    data: int = 0
    macs: Callable[[_Graph, _Op, list[int], list[int]], int] | None = None


def _operands(op: _Op) -> _Operands:
    return _WEIGHTED.get(op.name, _Operands())


_WEIGHTED = {
    # The weight is [C_out, kh, kw, C_in / groups].
    "CONV_2D": _Operands(1, 0, lambda graph, op, _, weight: _outputs(graph, op) * int(np.prod(weight[1:]))),
    # The weight is [kd, kh, kw, C_in, C_out].
    "CONV_3D": _Operands(1, 0, lambda graph, op, _, weight: _outputs(graph, op) * int(np.prod(weight[:-1]))),
    # The weight is [1, kh, kw, C_out].
    "DEPTHWISE_CONV_2D": _Operands(1, 0, lambda graph, op, _, weight: _outputs(graph, op) * weight[1] * weight[2]),
    # The weight is [C_out, kh, kw, C_in]; the first input is the shape of the output.
    "TRANSPOSE_CONV": _Operands(1, 2, lambda _, __, data, weight: int(np.prod(data)) * int(np.prod(weight[:-1]))),
    # The weight is [units, C_in].
    "FULLY_CONNECTED": _Operands(1, 0, lambda graph, op, _, weight: _outputs(graph, op) * weight[-1]),
    "BATCH_MATMUL": _Operands(1, 0, lambda graph, op, data, _: _outputs(graph, op) * _matmul_depth(op, data)),
    "GATHER": _Operands(0),
    "EMBEDDING_LOOKUP": _Operands(1),
}
