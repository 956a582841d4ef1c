"""Peak resident memory since `reset_peak()`."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Reset the peak; if the kernel does not allow it, `peak_bytes` is the peak since the start of the process.

    Returns freed memory to the system first, as glibc's free lists would count as resident memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl and macOS do not
    if trim is not None:
        trim(0)
    try:
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return


def peak_bytes() -> float:
    """Largest resident memory since `reset_peak`, in bytes."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return float(line.split()[1]) * 1024.0
