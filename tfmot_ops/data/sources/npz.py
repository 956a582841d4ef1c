"""Arrays in a .npz file, of any shapes and types; `mapping` has their names.

Arrays that `numpy.savez` stored are mapped into memory: they are read where they are indexed. Those of
`numpy.savez_compressed` are read at once, after a check that they fit into memory. Pickled objects are not read.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tfmot_ops.data.columns import Array
from tfmot_ops.data.sources.mapping import from_mapping
from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.errors import SpecError
from tfmot_ops.system import files
from tfmot_ops.system.memory import archive_problem, machine_bytes

FORM = "npz:<path>"
#: Share of the memory that compressed arrays may take: they are cut into splits, which copies them.
_SHARE_OF_MEMORY = 0.25
#: Bytes of a local header in a zip archive, the name and the extra field after it left out, whose lengths it ends with.
_LOCAL_HEADER = 30
_LENGTHS = (slice(26, 28), slice(28, 30))


def read_npz(path: Path) -> Source:
    """The arrays of a .npz file."""
    try:
        with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            _check_sizes(path, archive)
            arrays = {
                member.filename.removesuffix(".npy"): _array(path, archive, member) for member in archive.infolist()
            }
    except Exception as error:  # NumPy's parser of headers, and zipfile, raise errors of many classes
        raise SpecError(
            f"{path} cannot be read",
            required="a .npz file with arrays of numbers, written by numpy.savez",
            received=f"{type(error).__name__}: {error}",
            remedy="check the path, and save numeric arrays (not objects)",
        ) from error
    return from_mapping(f"{FORM.partition(':')[0]}:{path}", arrays)


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that takes more memory than its size justifies or than there is, before it is read.

    Raises:
        ValueError: says which of both.
    """
    problem = archive_problem(archive, path.stat().st_size)
    if problem is not None:
        raise ValueError(problem)
    read = sum(each.file_size for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED)
    most = int(machine_bytes() * _SHARE_OF_MEMORY)
    if read > most:
        raise ValueError(
            f"{read:,} bytes of compressed arrays, of which this machine can take {most:,}; "
            "numpy.savez stores them uncompressed, and then only what is needed is read"
        )


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """The array of a member: mapped if its bytes are in the file as they are, else read."""
    if member.compress_type == zipfile.ZIP_STORED:
        mapped = _mapped(path, member)
        if mapped is not None:
            return mapped
    with archive.open(member) as file:
        _header(file, member)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _mapped(path: Path, member: zipfile.ZipInfo) -> Array | None:
    """The array of an uncompressed member, mapped into memory; None for one that cannot be mapped."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
        name, extra = (int.from_bytes(local[part], "little") for part in _LENGTHS)
        file.seek(name + extra, 1)
        header = _header(file, member)
        # No bytes cannot be mapped, and a single number need not be.
        if header.dtype.hasobject or not header.shape or 0 in header.shape or header.dtype.itemsize == 0:
            return None
        return np.memmap(path, header.dtype, "r", file.tell(), header.shape, "F" if header.fortran else "C")


class _Header(NamedTuple):
    """What a .npy file says of its array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def _header(file: IO[bytes], member: zipfile.ZipInfo) -> _Header:
    """The header of a member, which is read from the current place.

    Raises:
        ValueError: the header cannot be read, or says that the array has more bytes than the member.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"{member.filename} is of the format {version}, which only records of several fields need")
    header = _Header(tuple(map(int, shape)), fortran, dtype)  # NumPy lets sizes be True
    # NumPy makes an array of the header's shape before it reads the first value.
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > member.file_size and not header.dtype.hasobject:
        raise ValueError(f"{member.filename} says that it has {size:,} bytes, and has {member.file_size:,}")
    return header


READER = Reader(
    FORM,
    "arrays x_train, y_train, x_test, y_test, or x, y, or x alone, in one .npz file; x.<name> for several inputs",
    lambda text: read_npz(Path(Query(FORM, text, ()).location)),
)
