"""Ranges that int8 kernels can compute with: what the scale of a tensor has to be next to those around it.

A range is (low, high), a scale the size of one of its levels. Three things go wrong with a range next to nothing:
TFLite and XNNPACK compute an output from sums of (input scale * weight scale) steps and refuse an output scale that is
far below such a step; a bias, a whole number of such steps in int32, no longer fits; and a range of no width has no
scale at all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfmot_ops.core.keras.types import Array

Range = tuple[float, float]

#: Range of a tensor that was 0 for every sample: nothing is known of its values, and most are of the order of 1.
UNKNOWN_RANGE = (0.0, 1.0)
#: A range of less width is that of a tensor of zeros, after the rounding errors of calibration or long training.
_ZERO_WIDTH = 1e-20
#: How much larger than an output's scale the steps of the sums before it may be. XNNPACK (ai-edge-litert 2.3) refuses
#: 256 for convolutions and 128 for means; an output of 2 levels a step is less than int8 can tell apart anyway.
LARGEST_STEP = 64.0
#: The largest bias in steps. An int32 holds twice as much: the rest is for the sums that the bias is added to.
LARGEST_BIAS = 2.0**30
#: int8 levels of a range, and of weights on each side of zero.
LEVELS, WEIGHT_LEVELS = 255.0, 127.0


@dataclass(frozen=True)
class Sums:
    """How an output is computed, as far as its scale goes.

    Attributes:
        inputs: the tensors, or groups of tensors with one range, that are added up or multiplied.
        output: the tensor, or group, of the result.
        multiplied: whether the inputs are multiplied with each other.
        largest_weight: largest magnitude of the int8 weights that multiply the input; None without weights.
    """

    inputs: tuple[Hashable, ...]
    output: Hashable = None
    multiplied: bool = False
    largest_weight: float | None = None

    def step(self, ranges: Mapping[Hashable, Range]) -> float:
        """The size of one step of the sums; 0 where no input has a range."""
        scales = [(ranges[key][1] - ranges[key][0]) / LEVELS for key in self.inputs if key in ranges]
        if not scales:
            return 0.0
        step = float(np.prod(scales)) if self.multiplied else max(scales)
        return step if self.largest_weight is None else step * self.largest_weight / WEIGHT_LEVELS


def computable(
    ranges: Mapping[Hashable, Range],
    sums: Sequence[Sums],
    fixed: Mapping[Hashable, Range] | None = None,
) -> dict[Hashable, Range]:
    """The ranges, with those widened that are too small for what they are computed from.

    Args:
        ranges: of each tensor, or of each group of tensors that have one.
        sums: what is computed, in the order in which it is.
        fixed: ranges that are read only.
    """
    found = {key: UNKNOWN_RANGE if high - low < _ZERO_WIDTH else (low, high) for key, (low, high) in ranges.items()}
    # Each pass carries a widened range on; a group of tensors that lie apart may need another pass.
    for _ in sums:
        known, before = {**(fixed or {}), **found}, dict(found)
        for each in sums:
            if each.output in found:
                smallest = each.step(known) / LARGEST_STEP * LEVELS
                known[each.output] = found[each.output] = _at_least(smallest, *found[each.output])
        if found == before:
            break
    return found


def _at_least(width: float, low: float, high: float) -> Range:
    if high - low >= width:
        return low, high
    return (low, low + width) if high > 0.0 or low == 0.0 else (high - width, high)


def smallest_limits(bias: Array, input_scale: float) -> npt.NDArray[np.float32]:
    """The smallest limits of a kernel on whose steps a bias fits int32, [channels].

    Rounded within them, the weights of a channel lose less than a ten-millionth of its bias for each level of an input.

    Args:
        bias: [channels].
        input_scale: size of a level of the input.
    """
    return np.asarray(np.abs(bias) * (WEIGHT_LEVELS / LARGEST_BIAS) / input_scale, np.float32)
