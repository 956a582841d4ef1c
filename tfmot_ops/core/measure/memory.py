"""Memory that a TFLite file needs for its activations: the interpreter's arena, measured in this process."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tfmot_ops.core.tflite.interpreter import damage_as_artifact_error, make_interpreter
from tfmot_ops.errors import ArtifactError

#: Alignment of a tensor in the arena, in bytes (`kDefaultTensorAlignment` of TFLite's arena planner).
_ALIGNMENT = 64


def arena_bytes(data: bytes) -> int:
    """Size in bytes of the arena that TFLite's planner allocates for a file with a batch of 1.

    The arena holds inputs, outputs, intermediate tensors and scratch buffers; tensors that are not alive at the same
    time share memory. Weights, and tensors whose size is only known at run time, are not in it. The Python interpreter
    does not report the arena's size, so it is computed from the tensors' addresses: the arena is the memory around the
    graph's inputs without a gap as wide as the alignment. XNNPACK is off, as its workspace cannot be measured.

    Args:
        data: the file's bytes.

    Raises:
        ArtifactError: the bytes are no TFLite file, or its tensors cannot be allocated.
    """
    interpreter = make_interpreter(data, xnnpack=False)
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise ArtifactError(
            "the TFLite file's tensors cannot be allocated",
            required="operations that TFLite has kernels for",
            received=str(error),
            remedy="export the model without custom operations",
        ) from error
    with damage_as_artifact_error(data):
        stored = _constant_tensors(data)
    places = [
        place
        for detail in interpreter.get_tensor_details()
        if detail["index"] not in stored and (place := _address_range(interpreter, detail["index"])) is not None
    ]
    starts = {place[0] for d in interpreter.get_input_details() if (place := _address_range(interpreter, d["index"]))}
    return sum(high - low for low, high in _merged_ranges(places) if any(low <= start < high for start in starts))


def _constant_tensors(data: bytes) -> set[int]:
    """Indices of the main graph's constant tensors, whose values are in the file."""
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    buffers = {index: model.Buffers(graph.Tensors(index).Buffer()) for index in range(graph.TensorsLength())}
    # Files over 2 GB store buffers after the flatbuffer, at `Offset`; 0 and 1 mean that there is no buffer.
    return {index for index, buffer in buffers.items() if buffer.DataLength() or buffer.Offset() > 1}


def _address_range(interpreter: Interpreter, index: int) -> tuple[int, int] | None:
    """(address of the first byte, address after the last byte) of a tensor; None for a tensor without memory."""
    try:
        view: Any = interpreter.tensor(index)()
    except ValueError:
        return None
    first = int(view.__array_interface__["data"][0])
    return (first, first + view.nbytes) if view.nbytes else None


def _merged_ranges(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The memory ranges, merged where the gap between two is less than an alignment."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(places):
        # Another allocation has an allocator header before it and is aligned, so its gap is at least one alignment.
        if joined and low - joined[-1][1] < _ALIGNMENT:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return joined
