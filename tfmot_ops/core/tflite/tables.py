"""Lookup tables of int8 results, for elementwise functions that TFLite has no int8 operation for.

An int8 input has 256 possible values, so a table with 256 entries holds the whole function. The converter has no
operation for such a table. It gets a LEAKY_RELU as a placeholder, which it quantises with the ranges of its input and
output; the placeholder's slope, a value that no model uses, identifies the function. In the finished file each
placeholder is replaced by CAST to int32, ADD of 128, and GATHER from the table. ELU is an exception: its placeholder
becomes TFLite's own ELU, which computes such a table when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.core.graph.operations import OpSpec
from tfmot_ops.core.keras.types import Array, TensorLike
from tfmot_ops.core.quantization.scales import LEVELS, Range
from tfmot_ops.core.tflite.late_weights import LateWeightsError, packed, stored_bytes

#: Slope of the placeholder for function 0; the next ones are -1 apart. Exact in float32.
_SLOPE = -float(1 << 20)
_LOWEST, _HIGHEST = -128, 127
#: Versions of the operations with these types, as the converter of TensorFlow 2.21 gives them.
_VERSIONS = {
    schema.BuiltinOperator.CAST: 3,
    schema.BuiltinOperator.ADD: 1,
    schema.BuiltinOperator.GATHER: 2,
    schema.BuiltinOperator.ELU: 1,
}
#: Operators up to this code are also written to a field of one byte, for old readers.
_LAST_SHORT_CODE = 127


class TablesError(Exception):
    """Some functions cannot be tables, as their placeholders have no int8 tensors or a result is not finite.

    Attributes:
        names: the calls' names; convert again with these functions in float.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(names)))
        self.names = names


@dataclass(frozen=True)
class _Function:
    """An elementwise function that becomes a table in the file.

    Attributes:
        name: of the call.
        compute: (float32 values [256, 1, ...]) -> results of the same shape.
        rank: number of axes that the function is given.
        input_range, output_range: ranges in the QAT model; None takes them from the file.
        is_elu: whether it is TFLite's ELU.
    """

    name: str
    compute: Callable[[Any], Any]
    rank: int
    input_range: Range | None
    output_range: Range | None
    is_elu: bool


class Tables:
    """The functions of one conversion that become tables.

    Args:
        refused: names of the calls that stay in float.
        operations: TFLite operations of the device; None for all. A function whose operation is not among them becomes
            a table too.
    """

    def __init__(self, refused: frozenset[str] = frozenset(), operations: Sequence[str] | None = None) -> None:
        self.refused = refused
        self._operations = operations
        self._functions: list[_Function] = []

    def takes(self, spec: OpSpec) -> bool:
        """Whether a call of an operation with this row becomes a table in the file."""
        is_missing = self._operations is not None and spec.tflite[:1] and spec.tflite[0] not in self._operations
        return spec.table or bool(spec.elementwise and is_missing)

    def start_trace(self) -> None:
        """Forget the functions of an earlier trace; called at the start of each trace."""
        self._functions.clear()

    def placeholder(
        self,
        name: str,
        compute: Callable[[Any], Any],
        value: TensorLike,
        ranges: tuple[Range | None, Range | None],
        *,
        is_elu: bool = False,
    ) -> Any:
        """The operation that stands for a function until the file is written; same shape as `value`.

        Args:
            name: of the call.
            compute: the function.
            value: its argument, float32 [batch, ...].
            ranges: of the argument and of the result, where they are known.
            is_elu: whether the function is ELU with a slope of 1.
        """
        slope = _SLOPE - len(self._functions)
        self._functions.append(_Function(name, compute, len(value.shape), *ranges, is_elu))
        return tf.nn.leaky_relu(value, slope)

    def fill(self, data: bytes) -> bytes:
        """Replace the placeholders in a quantised file by tables.

        Raises:
            TablesError: a function cannot be a table.
        """
        if not self._functions:
            return data
        model = schema.ModelT.InitFromPackedBuf(data)
        size = len(data) - stored_bytes(model)
        failed = [name for graph in model.subgraphs for name in _Subgraph(model, graph).replace(self._functions)]
        if failed:
            raise TablesError(self.refused | set(failed))
        try:
            return packed(model, size)
        except LateWeightsError as error:
            raise TablesError(self.refused | {function.name for function in self._functions}) from error


class _Subgraph:
    """A subgraph of a file whose placeholders are replaced."""

    def __init__(self, model: Any, graph: Any) -> None:
        self._model = model
        self._graph = graph
        #: Contents of the buffers that were added -> their indices, so that equal tables are stored once.
        self._buffers: dict[bytes, int] = {}
        self._offset: int | None = None

    def replace(self, functions: list[_Function]) -> list[str]:
        """Replace the placeholders; returns the names of the functions that have no int8 table."""
        operators: list[Any] = []
        failed: list[str] = []
        for operator in self._graph.operators:
            function = self._function_of(operator, functions)
            made = [operator] if function is None else self._operators(operator, function)
            operators += made
            failed += [function.name] if function is not None and not made else []
        self._graph.operators = operators
        return failed

    def _function_of(self, operator: Any, functions: list[_Function]) -> _Function | None:
        alpha = getattr(operator.builtinOptions, "alpha", None)
        is_leaky = operator.builtinOptionsType == schema.BuiltinOptions.LeakyReluOptions
        return functions[round(_SLOPE - alpha)] if is_leaky and alpha is not None and alpha <= _SLOPE else None

    def _operators(self, operator: Any, function: _Function) -> list[Any]:
        """The operations that take the placeholder's place; none if they cannot."""
        before, after = (self._graph.tensors[int(places[0])] for places in (operator.inputs, operator.outputs))
        if {before.type, after.type} != {schema.TensorType.INT8}:
            return []
        entries = _entries(function, before, after)
        if entries is None:
            return []
        if function.is_elu:
            return [self._operator(schema.BuiltinOperator.ELU, list(operator.inputs), int(operator.outputs[0]))]
        return self._gather(int(operator.inputs[0]), int(operator.outputs[0]), entries)

    def _gather(self, source: int, result: int, entries: Array) -> list[Any]:
        builtin = schema.BuiltinOperator
        name = self._graph.tensors[result].name
        level, index = (self._like(source, name + suffix) for suffix in (b"_level", b"_index"))
        table = self._constant(entries, name + b"_table", self._graph.tensors[result].quantization)
        if self._offset is None:
            self._offset = self._constant(np.array(-_LOWEST, np.int32), b"table_offset", None)
        cast = schema.CastOptionsT(inDataType=schema.TensorType.INT8, outDataType=schema.TensorType.INT32)
        add, gather = schema.AddOptionsT(), schema.GatherOptionsT(axis=0, batchDims=0)
        return [
            self._operator(builtin.CAST, [source], level, schema.BuiltinOptions.CastOptions, cast),
            self._operator(builtin.ADD, [level, self._offset], index, schema.BuiltinOptions.AddOptions, add),
            self._operator(builtin.GATHER, [table, index], result, schema.BuiltinOptions.GatherOptions, gather),
        ]

    def _like(self, source: int, name: bytes) -> int:
        """A new int32 tensor of the shape of another one."""
        shape = self._graph.tensors[source]
        tensor = schema.TensorT(
            shape=shape.shape, shapeSignature=shape.shapeSignature, hasRank=shape.hasRank, name=name, buffer=0
        )
        tensor.type = schema.TensorType.INT32
        return self._added(tensor)

    def _constant(self, values: Array, name: bytes, quantization: Any) -> int:
        stored = values.tobytes()
        if stored not in self._buffers:
            self._buffers[stored] = len(self._model.buffers)
            self._model.buffers.append(schema.BufferT(data=np.frombuffer(stored, np.uint8)))
        tensor = schema.TensorT(
            shape=list(values.shape), hasRank=True, name=name, quantization=quantization, buffer=self._buffers[stored]
        )
        tensor.type = schema.TensorType.INT8 if values.dtype == np.int8 else schema.TensorType.INT32
        return self._added(tensor)

    def _added(self, tensor: Any) -> int:
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _operator(self, code: int, inputs: list[int], output: int, kind: int = 0, options: Any = None) -> Any:
        return schema.OperatorT(
            opcodeIndex=self._opcode(code),
            inputs=np.array(inputs, np.int32),
            outputs=np.array([output], np.int32),
            builtinOptionsType=kind,
            builtinOptions=options,
        )

    def _opcode(self, code: int) -> int:
        version, codes = _VERSIONS[code], self._model.operatorCodes
        for place, known in enumerate(codes):
            if (max(known.builtinCode, known.deprecatedBuiltinCode), known.version) == (code, version):
                return place
        short = min(code, _LAST_SHORT_CODE)
        codes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=short, version=version))
        return len(codes) - 1


def _entries(function: _Function, before: Any, after: Any) -> Any:
    """The int8 results [256] for the input values -128 to 127; None if one of them is not finite.

    Both roundings are those of the fake-quant operations that the QAT model trained with.
    """
    scale, zero_point = (value[0] for value in (before.quantization.scale, before.quantization.zeroPoint))
    levels = np.arange(_LOWEST, _HIGHEST + 1)
    values = np.asarray((levels - zero_point) * scale, np.float32)
    low, high = function.input_range or _limits(before)
    values = _rounded(values, low, high).reshape([-1] + [1] * (function.rank - 1))
    results = np.asarray(function.compute(tf.constant(values)), np.float32).reshape(-1)
    if len(results) != len(levels) or not np.isfinite(results).all():
        return None
    scale, zero_point = (value[0] for value in (after.quantization.scale, after.quantization.zeroPoint))
    found = np.rint(_rounded(results, *(function.output_range or _limits(after))) / scale) + zero_point
    return np.clip(found, _LOWEST, _HIGHEST).astype(np.int8)


def _limits(tensor: Any) -> Range:
    """(value of the level -128, value of 127) of an int8 tensor."""
    scale, zero_point = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    low = (_LOWEST - zero_point) * scale
    return low, low + LEVELS * scale


def _rounded(values: Array, low: float, high: float) -> Any:
    # The operation that takes the limits as tensors, as in training: the other one may round ties the other way.
    with tf.init_scope():
        return np.asarray(tf.quantization.fake_quant_with_min_max_vars(tf.constant(values), low, high, num_bits=8))
