"""PNG and JPEG files, one sub-folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.errors import SpecError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_images(location: str) -> Source:
    """Images float32 [N, H, W, C] in [0, 1] of `<folder>[?size=<pixels>]`; labels are sub-folders by name."""
    folder_name, _, query = location.partition("?")
    size = _image_size(query)
    folder = Path(folder_name)
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    files = [
        (path, label)
        for label, class_folder in enumerate(classes)
        for path in sorted(class_folder.iterdir())
        if path.suffix.lower() in _IMAGE_SUFFIXES
    ]
    empty = sorted({path.name for path in classes} - {path.parent.name for path, _ in files})
    if not files or empty:
        raise SpecError(
            f"{folder} does not contain one sub-folder per class",
            required="one sub-folder per class, each with PNG or JPEG files",
            received=f"{len(classes)} sub-folders, {len(empty)} of them without images",
            remedy="check the path and put each class's images into its own sub-folder",
        )
    images = _decoded([path for path, _ in files], size)
    return Source(images, np.array([label for _, label in files]), class_names=tuple(path.name for path in classes))


def _image_size(query: str) -> tuple[int, int] | None:
    if not query:
        return None
    key, _, value = query.partition("=")
    if key != "size" or not value.isdecimal() or int(value) == 0:
        raise SpecError(
            "the images' size cannot be read",
            required="images:<folder>?size=<pixels>, one number of at least 1 for height and width",
            received=f"?{query}",
            remedy="write it as images:<folder>?size=32, or leave it out to take the first image's size",
        )
    return int(value), int(value)


def _decoded(paths: list[Path], size: tuple[int, int] | None) -> npt.NDArray[np.float32]:
    """Decode and resize images to float32 [N, H, W, C] in [0, 1]; the first one sets C, and (H, W) without a size."""
    import tensorflow as tf

    channels = 0  # as in the file
    images = []
    for path in paths:
        try:
            image = tf.io.decode_image(path.read_bytes(), channels=channels, expand_animations=False)
        except (OSError, tf.errors.InvalidArgumentError) as error:
            raise SpecError(
                f"{path} cannot be decoded",
                required="a PNG or JPEG image",
                received=type(error).__name__,
                remedy="repair or remove the file",
            ) from error
        if not channels:
            channels = 1 if image.shape[-1] in (1, 2) else 3  # the second and the fourth channel are transparency
            image = image[..., :channels]
        size = size or (int(image.shape[0]), int(image.shape[1]))
        pixels = tf.cast(image, tf.float32)
        if tuple(image.shape[:2]) != size:
            pixels = tf.image.resize(pixels, size, antialias=True)
        images.append(np.clip(pixels.numpy() / 255.0, 0.0, 1.0))
    return np.stack(images).astype(np.float32)


READER = Reader(
    "images:<folder>",
    "PNG or JPEG files in one sub-folder per class; images:<folder>?size=32 resizes to 32x32",
    read_images,
)
