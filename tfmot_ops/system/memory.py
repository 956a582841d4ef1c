"""How much memory there is, and how much an archive of untrusted origin may take of it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Final

#: Bytes that any file may expand to, and how many times its own size beyond that. Deflate compresses repeated values up
#: to 1032 times, real weights and samples seldom more than 20 times.
FREE_BYTES: Final = 64 * 2**20
MOST_EXPANSION: Final = 200
#: Largest number of members of an archive.
_MOST_MEMBERS: Final = 10_000


def machine_bytes() -> float:
    """Memory of this machine, or the memory limit of its container, in bytes."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, float(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or the text `max` (no limit)
            continue
    return total


def expands_too_far(stored: int, expanded: int) -> str | None:
    """A text for a message if a file says that it expands to far more bytes than its size justifies; otherwise None.

    Args:
        stored: bytes of the file.
        expanded: bytes of what is in it, once it is read into memory.
    """
    limit = FREE_BYTES + MOST_EXPANSION * stored
    if expanded <= limit:
        return None
    return f"{expanded:,} bytes in a file of {stored:,} bytes, which may hold at most {limit:,}"


def archive_problem(archive: zipfile.ZipFile, stored: int) -> str | None:
    """What is wrong with the sizes in a zip archive, found before any member is read; None if nothing is.

    Python reads no more of a member than the size in the archive's list, which is what counts here.

    Args:
        archive: opened for reading.
        stored: bytes of the archive's file.
    """
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        return f"{len(members):,} members in an archive, which may have at most {_MOST_MEMBERS:,}"
    return expands_too_far(stored, sum(member.file_size for member in members))
