"""Corrects the calibrated ranges of a float TFLite file, so that int8 kernels can compute with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.core.keras.types import Array
from tfmot_ops.core.quantization.scales import (
    WEIGHT_LEVELS,
    Accumulation,
    Range,
    smallest_limits,
    widened_for_accumulation,
)
from tfmot_ops.core.tflite.flatbuffer import file_bytes, op_name
from tfmot_ops.errors import CalibrationError

#: TFLite op -> positions of (data, weights, bias) among its inputs.
_WEIGHTED = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), (0, 1, 2)),
    "TRANSPOSE_CONV": (2, 1, 3),
}
_PRODUCTS = {"MUL", "BATCH_MATMUL"}
_ADDITIONS = {"ADD", "SUB", "MEAN", "SUM", "LEAKY_RELU", "PRELU", "HARD_SWISH", "RELU", "RELU6"}
#: Ops whose output range TFLite prescribes -> that range.
_FIXED = {"LOGISTIC": (0.0, 1.0), "SOFTMAX": (0.0, 1.0), "TANH": (-1.0, 1.0)}
#: Ops for which TFLite requires one range for all inputs and outputs.
_ONE_RANGE = {
    *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "PADV2", "MIRROR_PAD", "TILE", "BROADCAST_TO"),
    *("CONCATENATION", "PACK", "UNPACK", "SPLIT", "SPLIT_V", "SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND"),
    *("MAX_POOL_2D", "AVERAGE_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM"),
    *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH"),
    *("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "REVERSE_V2"),
}
_FLOAT = schema.TensorType.FLOAT32
#: Magnitudes from here on count as infinite: the converter writes the largest float32, 3.4e38, for infinity.
_INFINITE = 1e38


def ranges_to_widen(data: bytes, ranges: Mapping[str, Range], float_names: Iterable[str] = ()) -> dict[str, Range]:
    """The ranges that have to be widened, see `scales.widened_for_accumulation`.

    Args:
        data: a float TFLite file.
        ranges: tensor name -> (low, high) over all calibration samples.
        float_names: names of the tensors whose operations stay in float.

    Returns:
        Tensor name -> new range, for the tensors whose range changes.

    Raises:
        CalibrationError: a range is not finite; names the tensor.
    """
    file = _File(schema.ModelT.InitFromPackedBuf(data))
    _require_finite(file, ranges, set(float_names))
    ranges = {name: found for name, found in ranges.items() if _is_finite(found)}
    group, ungrouped = file.groups(), {index: index for index in file.names}
    own: dict[Hashable, Range] = {
        index: ranges[name] for index, name in file.names.items() if name in ranges and index not in file.constants
    }
    together: dict[Hashable, Range] = {}
    for index, first in group.items():
        if index in own:
            low, high = together.get(first, (0.0, 0.0))
            together[first] = min(low, own[index][0]), max(high, own[index][1])
    widened = widened_for_accumulation(together, file.accumulations(group), file.fixed_ranges(group))
    # Not every quantiser gives a group one range, so a tensor whose own range is too narrow gets the group's range.
    alone = widened_for_accumulation(own, file.accumulations(ungrouped), file.fixed_ranges(ungrouped))
    return {
        file.names[index]: widened[first]
        for index, first in group.items()
        if index in own and (own[index] != alone[index] or together[first] != widened[first])
    }


def _require_finite(file: _File, ranges: Mapping[str, Range], float_names: set[str]) -> None:
    """Refuse ranges and constants that are not finite, where an integer operation reads or writes the tensor."""
    bad = {name: found for name, found in ranges.items() if not _is_finite(found)}
    # The AI Edge Quantizer fails on an infinite constant, so constants are checked too.
    for index, values in file.constants.items():
        if not np.all(np.abs(values) < _INFINITE):
            bad[file.names[index]] = float(np.nanmin(values)), float(np.nanmax(values))
    for name in sorted(bad.keys() & file.names_in_integer_operations(float_names)):
        low, high = bad[name]
        raise CalibrationError(
            f"tensor {name!r} of the float file is not finite for the calibration data",
            required="finite values in every tensor that an integer operation reads or writes",
            received=f"values from {low} to {high}",
            remedy="keep the layer that computes it in float by the recipe's quantization.scope, or bound its "
            "input (a logarithm of 0, a division by 0, an infinite constant)",
        )


def ranges_in(data: bytes) -> dict[str, Range]:
    """Tensor name -> (low, high) of the ranges that the converter's calibration wrote into a float TFLite file."""
    entries = _with_range(schema.ModelT.InitFromPackedBuf(data))
    return {
        name: (float(tensor.quantization.min[0]), float(tensor.quantization.max[0])) for name, tensor in entries.items()
    }


