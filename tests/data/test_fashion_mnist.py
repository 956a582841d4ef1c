"""Built-in data sets: digits, and Fashion-MNIST with one class as normal."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tfmot_ops.data.sources.by_name import read_source
from tfmot_ops.errors import SpecError
from tfmot_ops.system.environment import FASHION_MNIST

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
LABELS = (np.arange(60) % 3).astype(np.uint8)
CLASSES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
ONLY_NORMAL = "normal, each at most once, as ?name=value&name=value"


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, array in (
        ("train-images-idx3", IMAGES[:50]),
        ("train-labels-idx1", LABELS[:50]),
        ("t10k-images-idx3", IMAGES[50:]),
        ("t10k-labels-idx1", LABELS[50:]),
    ):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    monkeypatch.setenv(FASHION_MNIST.name, str(tmp_path))


def test_digits_are_floats_with_a_channel():
    source = read_source("digits", 0)
    assert (source.x.shape, source.x.dtype) == ((1797, 8, 8, 1), np.float32)
    assert (source.x.min(), source.x.max()) == (0.0, 1.0)
    assert (source.class_names, len(source.y)) == (tuple("0123456789"), 1797)


@pytest.mark.usefixtures("_files")
def test_images_are_bytes_with_a_test_set():
    source = read_source("fashion_mnist", 0)
    assert np.array_equal(source.x, IMAGES[:50])
    assert (source.x.dtype, source.task, source.record) == (np.uint8, None, {})
    assert np.array_equal(source.y_test, LABELS[50:])


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize("normal", ["1", "Trouser"])
def test_one_class_is_normal_and_the_others_are_not(normal: str):
    source = read_source(f"fashion_mnist?normal={normal}", 0)
    assert np.array_equal(source.x, IMAGES[:50][LABELS[:50] == 1])
    assert (source.y, source.task, source.class_names) == (None, "reconstruction", ())
    assert np.array_equal(source.x_test, IMAGES[50:])
    assert np.array_equal(source.y_test, (LABELS[50:] != 1).astype(int))
    assert source.record == {"normal": "Trouser"}


@pytest.mark.usefixtures("_files")
def test_a_class_without_images_is_refused():
    with pytest.raises(SpecError) as caught:
        read_source("fashion_mnist?normal=9", 0)
    assert caught.value.received == "?normal=9"
    assert caught.value.required == "a class of which there are training images"


@pytest.mark.parametrize(
    ("name", "summary", "required"),
    [
        (
            "fashion_mnist?normal=10",
            "the option normal of fashion_mnist cannot be read",
            f"a label from 0 to 9, or one of {CLASSES}",
        ),
        (
            "fashion_mnist?class=1",
            "an option of fashion_mnist cannot be read",
            ONLY_NORMAL,
        ),
        ("digits?size=3", "an option of digits cannot be read", "no option"),
        ("digits?", "an option of digits cannot be read", "no option"),
        ("fashion_mnist?normal", "an option of fashion_mnist cannot be read", ONLY_NORMAL),
        ("digits:", "there is no data set named 'digits:'", None),
        ("fashion_mnist:normal=1", "there is no data set named 'fashion_mnist:normal=1'", None),
        ("npz?x=1", "there is no data set named 'npz?x=1'", None),
        ("audio:", "there is no data set named 'audio:'", None),
    ],
)
def test_names_and_options_that_do_not_exist_are_refused(name: str, summary: str, required: str | None):
    with pytest.raises(SpecError) as caught:
        read_source(name, 0)
    assert caught.value.summary == summary
    if required is None:
        assert caught.value.required.startswith("one of ")
        assert "audio:<folder>, csv:<path>?target=<column>, images:<folder>, npz:<path>" in caught.value.required
    else:
        assert caught.value.required == required
