"""Named data sets: from a name to training, validation, calibration and test sets.

Every source gives images and labels; the same checks, scaling and splits follow, so a data set of a user is
treated as the built-in ones. The splits are disjoint and depend on the seed alone.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_ops.errors import SpecError, StepFailedError

ENTRY_POINT_GROUP = "tfmot_ops.datasets"
FASHION_MNIST_VARIABLE = "TFMOT_OPS_FASHION_MNIST"

#: Where the Debian package `dataset-fashion-mnist` puts its files.
_FASHION_MNIST_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_MNIST_REMEDY = (
    f"install dataset-fashion-mnist (Debian), or point {FASHION_MNIST_VARIABLE} at the files' folder"
)
_FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_DESCRIPTIONS = {
    "digits": "1797 handwritten digits, 8x8x1, 10 classes (scikit-learn)",
    "fashion_mnist": "70000 articles of clothing, 28x28x1, 10 classes",
}
_PATH_DESCRIPTIONS = {
    "npz:<path>": "arrays x_train, y_train, x_test, y_test, or x, y, in one .npz file",
    "images:<folder>": "PNG or JPEG files in one sub-folder per class; images:<folder>?size=32 resizes to 32x32",
}

#: Samples a data set needs at least, so that each of the four splits gets one.
_MIN_SAMPLES = 10
#: Calibration reads ranges; more than this changes them no more and only costs time.
_MAX_CALIBRATION = 1024
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int64]
#: Images as the source has them, [N, H, W, C], and their labels [N].
_Pair = tuple[npt.NDArray[Any], LabelArray]


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, split. Images are float32 [N, H, W, C] in [0, 1], labels int64 [N] in [0, num_classes).

    Attributes:
        name: the name it was loaded by.
        x_train: images to train on; `y_train` their labels.
        x_validation: images to watch the training with; `y_validation` their labels.
        x_test: images for the final figures, the official test set where one exists; `y_test` their labels.
        x_calibration: images to read activation ranges from; in none of the other sets.
        digest: sha256 (hex) of all arrays, shapes included.
        class_names: name of each class, by label; empty when the source has none.
        has_own_test_set: whether the source gave the test set; otherwise it was drawn from all samples, and a model
            that was trained on the source before may have seen them.
    """

    name: str
    x_train: FloatArray = field(repr=False)
    y_train: LabelArray = field(repr=False)
    x_validation: FloatArray = field(repr=False)
    y_validation: LabelArray = field(repr=False)
    x_test: FloatArray = field(repr=False)
    y_test: LabelArray = field(repr=False)
    x_calibration: FloatArray = field(repr=False)
    digest: str
    class_names: tuple[str, ...] = ()
    has_own_test_set: bool = False

    @property
    def num_classes(self) -> int:
        """How many classes the labels count."""
        return int(max(self.y_train.max(), self.y_validation.max(), self.y_test.max(), len(self.class_names) - 1)) + 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image."""
        height, width, channels = self.x_train.shape[1:]
        return int(height), int(width), int(channels)


@dataclass(frozen=True, eq=False)
class _Source:
    """Images and labels as a source gave them; without a test set, `x_test` and `y_test` are None."""

    x: Any
    y: Any
    x_test: Any = None
    y_test: Any = None
    class_names: tuple[str, ...] = ()


def load_dataset(name: str, seed: int = 0, limit: int | None = None) -> Dataset:
    """Load a data set by name and split it.

    A source without a test set gives 20 % of its samples to it. Of what remains, 10 % are for validation, 10 %
    (at most 1024) for calibration, and the rest for training. The calibration set is thus never trained on.

    Args:
        name: a built-in (`digits`, `fashion_mnist`), `npz:<path>`, `images:<folder>[?size=<pixels>]`, or a name
            registered under the entry-point group `tfmot_ops.datasets`. Images are [N, H, W, C] or [N, H, W],
            uint8 or floats in [0, 1]; labels are integers [N] or [N, 1], from 0.
        seed: decides which sample goes to which split, and what a registered data set draws.
        limit: keep at most so many training samples; the other splits stay whole.

    Raises:
        SpecError: the name is unknown, a file is missing, or the arrays are no labelled images.
        StepFailedError: a download failed.
    """
    if limit is not None and limit < 1:
        raise SpecError("limit keeps nothing", required="limit >= 1", received=str(limit), remedy="raise it")
    source = _read(name, seed)
    pool = _checked(name, "training", source.x, source.y)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pool[1]))
    if source.x_test is None:
        size = len(order) // 5
        test, order = _take(pool, order[:size]), order[size:]
    else:
        test = _checked(name, "test", source.x_test, source.y_test)
    _check_together(name, pool, test)
    tenth = max(1, len(order) // 10)
    calibration_end = tenth + min(tenth, _MAX_CALIBRATION)
    validation = _take(pool, order[:tenth])
    calibration = _take(pool, order[tenth:calibration_end])
    train = _take(pool, order[calibration_end:][:limit])
    # Scaled last: only what is kept is turned into floats.
    arrays: dict[str, Any] = {"x_calibration": _scaled(calibration[0])}
    for part, (images, labels) in {"train": train, "validation": validation, "test": test}.items():
        arrays |= {f"x_{part}": _scaled(images), f"y_{part}": labels}
    given: dict[str, Any] = {"class_names": source.class_names, "has_own_test_set": source.x_test is not None}
    return Dataset(name=name, digest=_digest(arrays), **given, **arrays)


def available_datasets() -> dict[str, str]:
    """Name -> one line on it: built-ins, forms that take a path, and registered data sets."""
    registered = {entry.name: f"registered as {entry.value}" for entry in entry_points(group=ENTRY_POINT_GROUP)}
    # A built-in is found first, so a registered name cannot hide it.
    return {**registered, **_DESCRIPTIONS, **_PATH_DESCRIPTIONS}


def _read(name: str, seed: int) -> _Source:
    readers: dict[str, Callable[[], _Source]] = {"digits": _read_digits, "fashion_mnist": _read_fashion_mnist}
    if name in readers:
        return readers[name]()
    kind, _, rest = name.partition(":")
    if kind == "npz" and rest:
        return _read_npz(Path(rest))
    if kind == "images" and rest:
        return _read_images(rest)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _from_mapping(name, entry.load()(seed))
    raise SpecError(
        f"there is no data set named {name!r}",
        required="one of " + ", ".join(available_datasets()),
        received=repr(name),
        remedy=f"use a name from the list, or register one under the entry-point group {ENTRY_POINT_GROUP}",
    )


def _read_digits() -> _Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # The images are counts of 0 to 16 dark pixels in 4x4 blocks.
    images = (bunch.images / 16.0).astype(np.float32)
    return _Source(images, bunch.target, class_names=tuple("0123456789"))


def _read_fashion_mnist() -> _Source:
    folder = os.environ.get(FASHION_MNIST_VARIABLE)
    if folder:
        return _read_idx_folder(Path(folder))
    if _FASHION_MNIST_DEBIAN.is_dir():
        return _read_idx_folder(_FASHION_MNIST_DEBIAN)
    from tfmot_ops.core.legacy_keras import keras

    try:
        (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # keras.utils.get_file raises a bare Exception when the download fails
        raise StepFailedError(
            "the download of fashion_mnist failed",
            required="the network, or the four IDX files on this machine",
            received=f"{type(error).__name__}: {error}",
            remedy=_FASHION_MNIST_REMEDY,
        ) from error
    return _Source(x, y, x_test, y_test, _FASHION_MNIST_CLASSES)


def _read_idx_folder(folder: Path) -> _Source:
    """Read the four files of the MNIST family, as distributed: gzip, big-endian IDX, uint8."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    x, y, x_test, y_test = (_read_idx(folder / f"{name}-ubyte.gz", int(name[-1])) for name in names)
    return _Source(x, y, x_test, y_test, _FASHION_MNIST_CLASSES)


