"""Late weights: large kernels are converted as placeholder constants and written into the file after the conversion.

The converter makes about ten copies of every weight, and folds, rounds and compares all of them. It stores a constant
whose elements are all equal as one number, so a placeholder costs almost nothing. It would need a kernel's values only
to find the scale, and it takes the scale from the limits of the fake-quant operation after the placeholder.
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
from tfmot_ops.core.tflite.flatbuffer import file_bytes, op_name

#: Smallest kernel, in weights, that is written after the conversion; a smaller one is given to the converter.
SMALLEST_LATE_KERNEL = 1 << 14
#: Float placeholders are filled with _LOWEST + index * _STEP, which is exact in float32 and identifies the kernel.
_LOWEST, _STEP = 2.0**-10, 2.0**-30
_DTYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.INT8: np.dtype(np.int8),
    schema.TensorType.FLOAT32: np.dtype(np.float32),
}
_LEVELS = 127.0
#: TensorFlow 2.21's converter widens ranges narrower than 1e-6, that is limits below half of it. Kernels that small
#: exist: ConvNeXt starts with kernels of 1e-7.
_SMALLEST_LIMIT = np.float32(0.5e-6)
#: Spare bytes of the flatbuffer: alignment, and tables that Python packs less tightly than the converter.
_SLACK = 1 << 20


class LateWeightsError(Exception):
    """A placeholder could not be found in the file, or not uniquely; convert with all weights instead."""


class KernelLayout(NamedTuple):
    """How a kernel is stored in the file.

    Attributes:
        reader: the TFLite operation (`CONV_2D`) that reads the kernel as its second input.
        axes: permutation from Keras' order of axes to the file's, as for `numpy.transpose`.
    """

    reader: str
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _PendingKernel:
    """A kernel to be written, in TFLite's order of axes, with the properties that identify its placeholder."""

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
    """The kernels of one conversion that are written after it.

    Args:
        floats: whether float kernels are among them; False if the converter rounds float kernels itself.
    """

    def __init__(self, *, floats: bool) -> None:
        self.floats = floats
        self._pending: list[_PendingKernel] = []

    def start_trace(self) -> None:
        """Forget the kernels of an earlier trace; called at the start of each trace of the function."""
        self._pending.clear()

    def takes(self, kernel: npt.NDArray[Any], limits: npt.NDArray[Any] | None, layout: KernelLayout) -> bool:
        """Whether a kernel is written after the conversion; same arguments as `constant`."""
        if kernel.size < SMALLEST_LATE_KERNEL:
            return False
        if limits is None:
            return self.floats
        return self._level(kernel, limits, layout) <= _LEVELS

    def constant(self, kernel: npt.NDArray[Any], limits: npt.NDArray[Any] | None, layout: KernelLayout) -> Any:
        """The placeholder for a kernel in the graph; the kernel is remembered for `fill`.

        Args:
            kernel: float32, [kh, kw, C_in, C_out] of a convolution or [C_in, units] of a Dense.
            limits: magnitude of the int8 level 127, [C_out] or a scalar; None for a kernel in float.
            layout: how the kernel is stored in the file.
        """
        reader, order = layout
        if limits is None:
            value = float(np.float32(_LOWEST + len(self._pending) * _STEP))
            self._pending.append(_PendingKernel(np.ascontiguousarray(kernel.transpose(order)), reader, value))
            return tf.constant(value, tf.float32, kernel.shape, name="kernel")
        level = self._level(kernel, limits, layout)
        limits = np.maximum(np.asarray(limits, np.float32), _SMALLEST_LIMIT)
        step = limits / np.float32(_LEVELS)
        # Kernel and limits were multiplied by the same scale, so only rounding in the last bit can exceed 127.
        levels = np.clip(np.rint(kernel * (np.float32(1.0) / step)), -_LEVELS, _LEVELS).astype(np.int8)
        self._pending.append(
            _PendingKernel(np.ascontiguousarray(levels.transpose(order)), reader, level, np.atleast_1d(step))
        )
        placeholder = tf.constant(level * float(np.min(step)), tf.float32, kernel.shape, name="kernel")
        return round_within(placeholder, tf.constant(limits))

    def _level(self, kernel: npt.NDArray[Any], limits: npt.NDArray[Any], layout: KernelLayout) -> int:
        """The int8 level that fills a placeholder: 0, unless all limits are below `_SMALLEST_LIMIT`.

        Placeholders are usually identified by their scales. Kernels with tiny limits all get the smallest scale, and
        the converter would merge their placeholders, so each gets a level of its own: 1, 2, 3, ...
        """
        if np.max(limits) >= _SMALLEST_LIMIT:
            return 0
        shape = tuple(kernel.shape[axis] for axis in layout.axes)
        return 1 + sum(pending.placeholder > 0 and pending.values.shape == shape for pending in self._pending)

    def fill(self, data: bytes) -> bytes:
        """Replace the placeholders in a TFLite file by the kernels.

        Raises:
            LateWeightsError: a kernel's placeholder is missing, a placeholder fits several different kernels, or an
                unexpected operation reads it.
        """
        if not self._pending:
            return data
        model = schema.ModelT.InitFromPackedBuf(data)
        tables = len(data) - stored_bytes(model)
        placed: set[_PendingKernel] = set()
        #: SHA-256 of a kernel's values -> its buffer, so that equal kernels are stored once.
        buffers: dict[bytes, int] = {}
        for graph in model.subgraphs:
            readers = _readers(model, graph)
            for index, tensor in enumerate(graph.tensors):
                found = self._kernels_for(model, tensor)
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
        if missing := [pending for pending in self._pending if pending not in placed]:
            raise LateWeightsError(f"{len(missing)} of {len(self._pending)} kernels have no placeholder in the file")
        self._pending.clear()
        return packed(model, tables)

    def _kernels_for(self, model: Any, tensor: Any) -> list[_PendingKernel]:
        """The kernels that a tensor is the placeholder of; several only if their values are equal."""
        data = model.buffers[tensor.buffer].data
        dtype = _DTYPES.get(tensor.type)
        if data is None or dtype is None or np.size(data) < SMALLEST_LATE_KERNEL * dtype.itemsize:
            return []
        stored: npt.NDArray[Any] = np.asarray(data, np.uint8).view(dtype)
        found = [pending for pending in self._pending if pending.stands_for(tensor, stored)]
        if any(not np.array_equal(pending.values, found[0].values) for pending in found[1:]):
            raise LateWeightsError(f"{tensor.name!r} may be the placeholder of {len(found)} kernels")
        return found


