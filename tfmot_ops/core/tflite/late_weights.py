"""Deferred weights: large kernels that the converter sees as one number each, written into its file afterwards.

The converter holds some ten copies of every weight it is given, and folds, rounds and compares them all. Of a constant
whose elements are equal it holds one number. What it decides by a kernel's values, its scale, is in the limits of the
fake-quant operation behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.core.quantization.quantizers import round_within

#: Smallest kernel, in weights, that is written after the conversion; a smaller one is given to the converter.
LARGE = 1 << 14
#: Values of float placeholders: LOWEST + index * STEP, exact in float32; known by all elements being equal.
_LOWEST, _STEP = 2.0**-10, 2.0**-30
_DTYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.INT8: np.dtype(np.int8),
    schema.TensorType.FLOAT32: np.dtype(np.float32),
}
_LEVELS = 127.0
#: The converter widens a range below 1e-6, seen in TensorFlow 2.21 (a ConvNeXt starts with kernels of 1e-7).
_SMALLEST_LIMIT = np.float32(0.5e-6)
#: Bytes for alignment and for tables that are packed less tightly than by the converter.
_SLACK = 1 << 20


class LateWeightsError(Exception):
    """A kernel's place in the file was not found beyond doubt; convert with the kernels themselves."""


class Place(NamedTuple):
    """Where a kernel stands in the file.

    Attributes:
        reader: the TFLite operation that reads it, as its second input.
        axes: the order of its axes there, as `numpy.transpose` takes it.
    """

    reader: str
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Late:
    """A kernel to be written, in TFLite's order of axes, what reads it, and how its tensor is known."""

    values: npt.NDArray[Any]
    reader: str
    placeholder: float = 0.0
    scales: npt.NDArray[np.float32] | None = None

    def stands_for(self, tensor: Any, stored: npt.NDArray[Any]) -> bool:
        if list(tensor.shape) != list(self.values.shape) or stored.dtype != self.values.dtype:
            return False
        if self.scales is not None:
            scales = tensor.quantization.scale if tensor.quantization is not None else None
            if scales is None or not np.allclose(scales, self.scales, rtol=1e-5, atol=0.0):
                return False
        return bool((stored == self.placeholder).all())