def _read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes())
        # Two zero bytes, type code 8 for uint8, the rank, then as many sizes as uint32.
        shape = np.frombuffer(content, ">u4", content[3], 4)
        data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
        return data.reshape(shape[:rank])
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise SpecError(
            f"{path} cannot be read",
            required=f"a gzip file of uint8 IDX data of rank {rank}",
            received=f"{type(error).__name__}: {error}",
            remedy=_FASHION_MNIST_REMEDY,
        ) from error


def _read_npz(path: Path) -> _Source:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    # A .npy file gives a bare array, which is no context manager: TypeError (AttributeError before Python 3.12).
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise SpecError(
            f"{path} cannot be read",
            required="a .npz file with arrays of numbers, written by numpy.savez",
            received=f"{type(error).__name__}: {error}",
            remedy="check the path, and save numeric arrays (not objects)",
        ) from error
    return _from_mapping(f"npz:{path}", arrays)


def _from_mapping(name: str, arrays: object) -> _Source:
    if isinstance(arrays, Mapping):
        if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
            return _Source(arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"])
        if {"x", "y"} <= arrays.keys():
            return _Source(arrays["x"], arrays["y"])
    raise SpecError(
        f"data set {name} lacks arrays",
        required="the keys x_train, y_train, x_test, y_test, or the keys x, y",
        received=f"keys {sorted(map(str, arrays))}" if isinstance(arrays, Mapping) else type(arrays).__name__,
        remedy="name the arrays as required",
    )


def _read_images(location: str) -> _Source:
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
    return _Source(images, np.array([label for _, label in files]), class_names=tuple(path.name for path in classes))


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


def _checked(name: str, part: str, x: Any, y: Any) -> _Pair:
    """Images as given, [N, H, W, C], and labels int64 [N], or a SpecError that says what is wrong."""
    images, labels = np.asarray(x), np.asarray(y)
    if images.ndim == 3:  # noqa: PLR2004 - [N, H, W]: one channel that was left out
        images = images[..., np.newaxis]
    if labels.ndim == 2 and labels.shape[1] == 1:  # noqa: PLR2004 - [N, 1], as CIFAR's
        labels = labels[:, 0]
    problem = _image_problem(images) or _label_problem(images, labels)
    if problem:
        required, received = problem
        raise SpecError(
            f"the {part} set of {name} holds no labelled images",
            required=required,
            received=received,
            remedy="correct the arrays before they are saved or returned",
        )
    return images, labels.astype(np.int64)


def _image_problem(images: npt.NDArray[Any]) -> tuple[str, str] | None:
    if images.ndim != 4 or 0 in images.shape:  # noqa: PLR2004 - [N, H, W, C]
        return "images [N, H, W, C] or [N, H, W], none of the sizes 0", f"shape {list(images.shape)}"
    if images.dtype == np.uint8:
        return None
    if not np.issubdtype(images.dtype, np.floating):
        return "images of uint8, or of floats in [0, 1]", f"dtype {images.dtype}"
    wrong = ~np.isfinite(images)
    if wrong.any():
        first = [int(place) for place in np.unravel_index(np.argmax(wrong), wrong.shape)]
        return "finite images", f"{int(wrong.sum())} values that are NaN or infinite, the first at index {first}"
    if images.min() < 0.0 or images.max() > 1.0:
        return "floats in [0, 1], or uint8", f"{images.dtype} from {images.min():g} to {images.max():g}"
    return None


def _label_problem(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[str, str] | None:
    if labels.shape != (len(images),):
        return f"labels [N] with N = {len(images)}, one per image", f"shape {list(labels.shape)}"
    if not np.issubdtype(labels.dtype, np.integer):
        return "integer labels (no one-hot vectors, no text)", f"dtype {labels.dtype}"
    if labels.min() < 0:
        return "labels from 0", f"a label of {labels.min()}"
    return None


def _check_together(name: str, pool: _Pair, test: _Pair) -> None:
    """Check what neither part shows alone: enough samples and classes, and that the parts fit each other."""
    problem = None
    if len(pool[1]) < _MIN_SAMPLES:
        problem = f"at least {_MIN_SAMPLES} samples beside the test set", f"{len(pool[1])}"
    elif len(np.unique(pool[1])) < 2:  # noqa: PLR2004 - one class is nothing to tell apart
        problem = "at least 2 classes", f"only label {pool[1][0]}"
    elif pool[0].shape[1:] != test[0].shape[1:]:
        problem = "training and test images of one shape", f"{pool[0].shape[1:]} and {test[0].shape[1:]}"
    elif test[1].max() > pool[1].max():
        problem = f"test labels up to {pool[1].max()}, the training set's largest", f"a label of {test[1].max()}"
    if problem:
        raise SpecError(
            f"data set {name} cannot be trained on",
            required=problem[0],
            received=problem[1],
            remedy="add what is missing to the data set",
        )


def _take(pool: _Pair, index: npt.NDArray[np.int64]) -> _Pair:
    return pool[0][index], pool[1][index]


def _scaled(images: npt.NDArray[Any]) -> FloatArray:
    scale = np.float32(255.0 if images.dtype == np.uint8 else 1.0)
    return images.astype(np.float32) / scale


def _digest(arrays: dict[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key}{arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()
