"""Runs TFLite files in the interpreter: float values in, float values out.

Also reads a file's flatbuffer, once the interpreter has verified it. Latency is measured in `measure.latency`.
"""

from __future__ import annotations

import contextlib
import math
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfmot_ops.core.keras.batches import match_rank, match_rank_shape, repeat_to_size
from tfmot_ops.core.keras.types import Array
from tfmot_ops.errors import (
    ArtifactError,
    ExportError,
    SamplesError,
)
from tfmot_ops.system.memory import machine_bytes

#: Largest share of the machine's memory that one tensor of a file may take.
_SHARE_OF_MEMORY = 0.25
#: An entry of the interpreter's `get_tensor_details()`: name, index, shape, dtype, scale and zero point of a tensor.
Detail = dict[str, Any]
#: One array [N, ...]; or one for each input, in the model's order or by the inputs' names.
Inputs = Array | Sequence[Array] | Mapping[str, Array]


def make_interpreter(data: bytes, threads: int = 1, *, xnnpack: bool = True, keep_tensors: bool = False) -> Interpreter:
    """An interpreter for a TFLite file, tensors not yet allocated.

    Args:
        data: the file's bytes.
        threads: CPU threads.
        xnnpack: use XNNPACK, TFLite's default delegate. Without it TFLite's built-in kernels run, and every tensor of
            the file exists in the interpreter.
        keep_tensors: keep the values of intermediate tensors after a run.

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


def read_file(data: bytes) -> Any:
    """The flatbuffer of a TFLite file (`schema.Model`), once TFLite has verified that all offsets lie within the file.

    Python's reader of flatbuffers verifies nothing: it reads wrong places of a damaged file, or runs forever.

    Raises:
        ArtifactError: the bytes are no TFLite file, or a part of it lies outside of it.
    """
    interpreter = make_interpreter(data, xnnpack=False)
    most = int(machine_bytes() * _SHARE_OF_MEMORY)
    for detail in interpreter.get_tensor_details():
        size = math.prod(int(size) for size in detail["shape"]) * np.dtype(detail["dtype"]).itemsize
        if size > most:
            raise ArtifactError(
                "the TFLite file describes a tensor that is too large",
                required=f"at most {most:,} bytes in a tensor, a quarter of this machine's memory",
                received=f"{size:,} bytes in tensor {detail['name']}",
                remedy="copy the file again, or export the model again",
            )
    return schema.Model.GetRootAs(data, 0)


@contextlib.contextmanager
def damage_as_artifact_error(data: bytes) -> Iterator[None]:
    """Raise ArtifactError in place of the errors that Python's flatbuffer reader raises on an inconsistent file.

    Args:
        data: the file's bytes.

    Raises:
        ArtifactError: a number in the file, such as an index of a tensor, is out of range.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError, struct.error) as error:
        raise ArtifactError(
            "the TFLite file is damaged",
            required="a TFLite flatbuffer whose tensors, operations and buffers fit together",
            received=f"{len(data)} bytes: {type(error).__name__}: {error}",
            remedy="copy the file again, or export the model again",
        ) from error


def as_arrays(x: Inputs) -> list[Array]:
    """The inputs as a list of arrays, one for each input of the file; those of a dict in its order."""
    given = list(x.values()) if isinstance(x, Mapping) else x
    return [np.asarray(array) for array in (given if isinstance(given, list | tuple) else [given])]


def input_names(data: bytes) -> list[str]:
    """Names of a file's inputs by its signature, in the file's order.

    Raises:
        SamplesError: the file has no signature.
    """
    model = read_file(data)
    graph = model.Subgraphs(0)
    if not model.SignatureDefsLength():
        raise SamplesError(
            "the TFLite file has no names of its inputs",
            required="a file with a signature",
            received="inputs by name",
            remedy="give a list of arrays, in the order of the file's inputs",
        )
    with damage_as_artifact_error(data):
        entries = [model.SignatureDefs(0).Inputs(place) for place in range(model.SignatureDefs(0).InputsLength())]
        names = {entry.TensorIndex(): entry.Name().decode() for entry in entries}
        return [names[graph.Inputs(place)] for place in range(graph.InputsLength())]


def _by_name(x: Mapping[str, Any], names: list[str]) -> list[Any]:
    missing = [name for name in names if name not in x]
    if missing:
        raise SamplesError(
            f"no samples for the input {missing[0]!r}",
            required=f"inputs {names}",
            received=f"{list(x)}",
            remedy="give one array for each input, by the names in the file's signature",
        )
    return [x[name] for name in names]


