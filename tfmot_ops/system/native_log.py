"""Keeps the log lines of TensorFlow's C++ code off the terminal; this file is also the program that drops them.

TensorFlow 2.21 writes them by Abseil, which reads no environment variable: TF_CPP_MIN_LOG_LEVEL changes nothing. So the
descriptor of stderr leads through a process of its own, which drops the lines that say nothing to a user and outlives a
crash, whose last lines it passes on. Python's own stderr does not go that way.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator

#: Set to 0 or 1, the variable of TensorFlow asks for all lines.
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_STDERR = 2
#: Seconds in which the process has to pass on what it was given; a child of ours may still hold its pipe.
_PATIENCE_S = 2.0
_PREFIX = rb"\d{4} \d\d:\d\d:\d+\.\d+ +\d+ "
#: Lines that are dropped: information and warnings of C++; errors that only say that there is no GPU, or that a newer
#: TensorFlow writes an attribute for itself; the TFLite interpreter's news; what the converter prints about its flags.
_DROPPED = re.compile(
    rb"[IW]" + _PREFIX + rb"|E" + _PREFIX + rb"(?:cuda_\w+\.cc|gpu_\w+\.cc|node_def_util\.cc:\d+\] NodeDef mentions)"
    rb"|WARNING: All log messages before absl::InitializeLog|INFO: |fully_quantize: \d"
)


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """While this lasts, the C++ code of this process and its children shows errors that matter only."""
    if os.environ.get(_LEVEL, "") in {"0", "1"} or not _is_open(_STDERR):
        yield
        return
    import subprocess

    terminal = os.dup(_STDERR)
    # In a session of its own, Ctrl-C does not end it before the last lines.
    passing_on = subprocess.Popen(
        [sys.executable, "-S", "-E", __file__], stdin=subprocess.PIPE, stdout=terminal, start_new_session=True
    )
    pipe = passing_on.stdin
    python = sys.stderr
    try:
        if pipe is not None:
            os.dup2(pipe.fileno(), _STDERR)
            pipe.close()
        if _descriptor(python) == _STDERR:
            python.flush()
            sys.stderr = open(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = python
        os.dup2(terminal, _STDERR)
        os.close(terminal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            passing_on.wait(_PATIENCE_S)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _descriptor(stream: object) -> int | None:
    try:
        return int(getattr(stream, "fileno", lambda: -1)())
    except (OSError, io.UnsupportedOperation):
        return None


def main() -> None:
    """Pass on the lines of stdin that are not dropped, as soon as each is there."""
    for line in sys.stdin.buffer:
        if not _DROPPED.match(line):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
