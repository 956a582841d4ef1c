"""Outputs of Keras models and TFLite files, and the predicted classes."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmot_ops.core.graph.ir import is_graph_model
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.batches import fixed_batch_size, match_rank, preserved_state, repeat_to_size, stateful_layers
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array
from tfmot_ops.core.tflite.interpreter import Inputs, TFLiteRun, as_arrays, check_inputs, run_tflite
from tfmot_ops.errors import (
    StepFailedError,
    UnsupportedModelError,
)

#: Samples that are run at once by default; bounds the memory, and does not change the outputs.
BATCH_SIZE = 64
#: Limits, in bytes and in samples, of the inputs that a Keras model gets at once; one batch is always allowed.
_MAX_READ_BYTES, _MAX_READ_SAMPLES = 16 * 2**20, 4096


def predict(model_or_bytes: keras.Model | bytes, x: Inputs, batch_size: int = BATCH_SIZE) -> Array | list[Array]:
    """Outputs of a Keras model or a TFLite file for float inputs, as floats.

    For a TFLite file with integer inputs and outputs, the inputs are quantised and the outputs dequantised with the
    file's scales and zero points.

    Args:
        model_or_bytes: Keras model or TFLite file.
        x: inputs [N, ...], one array per input, by name or in the model's order. [N] is taken for [N, 1], as by
            Keras' `fit`.
        batch_size: samples that are run at once; a model or file with a fixed batch size is run in batches of that,
            the last one filled by repeating samples, whose outputs are left out.

    Returns:
        The output [N, ...], float32 for a TFLite file; a list for several outputs. The outputs of a dict are in the
        alphabetical order of their names, as in a TFLite file.

    Raises:
        SamplesError: the inputs do not fit the model.
        ArtifactError: the bytes are no TFLite file.
        ExportError: the TFLite interpreter cannot run the file.
    """
    if isinstance(model_or_bytes, bytes):
        outputs = run_tflite(model_or_bytes, x, batch_size)
    else:
        result = _run_keras(model_or_bytes, x, batch_size)
        values = [result[name] for name in sorted(result)] if isinstance(result, dict) else result
        outputs = list(values) if isinstance(values, list | tuple) else [values]
    return outputs[0] if len(outputs) == 1 else outputs


def finite_outputs(
    model_or_bytes: keras.Model | bytes, x: Inputs, batch_size: int, first: int = 0
) -> Array | list[Array]:
    """The outputs of `predict`, checked to be finite, as no metric can be computed from NaN or infinity.

    Args:
        model_or_bytes: Keras model or TFLite file.
        x: inputs [N, ...], one array per input.
        batch_size: samples that are run at once.
        first: index of the first sample, for the message.

    Raises:
        StepFailedError: an output value is NaN or infinite.
    """
    outputs = predict(model_or_bytes, x, batch_size)
    _require_finite(outputs if isinstance(outputs, list) else [outputs], first, isinstance(model_or_bytes, bytes))
    return outputs


def in_chunks(x: Any, batch_size: int) -> Iterator[tuple[int, Any]]:
    """Yield (index of the first sample, inputs) for parts of some inputs [N, ...] that fit into memory together."""
    columns = list(x) if isinstance(x, list | tuple) else [x]
    size = _samples_per_read(columns, batch_size)
    for start in range(0, len(columns[0]), size):
        part = [column[start : start + size] for column in columns]
        yield start, part if isinstance(x, list | tuple) else part[0]


def outputs_by_batch(
    model_or_bytes: keras.Model | bytes,
    x: Any,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[slice, Any]]:
    """Yield the outputs of a Keras model or a TFLite file batch by batch, so that no more is in memory.

    The batches of a TFLite file are computed on all cores, one batch on each, which does not change the outputs.

    Args:
        model_or_bytes: Keras model or TFLite file.
        x: inputs, one array or column [N, ...], or one per input in the model's order.
        batch_size: samples per batch.
        on_batch: called with (samples done, samples) after each batch.

    Yields:
        (indices of the batch's samples, its outputs as `predict` gives them).

    Raises:
        StepFailedError: an output value is NaN or infinite, after the batches before it.
        SamplesError: the inputs do not fit the model.
        ArtifactError: the bytes are no TFLite file.
        ExportError: the TFLite interpreter cannot run the file.
    """
    columns = list(x) if isinstance(x, list | tuple) else [x]
    samples = len(columns[0])
    size = batch_size if isinstance(model_or_bytes, bytes) else _samples_per_read(columns, batch_size)
    parts = [slice(start, min(start + size, samples)) for start in range(0, samples, size)]
    if isinstance(model_or_bytes, bytes):
        batches = _run_file(model_or_bytes, columns, parts, batch_size)
    else:
        batches = (_run_model(model_or_bytes, [column[part] for column in columns], batch_size) for part in parts)
    for part, outputs in zip(parts, batches, strict=True):
        _require_finite(outputs, part.start, isinstance(model_or_bytes, bytes))
        if on_batch is not None:
            on_batch(part.stop, samples)
        yield part, outputs[0] if len(outputs) == 1 else outputs


def _run_file(data: bytes, columns: list[Any], parts: list[slice], batch_size: int) -> Iterator[list[Array]]:
    """Outputs of each batch in order; a few batches are computed ahead."""
    file = TFLiteRun(data, columns, batch_size)

    def run(part: slice) -> list[Array]:
        return file([np.asarray(column[part]) for column in columns])

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[list[Array]]] = deque()
        for part in parts:
            waiting.append(pool.submit(run, part))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _samples_per_read(columns: list[Any], batch_size: int) -> int:
    """Number of samples that are read and run together, a multiple of the batch size: each call has a fixed cost."""
    bytes_each = sum(4 * math.prod(column.shape[1:]) for column in columns)
    batches = _MAX_READ_BYTES // max(1, bytes_each * batch_size)
    return int(batch_size * max(1, min(batches, _MAX_READ_SAMPLES // batch_size)))


def _run_model(model: keras.Model, batch: list[Array], batch_size: int) -> list[Array]:
    outputs = predict(model, batch[0] if len(batch) == 1 else batch, batch_size)
    return outputs if isinstance(outputs, list) else [outputs]


def _require_finite(outputs: list[Array], first: int, is_file: bool) -> None:
    """Raise StepFailedError for NaN or infinity; `first` is the index of the batch's first sample."""
    not_finite = [~np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in outputs]
    samples = np.logical_or.reduce(not_finite)
    if samples.any():
        raise StepFailedError(
            f"the {'TFLite file' if is_file else 'model'} returned NaN or infinity",
            required="finite outputs for every sample",
            received=f"NaN or infinity for {int(samples.sum())} of {len(samples)} samples"
            f"{f' from index {first} on' if first else ''}, the first at index {first + int(samples.argmax())}",
            remedy="look for NaN and infinity in the weights and in the samples"
            + (", and compare the file with its Keras model layer by layer (core.layer_sqnr)" if is_file else ""),
        )


def classes_of(outputs: Array | list[Array], threshold: float = 0.5) -> npt.NDArray[np.int64]:
    """Predicted class of each sample [N], from scores [N, classes] or, for two classes, a sigmoid [N, 1].

    Dense predictions [N, H, W, classes] give one class per pixel: [N * H * W].

    Args:
        outputs: the scores.
        threshold: the score above which the second of two classes is predicted from [N, 1]; 0 for logits.

    Raises:
        UnsupportedModelError: there are several outputs, or there is no class axis.
    """
    if isinstance(outputs, list) or outputs.ndim < 2:  # noqa: PLR2004 - [N, classes]
        raise UnsupportedModelError(
            "the output is not a row of class scores",
            required="one output [N, classes]",
            received=f"{len(outputs)} outputs" if isinstance(outputs, list) else f"shape {list(outputs.shape)}",
            remedy="use a classifier",
        )
    classes = outputs > threshold if outputs.shape[-1] == 1 else outputs.argmax(axis=-1)
    return np.asarray(classes, np.int64).reshape(-1)


def _run_keras(model: keras.Model, x: Inputs, batch_size: int) -> Any:
    """The result of `model.predict`; raises SamplesError if Keras fails on samples that do not fit the model."""
    try:
        return _in_batches(model, x, batch_size)
    except (ValueError, tf.errors.InvalidArgumentError):
        # Checked only after a failure, as Keras accepts more than this check, such as [N] for an input [N, 1].
        shapes = [[-1 if size is None else size for size in tensor.shape] for tensor in model.inputs or ()]
        check_inputs(shapes, as_arrays(x), "model")
        raise


def _fitted(model: keras.Model, x: Inputs) -> Any:
    """The inputs in the rank of the model's inputs: given [N] for an input [N, 1], Keras loses the rank."""
    own = private.nested_inputs(model) if is_graph_model(model) else None
    if isinstance(x, Mapping):
        named = own if isinstance(own, Mapping) else dict(zip(model.input_names or (), model.inputs or (), strict=True))
        return {name: _with_rank_of(part, named.get(name)) for name, part in x.items()}
    tensors = tf.nest.flatten(own)
    if isinstance(x, list | tuple):
        return [_with_rank_of(*pair) for pair in zip(x, tensors, strict=True)] if len(x) == len(tensors) else x
    return _with_rank_of(x, tensors[0]) if len(tensors) == 1 else x


def _with_rank_of(part: Any, tensor: Any) -> Any:
    known = isinstance(part, np.ndarray) and tensor is not None and tensor.shape.rank is not None
    return match_rank(part, tensor.shape.as_list()) if known else part


def _in_batches(model: keras.Model, x: Inputs, batch_size: int) -> Any:
    """What `model.predict` returns; stateful recurrent layers start from 0 in each batch, as in a file.

    Batches are run by `predict_on_batch`: each call of `predict` makes a tf.data.Dataset whose memory Python frees late
    or not at all. Measuring a test set of some gigabytes part by part took hundreds of megabytes more.
    """
    x = _fitted(model, x)
    columns = tf.nest.flatten(x)
    if not columns or not all(
        isinstance(column, np.ndarray) and len(column.shape) and len(column) for column in columns
    ):
        return model.predict(x, batch_size=batch_size, verbose=0)
    fixed = fixed_batch_size([tensor.shape for tensor in getattr(model, "inputs", None) or ()])
    keeping = stateful_layers(model)
    outputs = []
    with preserved_state(keeping):
        for start in range(0, len(columns[0]), fixed or batch_size):
            part = slice(start, start + (fixed or batch_size))
            for layer in keeping:
                layer.reset_states()
            batch = tf.nest.map_structure(lambda column, part=part: repeat_to_size(column[part], fixed), x)
            outputs.append(model.predict_on_batch(batch))
    joined = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *outputs)
    return joined if fixed is None else tf.nest.map_structure(lambda output: output[: len(columns[0])], joined)
