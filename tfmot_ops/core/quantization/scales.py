"""Limits on ranges and scales for int8 kernels, from the scales of an operation's inputs, weights and output.

A range is (low, high); its scale is (high - low) / 255, the width of one level. A too narrow range causes three faults:

- An int8 kernel sums integers in steps of (input scale * weight scale). TFLite and XNNPACK refuse a model whose output
  scale is far below that step.
- A bias is stored in int32 as bias / (input scale * weight scale), and no longer fits.
- A range of width 0 has no scale.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfmot_ops.core.keras.types import Array

Range = tuple[float, float]

#: Range of a tensor that was 0 for every sample. Its real values are unknown; activations are mostly of the order of 1.
UNKNOWN_RANGE = (0.0, 1.0)
#: A narrower range counts as width 0: after rounding errors of calibration or long training, zeros may have a width.
_ZERO_WIDTH = 1e-20
#: Largest ratio (step of the sums) / (output scale). XNNPACK (ai-edge-litert 2.3) refuses 256 for convolutions and 128
#: for means. At 64, the whole int8 output (255 levels) is 4 steps of the int32 sums wide: a finer output scale would
#: not represent anything more.
LARGEST_STEP = 64.0
#: Largest bias as an integer. An int32 holds twice as much: the other half is left for the sum that the bias joins.
LARGEST_BIAS = 2.0**30
#: Number of int8 steps in an activation range, and in symmetric weights on each side of zero.
LEVELS, WEIGHT_LEVELS = 255.0, 127.0


@dataclass(frozen=True)
class Accumulation:
    """One operation whose integer kernel accumulates sums or products, with what decides the step of its accumulator.

    Attributes:
        inputs: keys of the tensors (or groups of tied tensors) that are added up or multiplied.
        output: key of the result's tensor or group.
        multiplied: whether the inputs are multiplied with each other.
        largest_weight: largest magnitude of the int8 weights that multiply the input; None without weights.
    """

    inputs: tuple[Hashable, ...]
    output: Hashable = None
    multiplied: bool = False
    largest_weight: float | None = None

    def step(self, ranges: Mapping[Hashable, Range]) -> float:
        """The step of the integer sums: (input scale) * (weight scale), or the product of scales; 0 without ranges."""
        scales = [(ranges[key][1] - ranges[key][0]) / LEVELS for key in self.inputs if key in ranges]
        if not scales:
            return 0.0
        step = float(np.prod(scales)) if self.multiplied else max(scales)
        return step if self.largest_weight is None else step * self.largest_weight / WEIGHT_LEVELS


def widened_for_accumulation(
    ranges: Mapping[Hashable, Range],
    sums: Sequence[Accumulation],
    fixed: Mapping[Hashable, Range] | None = None,
) -> dict[Hashable, Range]:
    """Widen each range until (step of the sums that compute it) / (its scale) is at most LARGEST_STEP.

    Args:
        ranges: key of a tensor, or of a group of tied tensors -> (low, high).
        sums: the operations, in the order of the graph.
        fixed: further ranges, which are not changed.

    Returns:
        The same keys as `ranges`, with ranges that are as wide or wider.
    """
    found = {key: UNKNOWN_RANGE if high - low < _ZERO_WIDTH else (low, high) for key, (low, high) in ranges.items()}
    # Widening an output may require widening later outputs; tied tensors far apart in the graph may need another pass.
    for _ in sums:
        known, before = {**(fixed or {}), **found}, dict(found)
        for operation in sums:
            if operation.output in found:
                smallest = operation.step(known) / LARGEST_STEP * LEVELS
                known[operation.output] = found[operation.output] = _widened(smallest, *found[operation.output])
        if found == before:
            break
    return found


def _widened(width: float, low: float, high: float) -> Range:
    """The range, widened to `width` upwards; downwards if it has only negative values."""
    if high - low >= width:
        return low, high
    return (low, low + width) if high > 0.0 or low == 0.0 else (high - width, high)


def smallest_limits(bias: Array, input_scale: float) -> npt.NDArray[np.float32]:
    """The smallest weight limits [channels] with which a bias fits int32: |bias| * 127 / (2**30 * input scale).

    Weights rounded with these limits are off by at most half a step, which changes the output by less than 1e-9 of the
    bias per weight and level of the input.

    Args:
        bias: [channels].
        input_scale: width of one int8 level of the input.
    """
    return np.asarray(np.abs(bias) * (WEIGHT_LEVELS / LARGEST_BIAS) / input_scale, np.float32)
