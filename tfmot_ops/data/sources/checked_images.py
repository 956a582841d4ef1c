"""Images that have been looked at: how they are decoded, which are broken, and what is recorded of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from tfmot_ops.data.columns import Lazy
from tfmot_ops.data.sources.fingerprint import fingerprint
from tfmot_ops.data.sources.folders import without_broken
from tfmot_ops.data.sources.pictures import IMAGES, Decoder, decoder_for
from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Source
from tfmot_ops.errors import SpecError

#: Images up to which each is decoded before the training: some seconds for photos.
CHECKED_FILES = 2000


@dataclass(frozen=True)
class Checked:
    """Images that have been looked at.

    Attributes:
        query: the source's options.
        decoder: decodes the images.
        broken: the files that are left out.
        record: what the source's record says of the images.
    """

    query: Query
    decoder: Decoder
    broken: set[Path]
    record: dict[str, JsonValue] = field(default_factory=dict)

    def column(self, paths: list[Path]) -> Lazy[Path]:
        """The images [N, H, W, C] of files."""
        return Lazy(paths, self.decoder.read, (*self.decoder.size, self.decoder.channels), np.uint8)

    def source(self, files: list[Path], **given: Any) -> Source:
        """The source; `files` are all that it reads, and `given` its other fields."""
        digest, over = fingerprint(files, Path(self.query.location), self.query.given())
        return Source(record={**self.record, "fingerprint_of": over}, fingerprint=digest, **given)


@dataclass(frozen=True)
class ImageOptions:
    """Options of all images.

    Attributes:
        size: (H, W) in pixels; None for that of the first image.
        channels: 1 or 3; 0 for those of the first image.
        skip: share of broken files in [0, 1] that may be left out.
    """

    size: tuple[int, int] | None
    channels: int
    skip: float

    @classmethod
    def of(cls, query: Query) -> ImageOptions:
        """The options of a query."""
        channels = query.choice("channels", ("1", "3"), "3") if "channels" in query.given() else "0"
        return cls(query.size("size"), int(channels), query.number("skip", 0.0, most=1.0))


def check_images(query: Query, paths: list[Path]) -> Checked:
    """Look at the files before anything is trained.

    Raises:
        SpecError: more files are broken than the option `skip` allows.
    """
    options = ImageOptions.of(query)
    skip = options.skip
    decoder = _decoder(paths[: int(skip * len(paths)) + 1], options.size, options.channels)
    whole = len(paths) <= CHECKED_FILES
    broken, skipped = without_broken(paths, decoder.problem if whole else decoder.problem_of_markers, IMAGES, skip)
    record: dict[str, JsonValue] = {
        "size": list(decoder.size),
        "channels": decoder.channels,
        "checked": "every image was decoded" if whole else "begin and end of each image",
    }
    return Checked(query, decoder, broken, record | skipped)


def _decoder(paths: list[Path], size: tuple[int, int] | None, channels: int) -> Decoder:
    """The decoder that the first file decides, or the next one if that is broken and may be skipped."""
    for path in paths[:-1]:
        try:
            return decoder_for(path, size, channels)
        except SpecError:
            continue
    return decoder_for(paths[-1], size, channels)
