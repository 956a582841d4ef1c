"""How fast a TFLite file runs on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmot_ops.core.tflite.interpreter import make_interpreter
from tfmot_ops.errors import ArtifactError

#: Runs before the clock counts: the first ones pack weights and fill caches.
_WARM_UP_RUNS = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference with a batch of 1: median, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


def latency_ms(data: bytes, threads: int = 1, runs: int = 50, *, xnnpack: bool = True) -> Latency:
    """Time a TFLite file on this machine's CPU with a batch of 1, in milliseconds.

    Args:
        data: the file's bytes.
        threads: CPU threads of the interpreter.
        runs: timed runs, at least 1, after a few that do not count.
        xnnpack: with XNNPACK, as an application has it; otherwise with TFLite's own kernels.

    Raises:
        ArtifactError: the bytes are no TFLite file, or the runtime refuses it.
    """
    interpreter = make_interpreter(data, threads, xnnpack=xnnpack)
    try:
        interpreter.allocate_tensors()
    except RuntimeError as error:
        raise ArtifactError(
            "the TFLite file cannot be run",
            required="operations that the runtime " + ("with XNNPACK takes" if xnnpack else "has kernels for"),
            received=str(error),
            remedy="export the model again, without a sparse encoding",
        ) from error
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        # Zeros would let denormals and early exits flatter the figure.
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
    # Wide integers are indices, into a table of unknown size: only 0 is in each.
    return 127.0 if np.dtype(dtype).itemsize <= 2 else 0.0  # noqa: PLR2004 - int16
