"""TFLite files run in the interpreter: float values in, float values out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfmot_ops.core.keras.types import Array
from tfmot_ops.errors import (
    ArtifactError,
    ExportError,
    SamplesError,
)

#: The interpreter's record of a tensor of the file: its name, index, shape, type, scales and zero points.
Detail = dict[str, Any]
#: One array [N, ...], or one for each input, in the model's order.
Inputs = Array | Sequence[Array]


def make_interpreter(data: bytes, threads: int = 1, *, xnnpack: bool = True, keep_tensors: bool = False) -> Interpreter:
    """An interpreter for a TFLite file, tensors not yet allocated.

    Args:
        data: the file's bytes.
        threads: CPU threads.
        xnnpack: let XNNPACK, the default delegate, take the operations it can; otherwise TFLite's own kernels run, and
            each tensor of the file is there.
        keep_tensors: let each tensor keep its value to the end of a run.

    Raises:
        ArtifactError: the bytes are no TFLite file.
    """
    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        return Interpreter(
            model_content=data,
            num_threads=threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keep_tensors,
        )
    except ValueError as error:
        raise ArtifactError(
            "the TFLite file cannot be read",
            required="a TFLite flatbuffer",
            received=f"{len(data)} bytes: {error}",
            remedy="export the model again",
        ) from error


def arrays(x: Inputs) -> list[Array]:
    """The inputs as a list of arrays, one for each input of the file."""
    return [np.asarray(each) for each in (x if isinstance(x, list | tuple) else [x])]


def run_tflite(data: bytes, x: Inputs, batch_size: int) -> list[Array]:
    """Outputs [N, ...] of a TFLite file, float32, for inputs [N, ...]; see `core.predict`."""
    inputs = arrays(x)
    details = make_interpreter(data).get_input_details()
    check_inputs([detail["shape_signature"] for detail in details], inputs, "TFLite file")
    count = len(inputs[0])
    interpreter = _batched(data, [each[:batch_size] for each in inputs])
    size = batch_size if interpreter else 1
    if interpreter is None:
        interpreter = make_interpreter(data)
        _allocate(interpreter)
    parts = []
    for start in range(0, count, size):
        batch = [each[start : start + size] for each in inputs]
        if len(batch[0]) != interpreter.get_input_details()[0]["shape"][0]:
            _resize(interpreter, batch)
        parts.append(_invoke(interpreter, batch))
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def check_inputs(shapes: Sequence[Sequence[int]], inputs: list[Array], what: str) -> None:
    """Refuse inputs [N, ...] that do not fit the shapes [batch, ...] of a model; a size of -1 takes any."""
    wanted = [[int(size) for size in shape[1:]] for shape in shapes]
    given = [list(each.shape[1:]) for each in inputs]
    fits = len(wanted) == len(given) and all(
        len(one) == len(other) and all(size in (-1, there) for size, there in zip(one, other, strict=True))
        for one, other in zip(wanted, given, strict=True)
    )
    if not fits or not len(inputs[0]) or len({len(each) for each in inputs}) > 1:
        raise SamplesError(
            f"the samples do not fit the {what}",
            required=f"inputs of shapes {[['N', *shape] for shape in wanted]}, N >= 1",
            received=f"{[list(each.shape) for each in inputs]}",
            remedy="give the data the model was made for",
        )


def _allocate(interpreter: Interpreter) -> None:
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise ExportError(
            "TFLite does not run the file",
            required="operations with types, shapes and scales that the interpreter takes",
            received=str(error),
            remedy="look for NaN and infinity in the weights and in the calibration samples, and for the layer that "
            "the operation named above computes",
        ) from error


def _resize(interpreter: Interpreter, batch: list[Array]) -> None:
    for detail, values in zip(interpreter.get_input_details(), batch, strict=True):
        interpreter.resize_tensor_input(detail["index"], values.shape)
    interpreter.allocate_tensors()


def _batched(data: bytes, batch: list[Array]) -> Interpreter | None:
    """An interpreter that takes as many samples at once, or None if a fixed batch is built into the graph."""
    interpreter = make_interpreter(data)
    try:
        _resize(interpreter, batch)
        # A constant shape further down may only fail, or fold the batch into another axis, when it runs.
        together = _invoke(interpreter, batch)
    except (RuntimeError, ValueError):
        return None
    if any(part.shape[:1] != batch[0].shape[:1] for part in together):
        return None
    # Folded into another axis and out of it again, a sample is computed with its neighbours.
    single = make_interpreter(data)
    _resize(single, [each[:1] for each in batch])
    for index in {0, len(batch[0]) - 1}:
        alone = _invoke(single, [each[index : index + 1] for each in batch])
        if not all(np.allclose(one[0], part[index], 1e-3, 1e-5) for one, part in zip(alone, together, strict=True)):
            return None
    return interpreter


def _invoke(interpreter: Interpreter, batch: list[Array]) -> list[Array]:
    for detail, values in zip(interpreter.get_input_details(), batch, strict=True):
        interpreter.set_tensor(detail["index"], quantized(values, detail))
    interpreter.invoke()
    return [dequantized(interpreter.get_tensor(detail["index"]), detail) for detail in interpreter.get_output_details()]


def quantized(values: Array, detail: Detail) -> Array:
    """Values as a tensor of a TFLite file holds them; `detail` is the interpreter's record of the tensor."""
    scale, zero_point = detail["quantization"]
    dtype: np.dtype[Any] = np.dtype(detail["dtype"])
    if not np.issubdtype(dtype, np.integer) or scale == 0.0:  # a scale of 0 means: not quantised
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.round(values / scale) + zero_point, limits.min, limits.max), dtype)


def dequantized(values: Array, detail: Detail) -> Array:
    """What a tensor of a TFLite file stands for, float32; the inverse of `quantized`."""
    scale, zero_point = detail["quantization"]
    if scale == 0.0:
        return values.astype(np.float32)
    return np.asarray((values.astype(np.float32) - zero_point) * scale, np.float32)
