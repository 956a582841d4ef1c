"""WAV files: PCM of 8, 16, 24 and 32 bits, and floats of 32 and 64 bits.

Python's module `wave` reads no floats, and scipy's reader warns, in whichever thread, where a file was cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tfmot_ops.data.sources.folders import Kind
from tfmot_ops.errors import SpecError
from tfmot_ops.system import files

WAV = Kind("WAV files", (".wav",), "a WAV file of PCM with 8, 16, 24 or 32 bits, or of floats with 32 or 64 bits")
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
#: Highest rate in Hz; the filter between two rates without a common factor is as long as the higher one.
HIGHEST_RATE = 768_000
#: Size in a header whose writer could not know it, such as a pipe's: the samples go to the end of the file.
_UNKNOWN = 0xFFFFFFFF
#: Most chunks before the samples, bytes of the chunk `fmt ` that are read, and channels. A damaged header can say any
#: number, and each chunk of no bytes takes a read of its own.
_MOST_CHUNKS, _FORM_BYTES, _MOST_CHANNELS = 1000, 64, 256
Wave = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """Where the samples of a WAV file are, and what they are.

    Attributes:
        code: 1 for PCM, 3 for floats.
        channels: samples side by side.
        rate: samples a second, in Hz.
        bits: of one sample.
        begin: offset of the first byte of the samples.
        size: bytes of all samples.
    """

    code: int
    channels: int
    rate: int
    bits: int
    begin: int
    size: int


def read_header(path: Path) -> Header:
    """The header of a WAV file.

    Raises:
        ValueError: the file is no WAV file, is of another kind, or was cut off.
        OSError: the file cannot be read.
    """
    length = path.stat().st_size
    with files.open_regular(path) as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            raise ValueError("no RIFF WAVE header")
        form = b""
        for _ in range(_MOST_CHUNKS):
            if len(chunk := file.read(8)) < 8:  # noqa: PLR2004 - name and size
                break
            name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
            if name == b"data":
                return _header(form, file, size, length)
            if name == b"fmt ":
                form = file.read(min(size, _FORM_BYTES))
                file.seek(size - len(form), 1)
            else:
                file.seek(size, 1)
            file.seek(size % 2, 1)  # chunks begin at even offsets
    raise ValueError("no samples: the chunk data is missing")


def _header(form: bytes, file: BinaryIO, size: int, length: int) -> Header:
    begin = file.tell()
    if len(form) < 16:  # noqa: PLR2004 - bytes of the shortest chunk fmt
        raise ValueError("no chunk fmt before the samples")
    code, channels = int.from_bytes(form[:2], "little"), int.from_bytes(form[2:4], "little")
    rate, bits = int.from_bytes(form[4:8], "little"), int.from_bytes(form[14:16], "little")
    if code == _EXTENSIBLE:
        code = int.from_bytes(form[24:26], "little")
    if (code, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise ValueError(f"format {code} of {bits} bits")
    if not 1 <= channels <= _MOST_CHANNELS or not 1 <= rate <= HIGHEST_RATE:
        raise ValueError(f"{channels} channels at {rate} Hz")
    if size == _UNKNOWN:
        size = length - begin
    if begin + size > length:
        raise ValueError(f"{length - begin} bytes of samples, where the header says {size}")
    return Header(code, channels, rate, bits, begin, size)


def read_wav(path: Path, frames: Callable[[int], int] | None = None) -> tuple[Wave, int]:
    """The samples [time] of a WAV file in [-1, 1], channels averaged, and their rate in Hz.

    Args:
        path: of the file.
        frames: returns for a rate in Hz how many samples of each channel to read; the rest of the file is not read.
            None reads all.

    Raises:
        SpecError: the file is broken, or of another kind.
    """
    try:
        header = read_header(path)
        with path.open("rb") as file:
            file.seek(header.begin)
            frame = header.channels * header.bits // 8
            data = file.read(header.size if frames is None else min(header.size, frame * frames(header.rate)))
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{path} cannot be decoded",
            required=WAV.required,
            received=f"{type(error).__name__}: {error}",
            remedy="repair, convert or remove the file",
        ) from error
    samples = _samples(data[: len(data) // frame * frame], header)
    return samples.reshape(-1, header.channels).mean(axis=1, dtype=np.float32), header.rate


def _samples(data: bytes, header: Header) -> Wave:
    if header.code == _FLOAT:
        return np.frombuffer(data, f"<f{header.bits // 8}").astype(np.float32)
    if header.bits == 8:  # noqa: PLR2004 - the one size without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / np.float32(128.0)
    if header.bits == 24:  # noqa: PLR2004 - no size of NumPy's: the upper three bytes of four
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        integers = wide.view("<i4")[:, 0]
    else:
        integers = np.frombuffer(data, f"<i{header.bits // 8}")
    scale = float(np.iinfo(integers.dtype).max) + 1.0
    return (integers / scale).astype(np.float32)


def problem_of_header(path: Path) -> str | None:
    """What is wrong with a WAV file by its header and its length; None if nothing is."""
    try:
        read_header(path)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None
