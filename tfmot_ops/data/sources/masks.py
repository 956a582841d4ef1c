"""Masks: image files in which a pixel's value is its class."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from tfmot_ops.data.columns import Lazy
from tfmot_ops.data.sources.checked_images import CHECKED_FILES, check_images
from tfmot_ops.data.sources.folders import Kind, without_broken
from tfmot_ops.data.sources.pictures import IMAGES, MOST_BYTES, check_size, has_markers, problem_of
from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Source
from tfmot_ops.errors import SpecError
from tfmot_ops.system import files

MASKS = Kind("masks", (".png", ".bmp"), "a PNG or BMP file of one channel or a palette, whose values are the classes")
#: Modes of Pillow with one number per pixel.
_MODES = frozenset({"1", "L", "P", "I;16", "I"})


@dataclass(frozen=True)
class MaskDecoder:
    """Decodes masks to int64 [H, W], the class of each pixel.

    Attributes:
        size: (H, W) in pixels; masks of another size are resized by the nearest pixel.
        values: the pixel value of each class, by class; empty where a pixel's value is its class.
        classes: number of classes, 0 for any.
    """

    size: tuple[int, int]
    values: tuple[int, ...] = ()
    classes: int = 0

    def read(self, path: Path) -> npt.NDArray[np.int64]:
        """The mask [H, W] of a file. Of a palette only the index counts, as Pascal VOC's masks have it.

        Raises:
            SpecError: the file is broken, has several channels, or a value that is no class.
        """
        from PIL import Image

        height, width = self.size
        try:
            data = files.read_limited(path, MOST_BYTES)
            check_size(data, str(path))
            with Image.open(io.BytesIO(data)) as image:
                mode = image.mode
                pixels = np.asarray(image.resize((width, height), Image.Resampling.NEAREST)).astype(np.int64)
        except (OSError, SyntaxError, ValueError) as error:
            raise _refusal(path, f"{type(error).__name__}: no content that can be decoded") from error
        if mode not in _MODES:
            raise _refusal(path, f"an image of mode {mode}")
        return self._classes_of(pixels, path)

    def problem(self, path: Path) -> str | None:
        """What is wrong with a mask; None if nothing is."""
        return problem_of(self.read, path)

    def _classes_of(self, pixels: npt.NDArray[np.int64], path: Path) -> npt.NDArray[np.int64]:
        values = self.values or range(self.classes)
        if not values:
            return pixels
        result = np.full(pixels.shape, -1, np.int64)
        for label, value in enumerate(values):
            result[pixels == value] = label
        if result.min() < 0:
            raise _refusal(path, f"a pixel of {pixels[result < 0][0]}, where the classes are {list(values)}")
        return result


def _refusal(path: Path, received: str) -> SpecError:
    return SpecError(
        f"{path} cannot be read as a mask",
        required=MASKS.required,
        received=received,
        remedy="save one channel with one value per class, or list the values in the order of classes: values=0,255",
    )


def _problem_of_markers(path: Path) -> str | None:
    return None if has_markers(path) else "a file that was cut off, or is no image"


def read_with_masks(query: Query, folder: Path, mask_folder: Path) -> Source:
    """Images uint8 [N, H, W, C] and their masks int64 [N, H, W]."""
    pairs = _pairs(folder, mask_folder)
    checked = check_images(query, [image for image, _ in pairs])
    pairs = [(image, mask) for image, mask in pairs if image not in checked.broken]
    masks = [mask for _, mask in pairs]
    decoder = MaskDecoder(checked.decoder.size, _values(query), len(query.names("classes")))
    broken, skipped = _broken(query, decoder, masks)
    pairs = [(image, mask) for image, mask in pairs if mask not in broken]
    images, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
    names = query.names("classes") or tuple(map(str, decoder.values)) or _names_of_values(decoder, masks)
    checked.record.update({f"masks_{key}": value for key, value in skipped.items()})
    return checked.source(
        [*images, *masks],
        x=checked.column(images),
        y=Lazy(masks, decoder.read, decoder.size, np.int64),
        class_names=names,
        task="segmentation",
    )


def _pairs(folder: Path, mask_folder: Path) -> list[tuple[Path, Path]]:
    images = IMAGES.within(folder) if folder.is_dir() else []
    masks = {path.stem: path for path in (MASKS.within(mask_folder) if mask_folder.is_dir() else [])}
    alone = [path.name for path in images if path.stem not in masks]
    if alone or not images:
        raise SpecError(
            f"{mask_folder} does not have a mask for each image in {folder}",
            required="images in the folder itself, and in the masks' folder a PNG or BMP file of each one's name",
            received=f"{len(images)} images, {len(alone)} of them without a mask" + (f": {alone[0]}" if alone else ""),
            remedy="check both paths and the files' names",
        )
    return [(path, masks[path.stem]) for path in images]


def _values(query: Query) -> tuple[int, ...]:
    """The pixel values of the classes, from the option `values`."""
    words = query.names("values")
    classes = len(query.names("classes"))
    if not all(word.isdecimal() for word in words) or (words and classes and len(words) != classes):
        query.refuse("values", "the pixel value of each class, such as 0,255, one for each name in classes=")
    return tuple(map(int, words))


def _broken(query: Query, decoder: MaskDecoder, masks: list[Path]) -> tuple[set[Path], dict[str, JsonValue]]:
    whole = len(masks) <= CHECKED_FILES
    if not whole and not decoder.classes and not decoder.values:
        raise SpecError(
            f"the classes of {len(masks)} masks are not named",
            required=f"the classes' names for more than {CHECKED_FILES} masks, as not all of them are read beforehand",
            received="neither classes= nor values=",
            remedy="add &classes=background,<name>,<name> in the order of the values from 0",
        )
    return without_broken(masks, decoder.problem if whole else _problem_of_markers, MASKS, query.number("skip", 0.0, 1))


def _names_of_values(decoder: MaskDecoder, masks: list[Path]) -> tuple[str, ...]:
    """The numbers of the classes as names, from 0 to the largest in any mask."""
    found: set[int] = set()
    for mask in masks:
        found |= set(np.unique(decoder.read(mask)).tolist())
    if max(found) >= len(found) + len(found):
        raise SpecError(
            f"the values of the masks in {masks[0].parent} leave gaps",
            required="classes from 0 on, one after the other",
            received=f"the values {', '.join(map(str, sorted(found)))}",
            remedy="list the values in the order of classes, such as &values=0,255, or name them with &classes=",
        )
    return tuple(str(label) for label in range(max(found) + 1))
