"""Data sets: what each source gives, how it is split, and what is refused."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops.contract import BUILTIN_DATASETS
from tfmot_ops.data.sources.by_name import available_datasets
from tfmot_ops.data.splits import load_dataset
from tfmot_ops.errors import SpecError
from tfmot_ops.system.environment import FASHION_MNIST

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3


def rows(*arrays: np.ndarray) -> set[bytes]:
    return {row.tobytes() for array in arrays for row in array}


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_fashion_mnist(folder: Path) -> None:
    write_idx(folder / "train-images-idx3-ubyte.gz", IMAGES[:50, ..., 0])
    write_idx(folder / "train-labels-idx1-ubyte.gz", LABELS[:50].astype(np.uint8))
    write_idx(folder / "t10k-images-idx3-ubyte.gz", IMAGES[50:, ..., 0])
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", LABELS[50:].astype(np.uint8))


def write_images(folder: Path, suffix: str = "png") -> None:
    import tensorflow as tf

    encode = tf.io.encode_png if suffix == "png" else tf.io.encode_jpeg
    for index, image in enumerate(IMAGES[:20]):
        class_folder = folder / ("cat" if index % 2 else "dog")
        class_folder.mkdir(parents=True, exist_ok=True)
        (class_folder / f"{index:02}.{suffix}").write_bytes(encode(image).numpy())


def test_digits_are_images_in_0_to_1_with_ten_classes():
    data = load_dataset("digits")
    assert data.input_shape == (8, 8, 1)
    assert data.num_classes == 10
    assert data.class_names == tuple("0123456789")
    assert data.x_train.dtype == np.float32
    assert data.y_train.dtype == np.int64
    assert (data.x_train.min(), data.x_train.max()) == (0.0, 1.0)
    sizes = [len(x) for x in (data.x_train, data.x_validation, data.x_calibration, data.x_test)]
    assert sizes == [1152, 143, 143, 359]


def test_splits_are_disjoint_and_complete(tmp_path: Path):
    data = load_dataset(write_npz(tmp_path / "a.npz", x=IMAGES, y=LABELS))
    parts = [rows(x) for x in (data.x_train, data.x_validation, data.x_calibration, data.x_test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(IMAGES)


def test_labels_stay_with_their_images(tmp_path: Path):
    data = load_dataset(write_npz(tmp_path / "a.npz", x=IMAGES, y=LABELS), seed=5)
    expected = {(image / np.float32(255.0)).tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    for x, y in (data.x_train, data.y_train), (data.x_validation, data.y_validation), (data.x_test, data.y_test):
        assert [expected[image.tobytes()] for image in x] == list(y)


def test_the_seed_decides_the_splits(tmp_path: Path):
    name = write_npz(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    assert load_dataset(name, seed=1).digest == load_dataset(name, seed=1).digest
    assert load_dataset(name, seed=1).digest != load_dataset(name, seed=2).digest


def test_limit_caps_the_training_samples_only(tmp_path: Path):
    name = write_npz(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    whole, capped = load_dataset(name), load_dataset(name, limit=7)
    assert len(capped.x_train) == 7
    assert rows(capped.x_train) < rows(whole.x_train)
    assert np.array_equal(capped.x_test, whole.x_test)
    assert np.array_equal(capped.x_calibration, whole.x_calibration)


def test_an_official_test_set_is_kept(tmp_path: Path):
    arrays = {"x_train": IMAGES[:40], "y_train": LABELS[:40], "x_test": IMAGES[40:], "y_test": LABELS[40:]}
    data = load_dataset(write_npz(tmp_path / "a.npz", **arrays), seed=3)
    assert np.array_equal(data.x_test, IMAGES[40:] / np.float32(255.0))
    assert np.array_equal(data.y_test, LABELS[40:])


def test_a_left_out_channel_and_column_labels_are_understood(tmp_path: Path):
    data = load_dataset(write_npz(tmp_path / "a.npz", x=IMAGES[..., 0], y=LABELS[:, np.newaxis]))
    assert data.input_shape == (4, 4, 1)
    assert data.y_train.ndim == 1


@pytest.mark.parametrize(
    ("x", "dtype", "low", "high"),
    [
        (IMAGES, np.float32, 0.0, 1.0),
        (IMAGES.astype(np.float64) * 3.0 - 400.0, np.float32, -400.0, 365.0),
        (IMAGES[:, :, 0, 0], np.int32, 0, 255),
        (IMAGES.astype(np.int16) - 100, np.int32, -100, 155),
        (IMAGES[:, 0, 0, 0] > 99, np.float32, 0.0, 1.0),
    ],
    ids=["images of bytes", "floats of any range", "rows of bytes", "integers", "booleans"],
)
def test_only_images_of_bytes_are_scaled(tmp_path: Path, x: np.ndarray, dtype: Any, low: float, high: float):
    data = load_dataset(write_npz(tmp_path / "a.npz", x_train=x, y_train=LABELS, x_test=x, y_test=LABELS))
    assert data.x_test.dtype == data.x_train.dtype == dtype
    assert (data.x_test.min(), data.x_test.max()) == (low, high)
    assert data.input_shape == x.shape[1:]
    assert ("scaling" in data.record) == (dtype == np.float32 and high == 1.0 and x.dtype == np.uint8)


TARGETS = {
    "classification": (LABELS, np.int64, (), 3),
    "multilabel": (np.stack([LABELS == 0, LABELS < 2, LABELS > 0], axis=1), np.float32, (3,), 3),
    "regression": (LABELS / 3.0, np.float32, (1,), 1),
    "segmentation": (IMAGES[..., :1] // 64, np.int64, (4, 4), 4),
}


@pytest.mark.parametrize("task", TARGETS)
def test_the_task_follows_from_the_targets(tmp_path: Path, task: str):
    y, dtype, shape, outputs = TARGETS[task]
    data = load_dataset(write_npz(tmp_path / "a.npz", x=IMAGES, y=y))
    assert data.task.name == task
    assert (data.y_train.dtype, data.facts.target_shape, data.facts.outputs) == (dtype, shape, outputs)
    assert "targets are" in data.task_reason


def test_a_task_by_name_goes_before_the_one_that_follows(tmp_path: Path):
    name = write_npz(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    data = load_dataset(name, task="regression")
    assert (data.task.name, data.y_train.dtype, data.task_reason) == ("regression", np.float32, "it was asked for")
    with pytest.raises(SpecError, match=r"required: one of .*classification.*own.*reconstruction"):
        load_dataset(name, task="clustering")
    with pytest.raises(SpecError, match="a metric for the task own alone"):
        load_dataset(name, task="regression", metric="mae")


def test_reconstruction_learns_from_normal_samples_alone(tmp_path: Path):
    name = write_npz(tmp_path / "a.npz", x=IMAGES, y=LABELS % 2)
    data = load_dataset(name, task="reconstruction")
    normal = rows(IMAGES[LABELS % 2 == 0] / np.float32(255.0))
    assert rows(data.x_train) | rows(data.x_validation) | rows(data.x_calibration) < normal
    assert data.y_train is data.x_train
    assert data.y_test is None


def test_fashion_mnist_is_read_from_the_folder_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_fashion_mnist(tmp_path)
    monkeypatch.setenv(FASHION_MNIST.name, str(tmp_path))
    data = load_dataset("fashion_mnist")
    assert data.input_shape == (4, 4, 1)
    assert data.class_names[9] == "Ankle boot"
    assert data.num_classes == 10
    assert np.array_equal(data.x_test[..., 0], IMAGES[50:, ..., 0] / np.float32(255.0))


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_fashion_mnist_files_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
):
    write_fashion_mnist(tmp_path)
    victim = tmp_path / "train-images-idx3-ubyte.gz"
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(gzip.compress(gzip.decompress(victim.read_bytes())[:-1]))
    else:
        victim.write_bytes(gzip.compress(b""))
    monkeypatch.setenv(FASHION_MNIST.name, str(tmp_path))
    with pytest.raises(SpecError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        load_dataset("fashion_mnist")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_take_the_first_ones_size(tmp_path: Path, suffix: str):
    write_images(tmp_path, suffix)
    data = load_dataset(f"images:{tmp_path}")
    assert data.input_shape == (4, 4, 3)
    assert data.class_names == ("cat", "dog")
    if suffix == "png":
        assert rows(data.x_train) < rows(IMAGES / np.float32(255.0))


def test_images_are_resized_on_request(tmp_path: Path):
    write_images(tmp_path)
    data = load_dataset(f"images:{tmp_path}?size=8")
    assert data.input_shape == (8, 8, 3)
    assert 0.0 <= data.x_train.min() <= data.x_train.max() <= 1.0


def test_a_registered_data_set_is_found_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "squares_package-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: squares_package\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[tfmot_ops.datasets]\nsquares = squares_module:load\n")
    (tmp_path / "squares_module.py").write_text(
        "import numpy as np\n"
        "def load(seed):\n"
        "    rng = np.random.default_rng(seed)\n"
        "    return {'x': rng.random((20, 2, 2, 1)), 'y': np.arange(20) % 2}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_dataset("squares").input_shape == (2, 2, 1)
    assert available_datasets()["squares"] == "registered as squares_module:load"


def test_every_built_in_is_listed():
    assert set(BUILTIN_DATASETS) < set(available_datasets())


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(SpecError, match=r"required: one of .*digits.*fashion_mnist.*npz:<path>") as caught:
        load_dataset("mnits")
    assert "'mnits'" in caught.value.received


@dataclass(frozen=True)
class Refused:
    """Arrays that are no data set, and what the message must say."""

    id: str
    says: str
    arrays: dict[str, Any]


def spoilt(value: float) -> np.ndarray:
    images = IMAGES / 255.0
    images[7, 2, 1, 0] = value
    return images


REFUSED = [
    Refused("nan", "2880 values that are NaN", {"x": np.full(IMAGES.shape, np.nan), "y": LABELS}),
    Refused(
        "nan, once",
        "1 values that are NaN or infinite, the first at index [7, 2, 1, 0]",
        {"x": spoilt(np.nan), "y": LABELS},
    ),
    Refused("infinity", "the first at index [7, 2, 1, 0]", {"x": spoilt(np.inf), "y": LABELS}),
    Refused(
        "nan in the test set",
        "the test set of",
        {"x_train": IMAGES, "y_train": LABELS, "x_test": spoilt(np.nan), "y_test": LABELS},
    ),
    Refused("length", "shape [59]", {"x": IMAGES, "y": LABELS[1:]}),
    Refused("one_hot", "each row with a single 1", {"x": IMAGES, "y": np.eye(3)[LABELS]}),
    Refused("text", "targets are <U21", {"x": IMAGES, "y": LABELS.astype(str)}),
    Refused(
        "NaN in targets",
        "in 2 targets, the first at 2",
        {"x": IMAGES, "y": np.where(LABELS.cumsum() == 3, np.nan, 1.5)},
    ),
    Refused("from 1", "labels from 1 to 3, without 0", {"x": IMAGES, "y": LABELS + 1}),
    Refused(
        "gaps",
        "labels from 0 to 1000, without 1, 2, 3, 4, 6 and 993 more",
        {"x": IMAGES, "y": np.array([0, 5, 1000])[LABELS]},
    ),
    Refused("empty", "shape [60, 0, 4, 3]", {"x": IMAGES[:, :0], "y": LABELS}),
    Refused("negative", "a label of -1", {"x": IMAGES, "y": LABELS - 1}),
    Refused("one_class", "only label 0", {"x": IMAGES, "y": LABELS * 0}),
    Refused("few", "at least 10 samples", {"x": IMAGES[:9], "y": LABELS[:9]}),
    Refused("keys", "keys ['images', 'y']", {"images": IMAGES, "y": LABELS}),
    Refused("objects", "cannot be read", {"x": np.array([None, "a"]), "y": LABELS}),
    Refused(
        "test_shape",
        "(4, 4, 3) and (2, 2, 3)",
        {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, :2, :2], "y_test": LABELS},
    ),
    Refused(
        "test_label",
        "a label of 3",
        {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS + 1},
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_arrays_that_are_no_data_set_are_refused(tmp_path: Path, case: Refused):
    name = write_npz(tmp_path / "a.npz", **case.arrays)
    with pytest.raises(SpecError) as caught:
        load_dataset(name)
    assert case.says in str(caught.value)
    assert caught.value.required
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("npz:{}/none.npz", "cannot be read"),
        ("npz:{}/array.npy", "cannot be read"),
        ("npz:{}/text.npz", "cannot be read"),
        ("npz:", "there is no data set"),
        ("images:{}/none", "0 sub-folders"),
        ("images:{}/images", ", 1 of them without images"),
        ("images:{}/images?size=0", "?size=0"),
        ("images:{}/images?width=3", "?width=3"),
        ("images:{}/broken", "0.png cannot be decoded"),
    ],
)
def test_paths_that_hold_no_data_set_are_refused(tmp_path: Path, name: str, says: str):
    np.save(tmp_path / "array.npy", IMAGES)
    (tmp_path / "text.npz").write_text("no archive")
    write_images(tmp_path / "images")
    (tmp_path / "images" / "empty").mkdir()
    (tmp_path / "broken" / "cat").mkdir(parents=True)
    (tmp_path / "broken" / "cat" / "0.png").write_text("no image")
    with pytest.raises(SpecError) as caught:
        load_dataset(name.format(tmp_path))
    assert says in str(caught.value)


def test_the_smallest_data_set_fills_every_split(tmp_path: Path):
    data = load_dataset(write_npz(tmp_path / "a.npz", x=IMAGES[:10], y=LABELS[:10]))
    assert [len(x) for x in (data.x_train, data.x_validation, data.x_calibration, data.x_test)] == [6, 1, 1, 2]


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(SpecError, match="limit"):
        load_dataset("digits", limit=0)
