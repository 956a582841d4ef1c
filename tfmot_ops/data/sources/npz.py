"""Arrays in a .npz file, of any shapes and types; `mapping` has their names.

Arrays that `numpy.savez` stored are mapped into memory: they are read where they are indexed. Those of
`numpy.savez_compressed` are read at once. Pickled objects are not read.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from tfmot_ops.data.columns import Array
from tfmot_ops.data.sources.mapping import from_mapping
from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.errors import SpecError

FORM = "npz:<path>"
#: Bytes of a local header in a zip archive, the name and the extra field after it left out, whose lengths it ends with.
_LOCAL_HEADER = 30
_LENGTHS = (slice(26, 28), slice(28, 30))


def read_npz(path: Path) -> Source:
    """The arrays of a .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                member.filename.removesuffix(".npy"): _array(path, archive, member) for member in archive.infolist()
            }
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise SpecError(
            f"{path} cannot be read",
            required="a .npz file with arrays of numbers, written by numpy.savez",
            received=f"{type(error).__name__}: {error}",
            remedy="check the path, and save numeric arrays (not objects)",
        ) from error
    return from_mapping(f"{FORM.partition(':')[0]}:{path}", arrays)


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """The array of a member: mapped if its bytes are in the file as they are, else read."""
    if member.compress_type == zipfile.ZIP_STORED:
        mapped = _mapped(path, member)
        if mapped is not None:
            return mapped
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _mapped(path: Path, member: zipfile.ZipInfo) -> Array | None:
    """The array of an uncompressed member, mapped into memory; None for one that cannot be mapped."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
        name, extra = (int.from_bytes(local[part], "little") for part in _LENGTHS)
        file.seek(name + extra, 1)
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            return None
        # No bytes cannot be mapped, and a single number need not be.
        if dtype.hasobject or not shape or 0 in shape or dtype.itemsize == 0:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


READER = Reader(
    FORM,
    "arrays x_train, y_train, x_test, y_test, or x, y, or x alone, in one .npz file; x.<name> for several inputs",
    lambda text: read_npz(Path(Query(FORM, text, ()).location)),
)