def constants_in(data: bytes) -> set[str]:
    """Names of the float tensors of a TFLite file whose values the file holds."""
    file = _File(schema.ModelT.InitFromPackedBuf(data))
    return {file.names[index] for index in file.constants}


def dense_with_own_input(data: bytes) -> list[str]:
    """Names of the tensors that FULLY_CONNECTED writes, where no other tensor has to share the range of its input."""
    file = _File(schema.ModelT.InitFromPackedBuf(data))
    groups = file.groups()
    sizes = Counter(groups.values())
    return [
        file.names[outputs[0]]
        for name, inputs, outputs in file.ops()
        if name == "FULLY_CONNECTED" and sizes[groups[inputs[0]]] == 1
    ]


def with_ranges(data: bytes, ranges: Mapping[str, Range]) -> bytes:
    """A float TFLite file with other ranges for the tensors named in `ranges`, which have a range already."""
    if not ranges:
        return data
    model = schema.ModelT.InitFromPackedBuf(data)
    entries = _with_range(model)
    for name, (low, high) in ranges.items():
        entries[name].quantization.min = np.array([low], np.float32)
        entries[name].quantization.max = np.array([high], np.float32)
    return file_bytes(model, len(data))


def shared_ranges(data: bytes, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges in which the tensors that TFLite ties to one range have the union of their own.

    Args:
        data: a float TFLite file.
        ranges: tensor name -> (low, high).
    """
    file = _File(schema.ModelT.InitFromPackedBuf(data))
    together: dict[int, Range] = {}
    groups = {file.names[index]: first for index, first in file.groups().items() if file.names[index] in ranges}
    for name, first in groups.items():
        (low, high), (lowest, highest) = together.get(first, (0.0, 0.0)), ranges[name]
        together[first] = float(np.minimum(low, lowest)), float(np.maximum(high, highest))
    return {name: together[first] for name, first in groups.items()}


def widen_calibrated(data: bytes, float_names: Iterable[str] = ()) -> bytes:
    """Widen the ranges in a calibrated file where `ranges_to_widen` requires it.

    Args:
        data: a float TFLite file with the ranges that the converter's calibration wrote.
        float_names: names of the tensors whose operations stay in float.

    Raises:
        CalibrationError: see `ranges_to_widen`.
    """
    seen = ranges_in(data)
    data = with_ranges(data, ranges_to_widen(data, seen, float_names))
    infinite = [name for name, extremes in seen.items() if not _is_finite(extremes)]
    if not infinite:
        return data
    model = schema.ModelT.InitFromPackedBuf(data)
    entries = _with_range(model)
    for name in infinite:
        # A float tensor needs no range, and the converter would copy an infinite one to the int8 tensor before it.
        entries[name].quantization = None
    return file_bytes(model, len(data))


def _with_range(model: schema.ModelT) -> dict[str, Any]:
    """Name -> tensor, for the float tensors with a range."""
    return {
        _text(tensor.name): tensor
        for tensor in model.subgraphs[0].tensors
        if tensor.type == _FLOAT and getattr(tensor.quantization, "min", None) is not None
    }


def enlarge_scales_for_biases(quantized: bytes, source: bytes) -> bytes:
    """Enlarge the weight scales of channels whose bias does not fit int32.

    A bias is stored as bias / (input scale * weight scale). The TFLite converter enlarges scales by itself, the AI
    Edge Quantizer clips the bias instead.

    Args:
        quantized: TFLite file with integer activations.
        source: the float TFLite file that was quantised; its tensors have the same names.
    """
    model = schema.ModelT.InitFromPackedBuf(quantized)
    original = _File(schema.ModelT.InitFromPackedBuf(source))
    biases = {original.names[index]: values for index, values in original.constants.items()}
    file = _File(model)
    # Several operations may read one kernel: it gets the largest scale that any of them needs.
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
    return file_bytes(model, len(quantized))


def _is_finite(extremes: Range) -> bool:
    return all(abs(extreme) < _INFINITE for extreme in extremes)


def _steps(bias: Array, input_scales: Array | None) -> Any:
    """The smallest weight scale of each channel with which the bias fits int32; None if the input has no scale."""
    return None if input_scales is None else smallest_limits(bias, float(input_scales[0])) / np.float32(WEIGHT_LEVELS)


def _text(name: object) -> str:
    return name.decode() if isinstance(name, bytes) else str(name or "")


class _File:
    """The main graph of a TFLite file: its operations, constants, ranges and scales."""

    def __init__(self, model: schema.ModelT) -> None:
        self.model = model
        self.graph = model.subgraphs[0]
        self.names = {index: _text(tensor.name) for index, tensor in enumerate(self.graph.tensors)}
        #: Tensor index -> values, for each float constant.
        self.constants = {
            index: np.asarray(data, np.uint8).view(np.float32)
            for index, tensor in enumerate(self.graph.tensors)
            if tensor.type == _FLOAT and np.size(data := model.buffers[tensor.buffer].data) > 1
        }

    def ops(self) -> list[tuple[str, list[int], list[int]]]:
        """(op name, input indices, output indices) of each operation; -1 stands for an absent optional input."""
        names = [op_name(code) for code in self.model.operatorCodes]
        return [
            (names[op.opcodeIndex], [int(i) for i in op.inputs], [int(i) for i in op.outputs])
            for op in self.graph.operators
        ]

    def names_in_integer_operations(self, float_names: set[str]) -> set[str]:
        """Names of the tensors of integer operations, which are all operations but those that write `float_names`."""
        return {
            self.names[index]
            for _, inputs, outputs in self.ops()
            if not float_names.intersection(self.names[index] for index in outputs)
            for index in (*inputs, *outputs)
            if index >= 0
        }

    def groups(self) -> dict[int, int]:
        """Tensor index -> a representative of the group of tensors that share its range."""
        leader = {index: index for index in self.names}

        def find(index: int) -> int:
            while leader[index] != index:
                index = leader[index]
            return index

        for name, inputs, outputs in self.ops():
            tied = [i for i in (*inputs, *outputs) if i >= 0 and self.graph.tensors[i].type == _FLOAT]
            if name in _ONE_RANGE and tied:
                for index in tied[1:]:
                    leader[find(index)] = find(tied[0])
        return {index: find(index) for index in leader}

    def fixed_ranges(self, group: Mapping[int, int]) -> dict[Hashable, Range]:
        """Ranges that do not come from calibration: of constants, and of ops whose range TFLite prescribes."""
        constants: dict[Hashable, Range] = {
            group[index]: (min(float(values.min()), 0.0), max(float(values.max()), 0.0))
            for index, values in self.constants.items()
            if any(index in inputs for name, inputs, _ in self.ops() if name in _PRODUCTS | _ADDITIONS)
        }
        return constants | {group[outputs[0]]: _FIXED[name] for name, _, outputs in self.ops() if name in _FIXED}

    def accumulations(self, group: Mapping[int, int]) -> list[Accumulation]:
        """The operations that compute sums or products, with the groups of their inputs and outputs."""
        found = []
        for name, inputs, outputs in self.ops():
            data, weights, _ = _WEIGHTED.get(name, (0, 0, 0))
            output = group[outputs[0]] if outputs else None
            if name in _WEIGHTED and inputs[weights] in self.constants:
                largest = float(np.max(np.abs(self.constants[inputs[weights]])))
                found.append(Accumulation((group[inputs[data]],), output, largest_weight=largest))
            elif name in _WEIGHTED or name in _PRODUCTS:
                found.append(Accumulation(tuple(group[i] for i in inputs[:2]), output, multiplied=True))
            elif name in _ADDITIONS:
                found.append(Accumulation(tuple(group[i] for i in inputs[:2]), output))
        return found

    def weighted(self) -> list[tuple[int, int, int]]:
        """Indices of (data, weights, bias) of each operation that has all three."""
        found = []
        for name, inputs, _ in self.ops():
            places = _WEIGHTED.get(name, ())
            if places and len(inputs) > max(places) and min(inputs[place] for place in places) >= 0:
                data, weights, bias = (inputs[place] for place in places)
                found.append((data, weights, bias))
        return found

    def scales(self, index: int) -> Any:
        """Scales of a tensor, [1] or [channels]; None for a tensor that is not quantised."""
        quantization = self.graph.tensors[index].quantization
        return None if quantization is None or not np.size(quantization.scale) else quantization.scale

    def store_bias(self, index: int, values: Array, scales: Array) -> None:
        """Store a bias as integers, rint(values / scales)."""
        tensor = self.graph.tensors[index]
        dtype = np.int32 if tensor.type == schema.TensorType.INT32 else np.int64
        tensor.quantization.scale = np.broadcast_to(np.asarray(scales, np.float32), tensor.quantization.scale.shape)
        self._store(tensor, np.rint(values.astype(np.float64) / scales).astype(dtype))

    def rescale(self, index: int, scales: Array) -> None:
        """Convert int8 weights to new scales: rint(stored * old scale / new scale)."""
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
        # A new buffer, as other tensors may share the old one.
        tensor.buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)
