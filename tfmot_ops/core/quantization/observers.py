"""Observers: they read the values of a tensor on calibration samples, batch by batch, and choose its range.

Each keeps a bounded state in place of the values: two numbers, or the counts of 65,536 classes of values. One pass over
the samples is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tfmot_ops.contract import Quantization, RangeMethod
from tfmot_ops.contract.recipe import DEFAULT_PERCENTILE, DEFAULT_RANGES, Activations
from tfmot_ops.core.quantization.scales import Range

Floats: TypeAlias = npt.NDArray[np.float64]

#: Weight of the average so far when the extremes of a batch are added. The average then covers about the last 10
#: batches of 64 samples, more than the default 512 samples.
_DECAY = 0.9
#: Bits of a float32 that are dropped for its class. What stays is a sign, 8 bits of exponent and 7 of mantissa: a class
#: is at most 1/128 of its values wide, however large they are, so that an outlier does not make the classes coarser.
_DROPPED_BITS = 16
_CLASSES = 1 << (32 - _DROPPED_BITS)
_SIGN_CLASS = _CLASSES // 2
#: Of the classes' ends, every fourth is a candidate for the end of a range.
_STRIDE = 4
#: A candidate is at least this share of the extreme value. A range that clips more has lost the tensor's shape.
_SMALLEST_SHARE = 1.0 / 256.0
#: Tolerance for the number of values outside of a percentile, in values, for rounding errors of that number.
_ROUNDING_ERROR = 1e-3


@dataclass(frozen=True)
class Classes:
    """The values of a tensor, counted: class i holds `counts[i]` values from `lows[i]` to `highs[i]`.

    Attributes:
        lows: ascending, [classes]. One class is exactly 0, from 0 to 0.
        highs: ascending, [classes].
        counts: [classes]; only the class of 0 may be empty.
    """

    lows: Floats
    highs: Floats
    counts: npt.NDArray[np.int64]


class Observer(Protocol):
    """Reads the values of one tensor, and chooses its range."""

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Read values of any shape; called once for each call of the tensor's layer in a batch."""

    def end_batch(self) -> None:
        """All values of a batch of samples were read."""

    def range(self) -> Range:
        """(low, high) with low <= 0 <= high; NaN or infinite where a value was."""


class Extremes:
    """The smallest and the largest value (method `minmax`)."""

    def __init__(self) -> None:
        self.low = self.high = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Read values of any shape."""
        if values.size:
            # np.minimum and not min: it keeps NaN.
            self.low = float(np.minimum(self.low, values.min()))
            self.high = float(np.maximum(self.high, values.max()))

    def end_batch(self) -> None:
        """The extremes do not depend on the batches."""

    def range(self) -> Range:
        """(low, high) with low <= 0 <= high."""
        return self.low, self.high


class MovingAverage:
    """A moving average of the extremes of each batch of samples (method `moving_average`).

    Starts with the extremes of the first batch; each later batch counts a tenth.
    """

    def __init__(self) -> None:
        self._batch = Extremes()
        self._average: Range | None = None

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Read values of any shape."""
        self._batch.add(values)

    def end_batch(self) -> None:
        """Let the extremes of the batch take part in the average."""
        new, self._batch = self._batch.range(), Extremes()
        before = self._average or new
        low, high = (_DECAY * old + (1.0 - _DECAY) * value for old, value in zip(before, new, strict=True))
        self._average = low, high

    def range(self) -> Range:
        """(low, high) with low <= 0 <= high."""
        return self._average or self._batch.range()


