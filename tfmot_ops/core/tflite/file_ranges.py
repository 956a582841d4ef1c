"""The ranges that calibration found for the tensors of a float TFLite file, made fit to quantise the file with."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.core.keras.types import Array
from tfmot_ops.core.quantization.scales import WEIGHT_LEVELS, Range, Sums, computable, smallest_limits
from tfmot_ops.errors import CalibrationError

_OP_NAMES: dict[int, str] = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
#: Op -> place of (data, weights, bias) among its inputs.
_WEIGHTED = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), (0, 1, 2)),
    "TRANSPOSE_CONV": (2, 1, 3),
}
_PRODUCTS = {"MUL", "BATCH_MATMUL"}
_ADDITIONS = {"ADD", "SUB", "MEAN", "SUM", "LEAKY_RELU", "PRELU", "HARD_SWISH", "RELU", "RELU6"}
#: TFLite fixes the output range of these.
_FIXED = {"LOGISTIC": (0.0, 1.0), "SOFTMAX": (0.0, 1.0), "TANH": (-1.0, 1.0)}
#: Ops that TFLite wants one range for, inputs and outputs together.
_ONE_RANGE = {
    *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "PADV2", "MIRROR_PAD", "TILE", "BROADCAST_TO"),
    *("CONCATENATION", "PACK", "UNPACK", "SPLIT", "SPLIT_V", "SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND"),
    *("MAX_POOL_2D", "AVERAGE_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM"),
    *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH"),
    *("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "REVERSE_V2"),
}
_FLOAT = schema.TensorType.FLOAT32
#: From here on a value counts as infinite: the converter writes the largest float32, 3.4e38, for infinity.
_INFINITE = 1e38


def make_computable(data: bytes, ranges: Mapping[str, Range], kept: Iterable[str] = ()) -> dict[str, Range]:
    """The ranges that have to change, by the name of the tensor, with what they become.

    Args:
        data: a float TFLite file.
        ranges: name of a tensor -> (low, high) over all calibration samples.
        kept: names of the tensors whose operations stay in float.

    Raises:
        CalibrationError: a range is not finite; the tensor is named.
    """
    file = _File(schema.ModelT.InitFromPackedBuf(data))
    _require_finite(file, ranges, set(kept))
    ranges = {name: found for name, found in ranges.items() if _is_finite(found)}
    group, each = file.groups(), {index: index for index in file.names}
    own: dict[Hashable, Range] = {
        index: ranges[name] for index, name in file.names.items() if name in ranges and index not in file.constants
    }
    together: dict[Hashable, Range] = {}
    for index, first in group.items():
        if index in own:
            low, high = together.get(first, (0.0, 0.0))
            together[first] = min(low, own[index][0]), max(high, own[index][1])
    wanted = computable(together, file.sums(group), file.known(group))
    # Not every quantiser gives the tensors of a group one range: one that is too small by itself gets the group's.
    alone = computable(own, file.sums(each), file.known(each))
    return {
        file.names[index]: wanted[first]
        for index, first in group.items()
        if index in own and (own[index] != alone[index] or together[first] != wanted[first])
    }


def _require_finite(file: _File, ranges: Mapping[str, Range], kept: set[str]) -> None:
    bad = {name: found for name, found in ranges.items() if not _is_finite(found)}
    # Google's quantiser takes no infinity for an extreme, so constants are looked at too.
    for index, values in file.constants.items():
        if not np.all(np.abs(values) < _INFINITE):
            bad[file.names[index]] = float(np.nanmin(values)), float(np.nanmax(values))
    for name in sorted(bad.keys() & file.read_in_integers(kept)):
        low, high = bad[name]
        raise CalibrationError(
            f"tensor {name!r} of the float file is not finite for the calibration data",
            required="finite values in every tensor that an integer operation computes or reads",
            received=f"values from {low} to {high}",
            remedy="keep the layer that computes it in float by the recipe's quantization.scope, or bound its "
            "input (a logarithm of 0, a division by 0, an infinite constant)",
        )


def widen_calibrated(data: bytes, kept: Iterable[str] = ()) -> bytes:
    """A float file that carries the ranges the converter's calibration found, with those that have to change changed.

    Args:
        data: what the converter's calibration made.
        kept: see `make_computable`.

    Raises:
        CalibrationError: see `make_computable`.
    """
    model = schema.ModelT.InitFromPackedBuf(data)
    entries = {
        _text(tensor.name): tensor
        for tensor in model.subgraphs[0].tensors
        if tensor.type == _FLOAT and getattr(tensor.quantization, "min", None) is not None
    }
    seen = {
        name: (float(tensor.quantization.min[0]), float(tensor.quantization.max[0])) for name, tensor in entries.items()
    }
    wanted = make_computable(data, seen, kept)
    endless = [name for name, extremes in seen.items() if not _is_finite(extremes)]
    if not (wanted or endless):
        return data
    for name, (low, high) in wanted.items():
        entries[name].quantization.min = np.array([low], np.float32)
        entries[name].quantization.max = np.array([high], np.float32)
    for name in endless:
        # In float it needs none, and the converter would give it to an int8 tensor before.
        entries[name].quantization = None
    return _packed(model, len(data))


def make_room_for_biases(quantized: bytes, source: bytes) -> bytes:
    """A quantised file whose biases fit: where one was cut off, on larger steps of its channel's weights.

    The TFLite converter does so by itself, Google's quantiser does not.

    Args:
        quantized: the file, with integer activations.
        source: the float file it was made from; its tensors have the same names.
    """
    model = schema.ModelT.InitFromPackedBuf(quantized)
    original = _File(schema.ModelT.InitFromPackedBuf(source))
    biases = {original.names[index]: values for index, values in original.constants.items()}
    file = _File(model)
    # Several operations may read one kernel: it gets the largest steps that one of them needs.
    needed: dict[int, Any] = {}
    readers = [(data, weights, bias) for data, weights, bias in file.weighted() if file.names.get(bias) in biases]
    for data, weights, bias in readers:
        scales, smallest = file.scales(weights), _steps(biases[file.names[bias]], file.scales(data))
        if scales is not None and smallest is not None:
            present = needed.get(weights, scales)
            needed[weights] = np.maximum(present, smallest if len(present) > 1 else np.max(smallest))
    changed = {index: steps for index, steps in needed.items() if np.any(steps > file.scales(index))}
    if not changed:
        return quantized
    for data, weights, bias in readers:
        if weights in changed:
            file.store_bias(bias, biases[file.names[bias]], file.scales(data)[0] * changed[weights])
    for weights, steps in changed.items():
        file.rescale(weights, steps)
    return _packed(model, len(quantized))


def _packed(model: schema.ModelT, size: int) -> bytes:
    builder = flatbuffers.Builder(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _is_finite(extremes: Range) -> bool:
    return all(abs(extreme) < _INFINITE for extreme in extremes)


def _steps(bias: Array, input_scales: Array | None) -> Any:
    """The smallest scales of the weights of each channel on which a bias fits; None where the input has no scale."""
    return None if input_scales is None else smallest_limits(bias, float(input_scales[0])) / np.float32(WEIGHT_LEVELS)


def _text(name: object) -> str:
    return name.decode() if isinstance(name, bytes) else str(name or "")


class _File:
    """The main graph of a TFLite file, as far as scales go."""

    def __init__(self, model: schema.ModelT) -> None:
        self.model = model
        self.graph = model.subgraphs[0]
        self.names = {index: _text(tensor.name) for index, tensor in enumerate(self.graph.tensors)}
        #: Tensor index -> its numbers, of float constants.
        self.constants = {
            index: np.asarray(data, np.uint8).view(np.float32)
            for index, tensor in enumerate(self.graph.tensors)
            if tensor.type == _FLOAT and np.size(data := model.buffers[tensor.buffer].data) > 1
        }

    def _ops(self) -> list[tuple[str, list[int], list[int]]]:
        """(op name, inputs, outputs), without optional inputs that are absent at the end."""
        codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in self.model.operatorCodes]
        return [
            (_OP_NAMES.get(codes[op.opcodeIndex], ""), [int(i) for i in op.inputs], [int(i) for i in op.outputs])
            for op in self.graph.operators
        ]

    def read_in_integers(self, kept: set[str]) -> set[str]:
        """Names of the tensors that operations write or read which do not stay in float."""
        return {
            self.names[index]
            for _, inputs, outputs in self._ops()
            if not kept.intersection(self.names[index] for index in outputs)
            for index in (*inputs, *outputs)
            if index >= 0
        }

    def groups(self) -> dict[int, int]:
        """Tensor index -> the first tensor of those it has one range with."""
        leader = {index: index for index in self.names}

        def find(index: int) -> int:
            while leader[index] != index:
                index = leader[index]
            return index

        for name, inputs, outputs in self._ops():
            tied = [i for i in (*inputs, *outputs) if i >= 0 and self.graph.tensors[i].type == _FLOAT]
            if name in _ONE_RANGE and tied:
                for index in tied[1:]:
                    leader[find(index)] = find(tied[0])
        return {index: find(index) for index in leader}

    def known(self, group: Mapping[int, int]) -> dict[Hashable, Range]:
        """Ranges that calibration has no say in: of constants, and those that TFLite fixes."""
        constants: dict[Hashable, Range] = {
            group[index]: (min(float(values.min()), 0.0), max(float(values.max()), 0.0))
            for index, values in self.constants.items()
            if any(index in inputs for name, inputs, _ in self._ops() if name in _PRODUCTS | _ADDITIONS)
        }
        return constants | {group[outputs[0]]: _FIXED[name] for name, _, outputs in self._ops() if name in _FIXED}

    def sums(self, group: Mapping[int, int]) -> list[Sums]:
        """What each tensor is computed from."""
        found = []
        for name, inputs, outputs in self._ops():
            data, weights, _ = _WEIGHTED.get(name, (0, 0, 0))
            output = group[outputs[0]] if outputs else None
            if name in _WEIGHTED and inputs[weights] in self.constants:
                largest = float(np.max(np.abs(self.constants[inputs[weights]])))
                found.append(Sums((group[inputs[data]],), output, largest_weight=largest))
            elif name in _WEIGHTED or name in _PRODUCTS:
                found.append(Sums(tuple(group[i] for i in inputs[:2]), output, multiplied=True))
            elif name in _ADDITIONS:
                found.append(Sums(tuple(group[i] for i in inputs[:2]), output))
        return found

    def weighted(self) -> list[tuple[int, int, int]]:
        """Indices of (data, weights, bias) of each operation that has all three."""
        found = []
        for name, inputs, _ in self._ops():
            places = _WEIGHTED.get(name, ())
            if places and len(inputs) > max(places) and min(inputs[place] for place in places) >= 0:
                data, weights, bias = (inputs[place] for place in places)
                found.append((data, weights, bias))
        return found

    def scales(self, index: int) -> Any:
        """Scales of a tensor of integers, None for one that has none."""
        quantization = self.graph.tensors[index].quantization
        return None if quantization is None or not np.size(quantization.scale) else quantization.scale

    def store_bias(self, index: int, values: Array, scales: Array) -> None:
        """Write a bias anew, counted in these scales."""
        tensor = self.graph.tensors[index]
        dtype = np.int32 if tensor.type == schema.TensorType.INT32 else np.int64
        tensor.quantization.scale = np.broadcast_to(np.asarray(scales, np.float32), tensor.quantization.scale.shape)
        self._store(tensor, np.rint(values.astype(np.float64) / scales).astype(dtype))

    def rescale(self, index: int, scales: Array) -> None:
        """Count int8 weights in other scales."""
        tensor = self.graph.tensors[index]
        stored = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8).view(np.int8).reshape(tensor.shape)
        factor = tensor.quantization.scale / scales
        if len(factor) > 1:
            axes = [1] * stored.ndim
            axes[tensor.quantization.quantizedDimension] = -1
            factor = factor.reshape(axes)
        tensor.quantization.scale = np.asarray(scales, np.float32)
        self._store(tensor, np.rint(stored * factor).astype(np.int8))

    def _store(self, tensor: schema.TensorT, values: Array) -> None:
        buffer = schema.BufferT()
        buffer.data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        # A buffer of its own: others may have had the old one too.
        tensor.buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)
