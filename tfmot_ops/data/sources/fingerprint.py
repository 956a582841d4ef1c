"""Fingerprint of the files that a source reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Bytes of all files up to which their contents are read; hashing so many takes about a second.
WHOLE_BYTES = 256 * 1024 * 1024


def is_small(paths: Sequence[Path]) -> bool:
    """Whether the files hold at most `WHOLE_BYTES` together."""
    return sum(path.stat().st_size for path in paths) <= WHOLE_BYTES


def fingerprint(paths: Sequence[Path], root: Path, options: Mapping[str, str]) -> tuple[str, str]:
    """The sha256 (hex) of files, and what it is taken over.

    Args:
        paths: the files, in the order of the samples.
        root: folder that names are relative to, so that a moved folder keeps its fingerprint.
        options: the source's options, which decide what the files become.

    Returns:
        The sha256, and `names and contents` for files of up to `WHOLE_BYTES` together, `names, sizes and times` for
        more.
    """
    whole = is_small(paths)
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    for path in paths:
        name = path.relative_to(root) if path.is_relative_to(root) else path
        status = path.stat()
        digest.update(f"\0{name}\0{status.st_size}\0".encode("utf-8", "surrogateescape"))
        digest.update(path.read_bytes() if whole else str(status.st_mtime_ns).encode())
    return digest.hexdigest(), "names and contents" if whole else "names, sizes and times"
