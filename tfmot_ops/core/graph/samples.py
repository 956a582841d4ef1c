"""Calibration data in any form that Keras accepts, turned into batches for a graph.

Used to calibrate a QAT model, to calibrate the converter (PTQ), and to measure the sensitivity of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.finite import require_finite_samples
from tfmot_ops.core.graph.ir import Graph, Tensor
from tfmot_ops.core.keras.batches import fixed_batch_size, match_rank, repeat_to_size
from tfmot_ops.core.keras.types import Array
from tfmot_ops.errors import CalibrationError

#: Calibration data: an array [N, ...]; a list of arrays, or a dict from input names to arrays, with one array per input
#: of the model; or a tf.data.Dataset whose batches have one of these forms, alone or in a tuple with targets.
Calibration: TypeAlias = Array | Sequence[Array] | Mapping[str, Array] | tf.data.Dataset
#: Samples per batch; bounds the memory, and does not change the ranges.
_BATCH = 64


def calibration_batches(graph: Graph, calibration: Calibration, samples: int) -> Iterator[list[np.ndarray]]:
    """Yield batches: one array [N, ...] per graph input, in the graph's order and dtypes.

    Args:
        graph: the graph whose inputs the data is for.
        calibration: see `Calibration`.
        samples: most samples to yield, over all batches. Where the model has a fixed batch size, samples of a batch
            that they do not fill are repeated, which does not change the ranges.

    Raises:
        CalibrationError: structure, shape, number of samples or dtype do not fit the inputs, or a value is NaN or
            infinite.
    """
    dtypes = [tf.as_dtype(tensor.dtype).as_numpy_dtype for tensor in graph.inputs()]
    names = [graph.input_names[tensor] for tensor in graph.inputs()]
    fixed = batch_size_of(graph)
    size = fixed or _BATCH
    remaining, first = samples, 0
    for structure in calibration if isinstance(calibration, tf.data.Dataset) else [calibration]:
        parts = _parts(structure, graph)
        for start in range(0, min(len(parts[0]), remaining), size):
            stop = min(start + size, remaining, len(parts[0]))
            batch = []
            for part, dtype, name in zip(parts, dtypes, names, strict=True):
                # Checked before and after the cast: 1e300 is finite in float64 and infinite in float32.
                batch.append(repeat_to_size(part[start:stop].astype(dtype), fixed))
                require_finite_samples(part[start:stop], name, first + start)
                require_finite_samples(batch[-1], name, first + start)
            yield batch
        remaining, first = remaining - min(len(parts[0]), remaining), first + len(parts[0])
        if not remaining:
            return


def batch_size_of(graph: Graph) -> int | None:
    """The batch size that the graph's inputs fix; None if they take any number of samples."""
    return fixed_batch_size([tensor.shape for tensor in graph.inputs()])


def _parts(structure: object, graph: Graph) -> list[np.ndarray]:
    """The arrays for the graph's inputs; of a tuple (x, y) or (x, y, sample weights), which Keras trains on, only x."""
    first = structure[:1] if isinstance(structure, tuple) and len(structure) in {2, 3} else ()
    for candidate in (structure, *first):
        parts = _arrays(candidate, graph)
        if parts is None or len(parts) != len(graph.inputs()):
            continue
        parts = [match_rank(part, tensor.shape) for part, tensor in zip(parts, graph.inputs(), strict=True)]
        if _check_parts(parts, graph.inputs()):
            return parts
    required = ", ".join(f"{graph.input_names[t]} {t.dtype} {list(t.shape)}" for t in graph.inputs())
    raise CalibrationError(
        "calibration data does not fit the model's inputs",
        required=f"the same number of samples for each input: {required}",
        received=_described(structure),
        remedy="give an array [samples, ...], a list of arrays in the order of the model's inputs, a dict from input "
        "names to arrays, or a tf.data.Dataset with batches of these, alone or in tuples (x, y) or "
        "(x, y, sample weights)",
    )


def _arrays(structure: object, graph: Graph) -> list[np.ndarray] | None:
    """The structure's arrays in the order of the graph's inputs; None if an input is missing or is not an array."""
    names, own = [graph.input_names[tensor] for tensor in graph.inputs()], graph.input_structure
    try:
        if not isinstance(structure, Mapping):
            leaves = tf.nest.flatten(structure) if isinstance(structure, list | tuple) else [structure]
        # A model whose inputs are a dict has keys of its own, which Keras uses instead of the input layers' names.
        elif isinstance(own, Mapping) and own.keys() <= structure.keys():
            given = {key: structure[key] for key in own}
            leaves = tf.nest.flatten(tf.nest.map_structure(lambda _, value: value, own, given, check_types=False))
        else:
            leaves = [structure[name] for name in names]
        return [np.asarray(leaf) for leaf in leaves]
    except (KeyError, TypeError, ValueError):
        return None


def _check_parts(parts: list[np.ndarray], inputs: list[Tensor]) -> bool:
    """Whether each input has a numeric array of its shape, and all arrays have the same number of samples."""
    return (
        all(
            _is_numeric(part)
            and part.ndim == len(tensor.shape)
            and all(size in {None, given} for size, given in zip(tensor.shape[1:], part.shape[1:], strict=True))
            for part, tensor in zip(parts, inputs, strict=True)
        )
        and len({part.shape[:1] for part in parts}) == 1
    )


def _is_numeric(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf" or array.dtype == tf.bfloat16.as_numpy_dtype


def _described(structure: object) -> str:
    if isinstance(structure, Mapping):
        return "{" + ", ".join(f"{key!r}: {_described(value)}" for key, value in structure.items()) + "}"
    if isinstance(structure, list | tuple):
        return "(" + ", ".join(map(_described, structure[:8])) + (", ...)" if len(structure) > 8 else ")")  # noqa: PLR2004
    shape, dtype = getattr(structure, "shape", None), getattr(structure, "dtype", None)
    return type(structure).__name__ if shape is None else f"{getattr(dtype, 'name', dtype)} {list(shape)}"