class Histogram:
    """Counts of the values in classes; a function chooses the range from them (methods `percentile`, `mse`).

    Args:
        choose: (the counted values) -> (low, high); 0 and the extremes then limit them.
    """

    def __init__(self, choose: Callable[[Classes], Range]) -> None:
        self._choose = choose
        self._extremes = Extremes()
        self._counts = np.zeros(_CLASSES, np.int64)
        #: Classes of values that were read and not counted yet, and how many they are.
        self._waiting: list[npt.NDArray[np.uint16]] = []
        self._count = 0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Read values of any shape."""
        self._extremes.add(values)
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        self._waiting.append((flat.view(np.uint32) >> _DROPPED_BITS).astype(np.uint16))
        self._count += flat.size
        # Counting takes as long as there are classes, even for few values.
        if self._count >= _CLASSES:
            self._count_waiting()

    def _count_waiting(self) -> None:
        found = np.bincount(np.concatenate([*self._waiting, np.zeros(0, np.uint16)]), minlength=_CLASSES)
        # Only classes that occur are written: memory pages of zeros that are never written take no memory.
        used = np.flatnonzero(found)
        self._counts[used] += found[used]
        self._waiting, self._count = [], 0

    def end_batch(self) -> None:
        """The counts do not depend on the batches."""

    def range(self) -> Range:
        """(low, high) with low <= 0 <= high."""
        lowest, highest = self._extremes.range()
        if not np.isfinite([lowest, highest]).all() or lowest == highest:
            return lowest, highest
        self._count_waiting()
        low, high = self._choose(self._classes())
        return max(lowest, min(low, 0.0)), min(highest, max(high, 0.0))

    def _classes(self) -> Classes:
        used = np.flatnonzero(self._counts)
        negative, positive = used[used > _SIGN_CLASS][::-1], used[(used > 0) & (used < _SIGN_CLASS)]
        zeros = self._counts[0] + self._counts[_SIGN_CLASS]
        # The class of a float's sign and exponent runs away from 0: a negative class begins at its highest value.
        return Classes(
            lows=np.concatenate([_first_value(negative + 1), [0.0], _first_value(positive)]),
            highs=np.concatenate([_first_value(negative), [0.0], _first_value(positive + 1)]),
            counts=np.concatenate([self._counts[negative], [zeros], self._counts[positive]]),
        )


def _first_value(classes: npt.NDArray[np.int64]) -> Floats:
    """The value of each class that is nearest to 0: the float32 whose dropped bits are 0."""
    return (classes.astype(np.uint32) << np.uint32(_DROPPED_BITS)).view(np.float32).astype(np.float64)


def percentile_range(classes: Classes, percent: float) -> Range:
    """The range that leaves at most (100 - percent) % of the values below it, and as many above it.

    Args:
        classes: the values.
        percent: between 50 and 100.
    """
    # A whole number of values must not become less than that by a rounding error.
    outside = (100.0 - percent) * classes.counts.sum() / 100.0 + _ROUNDING_ERROR
    low = int(np.searchsorted(np.cumsum(classes.counts), outside, side="right"))
    high = int(np.searchsorted(np.cumsum(classes.counts[::-1]), outside, side="right"))
    return float(classes.lows[low]), float(classes.highs[::-1][high])


def mse_range(classes: Classes, levels: float) -> Range:
    """The range with the smallest mean square error of rounding to equally spaced levels.

    A value inside the range is off by (width of a level)**2 / 12 on average, and 0 is exact; a value outside becomes
    the end of the range. The ends are searched among the ends of the classes, in steps of about 3 %.

    Args:
        classes: the values.
        levels: number of steps in a range: 255 for 8 bits.
    """
    middles = (classes.lows + classes.highs) / 2.0
    lows, below, below_error = _ends(-classes.lows[::-1], -middles[::-1], classes.counts[::-1])
    highs, above, above_error = _ends(classes.highs, middles, classes.counts)
    width = lows[:, None] + highs[None, :]
    inside = classes.counts[middles != 0.0].sum() - below[:, None] - above[None, :]
    error = inside * (width / levels) ** 2 / 12.0 + below_error[:, None] + above_error[None, :]
    low, high = np.unravel_index(int(np.argmin(error)), error.shape)
    return -float(lows[low]), float(highs[high])


def _ends(ends: Floats, values: Floats, counts: npt.NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Candidates for the upper end of a range, the count of values above each, and the sum of their square distances.

    Args:
        ends: upper end of each class, ascending, [classes].
        values: one that stands for each class, ascending, [classes].
        counts: values in each class, [classes].
    """
    if ends[-1] <= 0.0:
        return np.zeros(1), np.zeros(1), np.zeros(1)
    last = len(ends) - 1
    first = int(np.searchsorted(ends, max(ends[-1] * _SMALLEST_SHARE, np.finfo(np.float32).tiny)))
    chosen = np.arange(last, first - 1, -_STRIDE)
    # Count, sum and sum of squares of the values above each end give the clipping error of every candidate at once.
    moments = counts * values ** np.arange(3)[:, None]
    count, total, squares = (np.cumsum(moments[:, ::-1], axis=1)[:, ::-1] - moments)[:, chosen]
    limits = ends[chosen]
    return limits, count, np.maximum(squares - 2.0 * limits * total + limits**2 * count, 0.0)


def observer_of(quantization: Quantization) -> Callable[[], Observer]:
    """A function that makes an observer for one tensor, by a recipe's `ranges` and type of activations."""
    method = quantization.ranges or DEFAULT_RANGES
    if method is RangeMethod.MINMAX:
        return Extremes
    if method is RangeMethod.MOVING_AVERAGE:
        return MovingAverage
    if method is RangeMethod.PERCENTILE:
        return lambda: Histogram(partial(percentile_range, percent=quantization.percentile or DEFAULT_PERCENTILE))
    levels = 2.0 ** (16 if quantization.activations is Activations.INT16 else 8) - 1.0
    return lambda: Histogram(partial(mse_range, levels=levels))
