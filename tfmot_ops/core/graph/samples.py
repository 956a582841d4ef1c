"""Calibration data as a user gives it, in batches that a graph takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.finite import require_finite_samples
from tfmot_ops.core.graph.ir import Graph, Tensor
from tfmot_ops.core.keras.types import Array
from tfmot_ops.errors import CalibrationError

#: What calibration may be given: an array [N, ...], a list of arrays or a dict by the inputs' names, one array for each
#: input of the model; or a data set that gives these batch by batch, alone or in tuples with targets.
Calibration: TypeAlias = Array | Sequence[Array] | Mapping[str, Array] | tf.data.Dataset
#: Samples an observer step reads at once; a memory bound, without effect on the ranges.
_BATCH = 64


def calibration_batches(graph: Graph, calibration: Calibration, samples: int) -> Iterator[list[np.ndarray]]:
    """Batches as one array per graph input, in the graph's order and of its types, `samples` at most.

    Raises:
        CalibrationError: the data does not fit the inputs, in structure, shape, number or type, or is not finite.
    """
    dtypes = [tf.as_dtype(tensor.dtype).as_numpy_dtype for tensor in graph.inputs()]
    names = [graph.input_names[tensor] for tensor in graph.inputs()]
    left, first = samples, 0
    for structure in calibration if isinstance(calibration, tf.data.Dataset) else [calibration]:
        parts = _parts(structure, graph)
        for start in range(0, min(len(parts[0]), left), _BATCH):
            stop = min(start + _BATCH, left, len(parts[0]))
            batch = []
            for part, dtype, name in zip(parts, dtypes, names, strict=True):
                # A number may be too large for the input's type.
                batch.append(part[start:stop].astype(dtype))
                require_finite_samples(part[start:stop], name, first + start)
                require_finite_samples(batch[-1], name, first + start)
            yield batch
        left, first = left - min(len(parts[0]), left), first + len(parts[0])
        if not left:
            return


def _parts(structure: object, graph: Graph) -> list[np.ndarray]:
    """The arrays for the graph's inputs: the structure's, or those of its first part, as Keras reads a tuple.

    (x, y) and (x, y, sample weights) are what Keras trains on; only x is read.
    """
    first = structure[:1] if isinstance(structure, tuple) and len(structure) in {2, 3} else ()
    for each in (structure, *first):
        parts = _arrays(each, graph)
        if parts is not None and _check_parts(parts, graph.inputs()):
            return parts
    wanted = ", ".join(f"{graph.input_names[t]} {t.dtype} {list(t.shape)}" for t in graph.inputs())
    raise CalibrationError(
        "calibration data does not fit the model's inputs",
        required=f"as many samples of each: {wanted}",
        received=_described(structure),
        remedy="give an array [samples, ...], a list of them in the model's order, a dict by its inputs' names, or a "
        "tf.data.Dataset with batches of these, alone or in tuples (x, y) or (x, y, sample weights)",
    )


def _arrays(structure: object, graph: Graph) -> list[np.ndarray] | None:
    """Arrays in the graph's order; None for what lacks an input, or makes no array."""
    names, own = [graph.input_names[tensor] for tensor in graph.inputs()], graph.input_structure
    try:
        if not isinstance(structure, Mapping):
            leaves = tf.nest.flatten(structure) if isinstance(structure, list | tuple) else [structure]
        # Keras goes by the model's own keys, where it has any.
        elif isinstance(own, Mapping) and own.keys() <= structure.keys():
            given = {key: structure[key] for key in own}
            leaves = tf.nest.flatten(tf.nest.map_structure(lambda _, value: value, own, given, check_types=False))
        else:
            leaves = [structure[name] for name in names]
        return [np.asarray(leaf) for leaf in leaves]
    except (KeyError, TypeError, ValueError):
        return None


def _check_parts(parts: list[np.ndarray], inputs: list[Tensor]) -> bool:
    """Whether there is an array of numbers for each input, of its shape, and all have as many samples."""
    return (
        len(parts) == len(inputs)
        and all(
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
