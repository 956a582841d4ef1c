"""Latency of a TFLite file on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmot_ops.core.tflite.interpreter import make_interpreter
from tfmot_ops.errors import ArtifactError

#: Untimed runs before the timed ones: the first runs pack weights and fill caches.
_WARM_UP_RUNS = 5


@dataclass(frozen=True)
class Latency:
    """Duration of one inference with a batch of 1, in milliseconds.

    Attributes:
        median: median over the timed runs.
        p10: 10th percentile.
        p90: 90th percentile.
    """

    median: float
    p10: float
    p90: float


def latency_ms(data: bytes, threads: int = 1, runs: int = 50, *, xnnpack: bool = True) -> Latency:
    """Time a TFLite file on this machine's CPU with a batch of 1, in milliseconds.

    Args:
        data: the file's bytes.
        threads: CPU threads of the interpreter.
        runs: number of timed runs, at least 1; 5 untimed runs come first.
        xnnpack: run with XNNPACK, TFLite's default delegate; otherwise with TFLite's built-in kernels.

    Raises:
        ArtifactError: the bytes are no TFLite file, or the runtime refuses it.
    """
    interpreter = make_interpreter(data, threads, xnnpack=xnnpack)
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise ArtifactError(
            "the TFLite file cannot be run",
            required="operations that " + ("XNNPACK supports" if xnnpack else "TFLite's built-in kernels support"),
            received=str(error),
            remedy="export the model again, without a sparse encoding",
        ) from error
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        # Random values, as some kernels are faster on zeros.
        values = rng.uniform(0.0, 1.0, detail["shape"])
        interpreter.set_tensor(detail["index"], (values * _largest_input(detail["dtype"])).astype(detail["dtype"]))
    for _ in range(_WARM_UP_RUNS):
        interpreter.invoke()
    times = []
    for _ in range(max(1, runs)):
        start = time.perf_counter_ns()
        interpreter.invoke()
        times.append((time.perf_counter_ns() - start) / 1e6)
    p10, median, p90 = np.percentile(times, (10, 50, 90))
    return Latency(median=float(median), p10=float(p10), p90=float(p90))


def _largest_input(dtype: np.dtype[Any]) -> float:
    if not np.issubdtype(dtype, np.integer):
        return 1.0
    # int32 and int64 inputs are indices into a table of unknown size, in which only index 0 exists for certain.
    return 127.0 if np.dtype(dtype).itemsize <= 2 else 0.0  # noqa: PLR2004 - int16
