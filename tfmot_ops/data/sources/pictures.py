"""Image files: decoded to one size and number of channels, and checked without being decoded."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfmot_ops.data.sources.folders import Kind
from tfmot_ops.data.sources.query import MOST_PIXELS
from tfmot_ops.errors import SpecError
from tfmot_ops.system import files

IMAGES = Kind("images", (".png", ".jpg", ".jpeg", ".bmp"), "a PNG, JPEG or BMP image")
_PNG, _JPEG, _BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"
#: Largest image file, in bytes: all pixels of the largest image, uncompressed, with 16 bits and transparency.
MOST_BYTES = 8 * MOST_PIXELS + 2**20
#: Bytes at the end of a file in which its end marker is looked for; what cameras append seldom is longer.
_TAIL = 1024
#: Weights of red, green and blue in a grey value, ITU-R BT.601, as libjpeg and libpng have them.
_GREY = (0.299, 0.587, 0.114)
Bytes = npt.NDArray[np.uint8]


def problem_of(read: Callable[[Path], object], path: Path) -> str | None:
    """What is wrong with a file, as the SpecError of `read` says it; None if it can be read."""
    try:
        read(path)
    except SpecError as error:
        return error.received
    return None


@dataclass(frozen=True)
class Decoder:
    """Decodes image files to uint8 [H, W, C].

    A transparency is dropped, 16 bits become 8, and a rotation in a photo's EXIF data is not applied.

    Attributes:
        size: (H, W) in pixels; files of another size are resized, bilinear and with antialias.
        channels: C, 1 for grey and 3 for red, green, blue.
    """

    size: tuple[int, int]
    channels: int

    def read(self, path: Path) -> Bytes:
        """The image [H, W, C] of a file.

        Raises:
            SpecError: the file is broken.
        """
        try:
            data = files.read_limited(path, MOST_BYTES)
        except OSError as error:
            raise broken(str(path), error) from error
        return self.decode(data, str(path))

    def decode(self, data: bytes, name: str) -> Bytes:
        """The image [H, W, C] of a file's bytes; `name` says where they come from."""
        import tensorflow as tf

        check_size(data, name)
        try:
            # The decoder of BMP converts no colours.
            channels = 0 if data.startswith(_BMP) else self.channels
            image = tf.io.decode_image(data, channels=channels, expand_animations=False)
        except tf.errors.InvalidArgumentError as error:
            raise broken(name, error) from error
        pixels: Bytes = with_channels(image.numpy(), self.channels)
        if pixels.shape[:2] == self.size:
            return pixels
        return resized(pixels, self.size)

    def problem(self, path: Path) -> str | None:
        """What is wrong with a file, found by decoding it; None if nothing is."""
        return problem_of(self.read, path)

    def problem_of_markers(self, path: Path) -> str | None:
        """As `problem`, by the begin and the end of the file; one without the usual markers is decoded after all."""
        try:
            return None if has_markers(path) else self.problem(path)
        except OSError as error:
            return f"{type(error).__name__}: {error}"


def decoder_for(first: Path, size: tuple[int, int] | None, channels: int) -> Decoder:
    """The decoder for a data set: what is not given (None, 0) is as in the first file that can be decoded."""
    import tensorflow as tf

    if size is not None and channels:
        return Decoder(size, channels)
    try:
        data = files.read_limited(first, MOST_BYTES)
        check_size(data, str(first))
        shape = tf.io.decode_image(data, expand_animations=False).shape
    except (OSError, tf.errors.InvalidArgumentError) as error:
        raise broken(str(first), error) from error
    # The second and the fourth channel are transparency.
    return Decoder(size or (int(shape[0]), int(shape[1])), channels or (1 if shape[2] in (1, 2) else 3))


def check_size(data: bytes, name: str) -> None:
    """Refuse an image of too many pixels by its header, before it is decoded: a few kB can hold 10^8 equal pixels.

    Args:
        data: the file's bytes.
        name: says where they come from.

    Raises:
        SpecError: the image has more pixels than any model takes.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(io.BytesIO(data)).size
    except Image.DecompressionBombError:
        pixels = "more pixels"
    except (OSError, SyntaxError, ValueError, struct.error, OverflowError):
        return  # no image: the decoder says so
    else:
        if width * height <= MOST_PIXELS:
            return
        pixels = f"{height} by {width} pixels"
    raise SpecError(
        f"{name} is too large",
        required=f"an image of at most {MOST_PIXELS:,} pixels",
        received=pixels,
        remedy="make it smaller, or remove the file",
    )


def broken(name: str, error: Exception) -> SpecError:
    """The refusal of a file that cannot be decoded."""
    text = str(error).splitlines()[0] if isinstance(error, OSError) and str(error) else "no content that can be decoded"
    return SpecError(
        f"{name} cannot be decoded",
        required=IMAGES.required,
        received=f"{type(error).__name__}: {text}",
        remedy="repair or remove the file",
    )


def with_channels(image: Bytes, channels: int) -> Bytes:
    """An image [H, W, any of 1 to 4] with 1 or 3 channels: transparency dropped, grey made of colours or repeated."""
    image = image[..., : 1 if image.shape[-1] in (1, 2) else 3]
    if image.shape[-1] == channels:
        return image
    if channels == 1:
        grey: Bytes = np.rint(image @ np.array(_GREY, np.float32)).astype(np.uint8)[..., np.newaxis]
        return grey
    return np.repeat(image, 3, axis=-1)


def resized(image: Bytes, size: tuple[int, int]) -> Bytes:
    """An image [H, W, 1 or 3] of another size (H, W) in pixels, bilinear and with antialias.

    Pillow computes it in integers, to within 1 of `tf.image.resize(..., antialias=True)`, in a sixth of its time for
    small images.
    """
    from PIL import Image

    height, width = size
    channels = image.shape[-1]
    source = Image.fromarray(image[..., 0] if channels == 1 else image)
    result: Bytes = np.asarray(source.resize((width, height), Image.Resampling.BILINEAR))
    return result.reshape(height, width, channels)


def has_markers(path: Path) -> bool:
    """Whether a file begins and ends as a PNG, JPEG or BMP file does, which a file that was cut off does not."""
    length = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(32)
        file.seek(max(0, length - _TAIL))
        end = file.read()
    if begin.startswith(_PNG):
        return begin[12:16] == b"IHDR" and b"IEND" in end
    if begin.startswith(_JPEG):
        return b"\xff\xd9" in end
    return begin.startswith(_BMP) and int.from_bytes(begin[2:6], "little") == length
