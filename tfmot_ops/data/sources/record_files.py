"""Files of TFRecords: where their records are, found by reading the records' headers alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfmot_ops.errors import SpecError

#: Bytes before a record's content: its length (uint64) and that number's checksum; and after it: its checksum.
_HEADER, _FOOTER = 12, 4
#: The polynomial of CRC-32C, its bits reversed, and what TensorFlow adds to a rotated checksum.
_POLYNOMIAL, _MASK_DELTA = 0x82F63B78, 0xA282EAD8
#: Records as rows (file, record in the file, offset of the content, length of the content).
Records = npt.NDArray[np.int64]


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [(value >> 1) ^ (_POLYNOMIAL if value & 1 else 0) for value in table]
    return table


_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """TensorFlow's checksum of bytes: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def index_records(paths: Sequence[Path]) -> Records:
    """The records [N, 4] of files, in their order.

    Raises:
        SpecError: a file cannot be read, or was cut off; its path and the record's place are named.
    """
    return np.concatenate([np.array(_index(place, path), np.int64).reshape(-1, 4) for place, path in enumerate(paths)])


def _index(place: int, path: Path) -> list[tuple[int, int, int, int]]:
    rows: list[tuple[int, int, int, int]] = []
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise broken(path, 0, f"{type(error).__name__}: {error}") from error
    try:
        end, offset = os.fstat(descriptor).st_size, 0
        while offset < end:
            header = os.pread(descriptor, _HEADER, offset)
            length = int.from_bytes(header[:8], "little")
            if len(header) < _HEADER or masked_crc(header[:8]) != int.from_bytes(header[8:], "little"):
                raise broken(path, len(rows), _fault(header, offset))
            if offset + _HEADER + length + _FOOTER > end:
                left = end - offset - _HEADER
                raise broken(path, len(rows), f"{left} bytes where {length + _FOOTER} should follow: cut off")
            rows.append((place, len(rows), offset + _HEADER, length))
            offset += _HEADER + length + _FOOTER
    finally:
        os.close(descriptor)
    return rows


def _fault(header: bytes, offset: int) -> str:
    if offset == 0 and header.startswith(b"\x1f\x8b"):
        return "a file that is compressed with gzip"
    return f"no header of a record at byte {offset}"


def broken(path: Path, record: int, received: str) -> SpecError:
    """The refusal of a record, by its file and its place in the file, from 0."""
    return SpecError(
        f"record {record} of {path} cannot be read",
        required="an uncompressed file of TFRecords that hold tf.train.Example",
        received=received,
        remedy="write the file again, or let the pattern leave it out",
    )


def read_record(paths: Sequence[Path], row: Records) -> bytes:
    """The content of a record, by its row [4] of `index_records`."""
    place, record, offset, length = (int(number) for number in row)
    try:
        with paths[place].open("rb", buffering=0) as file:
            file.seek(offset)
            content = file.read(length)
    except OSError as error:
        raise broken(paths[place], record, f"{type(error).__name__}: {error}") from error
    if len(content) < length:
        raise broken(paths[place], record, f"{len(content)} of {length} bytes: the file changed since it was indexed")
    return content


def check_contents(paths: Sequence[Path]) -> None:
    """Read every record with its checksum, as TensorFlow does it.

    Raises:
        SpecError: a checksum is wrong; the file and the record's place are named.
    """
    import tensorflow as tf

    for path in paths:
        try:
            for _ in tf.data.TFRecordDataset(str(path)).batch(1024):
                pass
        except tf.errors.DataLossError as error:
            raise broken(path, _readable(path), "content that its checksum does not fit") from error


def _readable(path: Path) -> int:
    """How many records of a file can be read, up to the first one that cannot."""
    import tensorflow as tf

    count = 0
    try:
        for _ in tf.data.TFRecordDataset(str(path)):
            count += 1
    except tf.errors.DataLossError:
        return count
    return count