def raw_inputs(data: bytes, x: Inputs) -> list[Array]:
    """The inputs as numbers of the file's own types, one array [N, ...] per input, in the file's order.

    Args:
        data: the file's bytes.
        x: float inputs: one array [N, ...], or one per input, in the file's order.

    Raises:
        ArtifactError: the bytes are no TFLite file.
        SamplesError: the arrays do not fit the file's inputs.
    """
    details, columns = make_interpreter(data).get_input_details(), as_arrays(x)
    shapes = [[int(size) for size in detail["shape_signature"]] for detail in details]
    check_inputs(shapes, columns, "TFLite file")
    fitting = [match_rank(column, shape) for column, shape in zip(columns, shapes, strict=True)]
    return [quantized(column, detail) for column, detail in zip(fitting, details, strict=True)]


def run_tflite(data: bytes, x: Inputs, batch_size: int) -> list[Array]:
    """Outputs [N, ...] of a TFLite file, float32, for inputs [N, ...]; see `core.predict`.

    Args:
        data: the file's bytes.
        x: one array [N, ...], or one per input.
        batch_size: samples per run; 1 is used if the file has a fixed batch.

    Raises:
        ArtifactError: the bytes are no TFLite file.
        SamplesError: the arrays do not fit the file's inputs.
        ExportError: the interpreter cannot run the file.
    """
    inputs = as_arrays(_by_name(x, input_names(data)) if isinstance(x, Mapping) else x)
    file = TFLiteRun(data, inputs, batch_size)
    starts = range(0, len(inputs[0]), batch_size)
    parts = [file([array[start : start + batch_size] for array in inputs]) for start in starts]
    return [np.concatenate(batches) for batches in zip(*parts, strict=True)]


class TFLiteRun:
    """A TFLite file that is run batch by batch; several threads may call it, each with an interpreter of its own.

    Args:
        data: the file's bytes.
        inputs: one column [N, ...] per input of the file, of which the first batch is read to find out whether the file
            computes a batch at once.
        batch_size: samples of the batch that is tried.

    Raises:
        ArtifactError: the bytes are no TFLite file.
        SamplesError: the columns do not fit the file's inputs.
        ExportError: the interpreter cannot run the file.
    """

    def __init__(self, data: bytes, inputs: list[Any], batch_size: int) -> None:
        details = make_interpreter(data).get_input_details()
        self._shapes = [[int(size) for size in detail["shape_signature"]] for detail in details]
        check_inputs(self._shapes, inputs, "TFLite file")
        self._data = data
        #: Samples that the file computes at once.
        self._size = max(self._shapes[0][0], 1) if self._shapes[0] else 1
        first = self._fitted([np.asarray(column[:batch_size]) for column in inputs])
        # A file with another batch size than 1 was exported for exactly that size.
        self._takes_batches = self._size == 1 and _takes_batches(data, first)
        self._local = threading.local()
        if not self._takes_batches:
            _allocate(make_interpreter(data))

    def __call__(self, batch: list[Array]) -> list[Array]:
        """Outputs [n, ...] for one batch of inputs [n, ...].

        Raises:
            ExportError: an operation fails.
        """
        try:
            return self._outputs(self._fitted(batch))
        except (RuntimeError, ValueError) as error:
            raise _cannot_run(error) from error

    def _outputs(self, batch: list[Array]) -> list[Array]:
        interpreter = getattr(self._local, "interpreter", None)
        if interpreter is None:
            interpreter = self._local.interpreter = make_interpreter(self._data)
            if self._takes_batches:
                _resize(interpreter, batch)  # not allocated before: a size may be unknown until now
            else:
                _allocate(interpreter)
        if self._takes_batches:
            return _resized(interpreter, batch)
        samples, size = len(batch[0]), self._size
        rows = [
            _resized(interpreter, [repeat_to_size(array[start : start + size], size) for array in batch])
            for start in range(0, samples, size)
        ]
        outputs = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        return outputs if size == 1 else [output[:samples] for output in outputs]

    def _fitted(self, batch: list[Array]) -> list[Array]:
        return [match_rank(array, shape) for array, shape in zip(batch, self._shapes, strict=True)]