def _readers(model: Any, graph: Any) -> dict[int, set[tuple[str, int]]]:
    """Tensor index -> (op name, position among the op's inputs) of each operation that reads it."""
    found: dict[int, set[tuple[str, int]]] = {}
    for op in graph.operators:
        name = op_name(model.operatorCodes[op.opcodeIndex])
        for place, index in enumerate(op.inputs if op.inputs is not None else ()):
            found.setdefault(int(index), set()).add((name, place))
    return found


def stored_bytes(model: Any) -> int:
    """Bytes of the constants of a file."""
    return sum(np.size(buffer.data) for buffer in model.buffers if buffer.data is not None)


def packed(model: Any, tables: int) -> bytes:
    """The file of a model, without unused buffers.

    Args:
        model: `schema.ModelT`.
        tables: size in bytes of everything except the buffers.

    Raises:
        LateWeightsError: the file would exceed 2 GiB.
    """
    owners = [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *(model.metadata or ())]
    used = sorted({0, *(owner.buffer for owner in owners)})
    places = {old: new for new, old in enumerate(used)}
    for owner in owners:
        owner.buffer = places[owner.buffer]
    # A deprecated field of buffer indices, which would point at the wrong buffers after renumbering.
    model.metadataBuffer = None
    model.buffers = [model.buffers[index] for index in used]
    size = tables + stored_bytes(model) + _SLACK
    if size > flatbuffers.Builder.MAX_BUFFER_SIZE:
        raise LateWeightsError(f"a flatbuffer of {size} bytes exceeds the limit of 2 GiB")
    return file_bytes(model, size)
