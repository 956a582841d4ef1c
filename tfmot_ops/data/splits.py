"""Named data sets: from a name to training, validation, calibration and test sets.

The same checks, scaling and splits are applied to every source, so a user's data set is treated like the built-in
data sets. The splits are disjoint and depend on the seed only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_ops.data.sources.by_name import read_source
from tfmot_ops.errors import SpecError

#: Smallest number of samples of a data set, so that each of the four splits gets a sample.
_MIN_SAMPLES = 10
#: Largest number of calibration samples; more samples hardly change the measured ranges and only take time.
_MAX_CALIBRATION = 1024
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
        has_own_test_set: whether the source has a test set; if not, the test set was drawn from all samples, and a
            model that was trained on the source elsewhere may have seen its samples.
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
        raise SpecError("limit keeps no samples", required="limit >= 1", received=str(limit), remedy="raise limit")
    source = read_source(name, seed)
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
    # Scaled last, so that only the kept samples are converted to floats.
    arrays: dict[str, Any] = {"x_calibration": _scaled(calibration[0])}
    for part, (images, labels) in {"train": train, "validation": validation, "test": test}.items():
        arrays |= {f"x_{part}": _scaled(images), f"y_{part}": labels}
    given: dict[str, Any] = {"class_names": source.class_names, "has_own_test_set": source.x_test is not None}
    return Dataset(name=name, digest=_digest(arrays), **given, **arrays)


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
    """Check the training and test set together: enough samples and classes, same image shape, known test labels."""
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
