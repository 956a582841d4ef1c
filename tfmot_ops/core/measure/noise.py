"""Signal to quantisation noise, in dB."""

from __future__ import annotations

import math

import numpy as np

from tfmot_ops.core.keras.types import Array


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal to quantisation noise ratio in dB: 10 log10(sum reference^2 / sum (reference - other)^2).

    Infinite if the arrays are equal (JSON has no infinity: leave such a value out), and minus infinite if the reference
    is all 0.

    Args:
        reference: the signal, any shape.
        other: the quantised values, same shape.
    """
    return power_ratio_db(*signal_and_noise(reference, other))


def signal_and_noise(reference: Array, other: Array) -> tuple[float, float]:
    """(sum reference^2, sum (reference - other)^2); the sums of several batches may be added up."""
    signal = np.asarray(reference, np.float64)
    return float(np.sum(np.square(signal))), float(np.sum(np.square(signal - np.asarray(other, np.float64))))


def power_ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) in dB; infinite for a noise of 0, otherwise minus infinite for a signal of 0."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf
