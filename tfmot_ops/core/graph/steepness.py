"""Decides whether an elementwise function can be computed from int8 inputs with little error.

Called where a function or its slope may be infinite: `clusters`, and the rules for roots, norms and deviations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.pointwise import Pointwise

#: Smallest number of elements whose norm or deviation may be inverted in int8. Norms of fewer elements differ so much
#: in size that their inverses are too coarse: with 4 elements, the SQNR was 23 dB.
MIN_ELEMENTS = 8
#: Lower limit of the operand of a root: at 0 the slope of a root is infinite, and training would give NaN.
ROOT_FLOOR = 1e-20
#: For `has_bounded_slope`: the largest magnitude of the inputs, the largest slope, and the number of inputs tried.
_MAX_INPUT, _MAX_SLOPE, _GRID_POINTS = 64.0, 16.0, 8193
#: For `is_accurate_on_rounded_inputs`: the largest magnitudes of the inputs, and the smallest SQNR in dB.
_MAGNITUDES, _MIN_SQNR_DB = (0.25, 4.0, 64.0), 30.0
#: Functions whose results are roots.
_ROOTS = {"math.sqrt", "math.reduce_std", "math.reduce_euclidean_norm", "norm", "linalg.norm", "compat.v1.norm"}
#: Functions of roots that may stand before an inverse: ConvNeXt V2 divides by the mean of the channels' norms.
_OF_ROOTS = {"math.reduce_mean", "identity", "reshape", "expand_dims", "compat.v1.squeeze"}
#: What stands between a root and its inverse: a small constant that is added, or a lower limit.
_OF_INVERSES = {"math.reciprocal", "math.truediv", "math.divide", "math.add", "__operators__.add", "math.maximum"}


def has_bounded_slope(steps: Sequence[Mapping[str, Any]], *, lowest: float = -1.0) -> bool:
    """Whether a function is finite, with a slope of at most 16, for all inputs of magnitude up to 64.

    Example: `x / (1 + |x|)` is. `log(x + 1e-5)` is not: close to 0, neighbouring int8 inputs have results far apart.

    Args:
        steps: the function, as `Pointwise` takes it.
        lowest: (lowest input) / (highest input): 0 for a tensor that is never negative, else -1.
    """
    grid = np.linspace(lowest * _MAX_INPUT, _MAX_INPUT, _GRID_POINTS, dtype=np.float32)
    values = _values(steps, grid)
    return bool(np.isfinite(values).all() and (np.abs(np.diff(values)) <= _MAX_SLOPE * np.diff(grid)).all())


def is_accurate_on_rounded_inputs(steps: Sequence[Mapping[str, Any]], *, lowest: float) -> bool:
    """Whether a function has an SQNR of at least 30 dB if its inputs are rounded to int8.

    Example: a square root has, although its slope at 0 is infinite; a logarithm, an inverse and x ** 0.2 have not. The
    inputs tried are r * u * |u| with u evenly spaced, for several magnitudes r: as with squares, many are close to 0.

    Args:
        steps: the function, as `Pointwise` takes it.
        lowest: see `has_bounded_slope`.
    """
    spaced = np.linspace(-1.0 if lowest else 0.0, 1.0, _GRID_POINTS)
    for magnitude in _MAGNITUDES:
        inputs = magnitude * spaced * np.abs(spaced)
        step = magnitude * (1.0 - lowest) / 255
        exact, rounded = _values(steps, inputs), _values(steps, np.round(inputs / step) * step)
        if not (np.isfinite(exact).all() and np.isfinite(rounded).all()):
            return False
        noise = float(np.sum((rounded - exact) ** 2))
        if float(np.sum(exact**2)) < noise * 10 ** (_MIN_SQNR_DB / 10):
            return False
    return True


def is_inverse_of_root(source: Tensor, steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a function is 1 / (x + c) of a root x or a mean of roots, as in a division by a norm or by a deviation.

    Layer normalisation has such an inverse too. It is accurate in int8, as the norms of one tensor are of similar size.
    """
    node = source.producer
    while node is not None and _symbol(node) in _OF_ROOTS and len(node.inputs()) == 1:
        node = node.inputs()[0].producer
    if node is None or _symbol(node) not in _ROOTS or not {step["function"] for step in steps} <= _OF_INVERSES:
        return False
    return _symbol(node) == "math.sqrt" or reduced_elements(node) >= MIN_ELEMENTS


def reduced_elements(node: Node) -> int:
    """Number of elements that a reduction combines into one; 0 where sizes are unknown."""
    before, after = (tensor.shape[1:] for tensor in (node.inputs()[0], node.output()))
    if None in before or None in after:
        return 0
    return math.prod(size or 0 for size in before) // max(math.prod(size or 0 for size in after), 1)


def _symbol(node: Node) -> str | None:
    return getattr(node.layer, "symbol", None)


def _values(steps: Sequence[Mapping[str, Any]], inputs: np.ndarray) -> np.ndarray:
    with tf.init_scope():
        return np.asarray(Pointwise(steps)(tf.constant(inputs, tf.float32)), np.float64)