class LateWeights:
    """The kernels of one conversion.

    Args:
        floats: whether kernels that are not rounded are given late too; not where the converter rounds them itself.
    """

    def __init__(self, *, floats: bool) -> None:
        self.floats = floats
        self._late: list[_Late] = []

    def begin(self) -> None:
        """Forget the kernels of an earlier trace of the same function."""
        self._late.clear()

    def takes(self, kernel: npt.NDArray[Any], limits: npt.NDArray[Any] | None, place: Place) -> bool:
        """Whether a kernel is given late; the arguments as for `constant`."""
        if kernel.size < LARGE:
            return False
        if limits is None:
            return self.floats
        return self._level(kernel, limits, place) <= _LEVELS

    def constant(self, kernel: npt.NDArray[Any], limits: npt.NDArray[Any] | None, place: Place) -> Any:
        """What stands for a kernel in the graph.

        Args:
            kernel: of a convolution [kh, kw, C_in, C_out] or a Dense [C_in, units], float32.
            limits: largest magnitude that int8 has to hold, [C_out] or a scalar; None for a kernel in float.
            place: where it stands in the file.
        """
        reader, order = place
        if limits is None:
            value = float(np.float32(_LOWEST + len(self._late) * _STEP))
            self._late.append(_Late(np.ascontiguousarray(kernel.transpose(order)), reader, value))
            return tf.constant(value, tf.float32, kernel.shape, name="kernel")
        level = self._level(kernel, limits, place)
        limits = np.maximum(np.asarray(limits, np.float32), _SMALLEST_LIMIT)
        step = limits / np.float32(_LEVELS)
        # Kernel and limits were folded with the same scale, so a level may be passed by the last bit only.
        levels = np.clip(np.rint(kernel * (np.float32(1.0) / step)), -_LEVELS, _LEVELS).astype(np.int8)
        self._late.append(_Late(np.ascontiguousarray(levels.transpose(order)), reader, level, np.atleast_1d(step)))
        placeholder = tf.constant(level * float(np.min(step)), tf.float32, kernel.shape, name="kernel")
        return round_within(placeholder, tf.constant(limits))

    def _level(self, kernel: npt.NDArray[Any], limits: npt.NDArray[Any], place: Place) -> int:
        """The int8 level of a placeholder: 0, as kernels are told apart by their scales, except the smallest.

        Those all have one scale, and the converter would take two of them for one, so each gets a level of its own.
        """
        if np.max(limits) >= _SMALLEST_LIMIT:
            return 0
        shape = tuple(kernel.shape[axis] for axis in place.axes)
        return 1 + sum(late.placeholder > 0 and late.values.shape == shape for late in self._late)

    def fill(self, data: bytes) -> bytes:
        """The file with the kernels in their places.

        Raises:
            LateWeightsError: a kernel has no place, a place several kernels, or a kernel another reader than it has to.
        """
        if not self._late:
            return data
        model = schema.ModelT.InitFromPackedBuf(data)
        tables = len(data) - _stored_bytes(model)
        placed: set[_Late] = set()
        #: Values of a kernel -> its buffer: a kernel that several calls read is stored once.
        buffers: dict[bytes, int] = {}
        for graph in model.subgraphs:
            readers = _readers(model, graph)
            for index, tensor in enumerate(graph.tensors):
                found = self._of(model, tensor)
                if not found:
                    continue
                values = found[0].values
                if readers.get(index) != {(found[0].reader, 1)}:
                    raise LateWeightsError(f"{tensor.name!r} is read by {readers.get(index)}")
                placed.update(found)
                tensor.buffer = buffers.setdefault(sha256(values.data).digest(), len(model.buffers))
                if tensor.buffer == len(model.buffers):
                    buffer = schema.BufferT()
                    buffer.data = values.reshape(-1).view(np.uint8)
                    model.buffers.append(buffer)
        if lost := [late for late in self._late if late not in placed]:
            raise LateWeightsError(f"{len(lost)} of {len(self._late)} kernels have no place")
        self._late.clear()
        return _pack(model, tables)

    def _of(self, model: Any, tensor: Any) -> list[_Late]:
        """The kernels a tensor stands for: several where they are equal."""
        data = model.buffers[tensor.buffer].data
        dtype = _DTYPES.get(tensor.type)
        if data is None or dtype is None or np.size(data) < LARGE * dtype.itemsize:
            return []
        stored: npt.NDArray[Any] = np.asarray(data, np.uint8).view(dtype)
        found = [late for late in self._late if late.stands_for(tensor, stored)]
        if any(not np.array_equal(late.values, found[0].values) for late in found[1:]):
            raise LateWeightsError(f"{tensor.name!r} may stand for {len(found)} kernels")
        return found


def _readers(model: Any, graph: Any) -> dict[int, set[tuple[str, int]]]:
    """Tensor index -> (op name, place among its inputs) of what reads it."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    found: dict[int, set[tuple[str, int]]] = {}
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        for place, index in enumerate(op.inputs if op.inputs is not None else ()):
            found.setdefault(int(index), set()).add((names[max(code.builtinCode, code.deprecatedBuiltinCode)], place))
    return found


def _stored_bytes(model: Any) -> int:
    return sum(np.size(buffer.data) for buffer in model.buffers if buffer.data is not None)


def _pack(model: Any, tables: int) -> bytes:
    """The flatbuffer, without the buffers that no tensor has any more; `tables` are the bytes of all but buffers."""
    owners = [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *(model.metadata or ())]
    used = sorted({0, *(owner.buffer for owner in owners)})
    places = {old: new for new, old in enumerate(used)}
    for owner in owners:
        owner.buffer = places[owner.buffer]
    # A list of buffers from before metadata had names.
    model.metadataBuffer = None
    model.buffers = [model.buffers[index] for index in used]
    size = tables + _stored_bytes(model) + _SLACK
    if size > flatbuffers.Builder.MAX_BUFFER_SIZE:
        raise LateWeightsError(f"a flatbuffer of {size} bytes is larger than the 2 GiB it may have")
    builder = flatbuffers.Builder(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    # `Output` would be a second copy.
    return bytes(memoryview(builder.Bytes)[builder.Head() :])
