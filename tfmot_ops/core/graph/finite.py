"""Checks for NaN and infinity: weights, ranges and calibration data are refused before they reach a converter.

The TFLite converter writes NaN weights to the file without a warning, and crashes (SIGSEGV) on an infinite range.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import layer_paths
from tfmot_ops.core.graph.layers import LearnedTensor
from tfmot_ops.core.graph.roles import is_custom
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, Variable
from tfmot_ops.core.keras.values import value_of
from tfmot_ops.errors import CalibrationError, NotFiniteError


def require_finite_weights(model: keras.Model) -> None:
    """Refuse a model whose weights, or ranges of its quantisers, are not all finite numbers.

    Infinity is allowed in a custom layer's weight with trainable=False: attention masks are stored so.

    Raises:
        NotFiniteError: a value is NaN or infinite; names the first layer and weight.
    """
    found = [
        (path, weight, count)
        for path, layer in layer_paths(model)
        for weight in getattr(layer, "weights", ())
        if (count := _count_not_finite(layer, weight))
    ]
    if not found:
        return
    path, weight, count = found[0]
    is_range = weight.name.split(":")[0].endswith(("_min", "_max"))
    more = f"; {len(found) - 1} more weights of the model also have NaN or infinity" if len(found) > 1 else ""
    raise NotFiniteError(
        f"layer {path!r}: {'the range' if is_range else 'the weight'} {weight.name!r} is not finite",
        required="finite numbers in all weights and ranges",
        received=f"{count} of {int(weight.shape.num_elements() or 1)} values are NaN or infinite{more}",
        remedy="the training diverged: go back to an earlier checkpoint, or train again with a lower learning rate and "
        "without NaN in the data",
    )


def _count_not_finite(layer: Layer, weight: Variable) -> int:
    """How many values of a weight are NaN or, where infinity is not allowed, infinite."""
    dtype = getattr(weight, "dtype", None)
    if dtype is None or not tf.as_dtype(dtype).is_floating:
        return 0
    values = value_of(weight)
    may_be_infinite = (is_custom(layer) or isinstance(layer, LearnedTensor)) and not getattr(weight, "trainable", True)
    good = ~np.isnan(values) if may_be_infinite else np.isfinite(values)
    return 0 if good.all() else int(good.size - np.count_nonzero(good))


def require_finite_samples(values: np.ndarray, name: str, first: int) -> None:
    """Refuse calibration data with NaN or infinity.

    Args:
        values: samples [N, ...] of one input.
        name: the input's name.
        first: index of `values[0]` in the whole data set, for the message.

    Raises:
        CalibrationError: a value is NaN or infinite; names the input and the first sample that has one.
    """
    if np.issubdtype(values.dtype, np.integer) or values.dtype == bool:
        return
    good = np.isfinite(values).reshape(len(values), -1)
    if good.all():
        return
    samples = np.flatnonzero(~good.all(axis=1))
    sample = int(samples[0])
    raise CalibrationError(
        f"calibration data is not finite: input {name!r}, sample {first + sample}",
        required="finite numbers",
        received=f"{int(np.count_nonzero(~good[sample]))} of {good.shape[1]} values are NaN or infinite"
        + (f"; {len(samples) - 1} more samples of this batch have NaN or infinity" if len(samples) > 1 else ""),
        remedy="leave these samples out, or replace the missing values as before the training",
    )


def require_finite_folded(layer: str, *values: np.ndarray | None) -> None:
    """Refuse a kernel or bias that became NaN or infinite when a BatchNormalization was folded into it.

    Finite weights can give this: gamma / sqrt(variance + epsilon) is NaN for a negative variance.

    Raises:
        NotFiniteError: names the layer.
    """
    for value in values:
        if value is not None and not np.isfinite(value).all():
            raise NotFiniteError(
                f"layer {layer!r}: its weights, with the normalisation after it folded in, are not finite",
                required="finite numbers to be rounded to int8",
                received=f"{int(np.count_nonzero(~np.isfinite(value)))} of {value.size} values are NaN or infinite",
                remedy="look for a negative variance, an infinite constant or very large weights in this layer and the "
                "one after it, or keep it in float by the recipe's quantization.scope",
            )