def _resized(interpreter: Interpreter, batch: list[Array]) -> list[Array]:
    """Outputs for a batch, after the interpreter is resized to it if the last batch had another size."""
    if len(batch[0]) != interpreter.get_input_details()[0]["shape"][0]:
        _resize(interpreter, batch)
    return _invoke(interpreter, batch)


def check_inputs(shapes: Sequence[Sequence[int]], inputs: list[Any], what: str) -> None:
    """Refuse inputs [N, ...] that do not fit a model's input shapes [batch, ...].

    Args:
        shapes: shape of each input of the model; -1 stands for any size.
        inputs: the arrays.
        what: the model's name in the message ("TFLite file").

    Raises:
        SamplesError: number or shapes of the arrays do not fit, there is no sample, or the N differ.
    """
    required = [[int(size) for size in shape[1:]] for shape in shapes]
    given = [list(array.shape[1:]) for array in inputs]
    if len(given) == len(required):
        given = [match_rank_shape(array.shape, shape)[1:] for array, shape in zip(inputs, shapes, strict=True)]
    fits = len(required) == len(given) and all(
        len(sizes) == len(given_sizes)
        and all(size in (-1, given_size) for size, given_size in zip(sizes, given_sizes, strict=True))
        for sizes, given_sizes in zip(required, given, strict=True)
    )
    if not fits or not len(inputs[0]) or len({len(array) for array in inputs}) > 1:
        raise SamplesError(
            f"the samples do not fit the {what}",
            required=f"inputs of shapes {[['N', *shape] for shape in required]}, N >= 1",
            received=f"{[list(array.shape) for array in inputs]}",
            remedy="give one array for each input, in the model's order, with the shapes that the model was built for",
        )


def _allocate(interpreter: Interpreter) -> None:
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise _cannot_run(error) from error


def _cannot_run(error: Exception) -> ExportError:
    return ExportError(
        "the TFLite interpreter cannot run the file",
        required="operations with types, shapes and scales that the interpreter takes",
        received=str(error),
        remedy="look for NaN and infinity in the weights and in the calibration samples, and for the layer that "
        "the operation named above computes",
    )


def _resize(interpreter: Interpreter, batch: list[Array]) -> None:
    for detail, values in zip(interpreter.get_input_details(), batch, strict=True):
        interpreter.resize_tensor_input(detail["index"], values.shape)
    interpreter.allocate_tensors()


def _takes_batches(data: bytes, batch: list[Array]) -> bool:
    """Whether the file computes the batch correctly at once; a graph may be made for a fixed batch."""
    interpreter = make_interpreter(data)
    try:
        _resize(interpreter, batch)
        # A RESHAPE to a constant shape fails only at run time, or moves the batch into another axis.
        together = _invoke(interpreter, batch)
    except (RuntimeError, ValueError):
        return False
    if any(part.shape[:1] != batch[0].shape[:1] for part in together):
        return False
    # If the batch is moved into another axis and back, samples are mixed: compare with samples run alone.
    single = make_interpreter(data)
    _resize(single, [array[:1] for array in batch])
    for index in {0, len(batch[0]) - 1}:
        alone = _invoke(single, [array[index : index + 1] for array in batch])
        if not all(np.allclose(one[0], part[index], 1e-3, 1e-5) for one, part in zip(alone, together, strict=True)):
            return False
    return True


def _invoke(interpreter: Interpreter, batch: list[Array]) -> list[Array]:
    for detail, values in zip(interpreter.get_input_details(), batch, strict=True):
        interpreter.set_tensor(detail["index"], quantized(values, detail))
    interpreter.invoke()
    return [dequantized(interpreter.get_tensor(detail["index"]), detail) for detail in interpreter.get_output_details()]


def quantized(values: Array, detail: Detail) -> Array:
    """Float values converted to a tensor's type: clip(round(values / scale) + zero point) for an integer tensor."""
    scale, zero_point = detail["quantization"]
    dtype: np.dtype[Any] = np.dtype(detail["dtype"])
    if not np.issubdtype(dtype, np.integer) or scale == 0.0:  # a scale of 0 means: not quantised
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.round(values / scale) + zero_point, limits.min, limits.max), dtype)


def dequantized(values: Array, detail: Detail) -> Array:
    """A tensor's values as float32: (values - zero point) * scale; the inverse of `quantized`."""
    scale, zero_point = detail["quantization"]
    if scale == 0.0:
        return values.astype(np.float32)
    return np.asarray((values.astype(np.float32) - zero_point) * scale, np.float32)
