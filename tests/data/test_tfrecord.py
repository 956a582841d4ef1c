"""TFRecords: every kind of feature, reading by index, damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops.data.columns import Lazy, take
from tfmot_ops.data.sources.by_name import read_source
from tfmot_ops.data.sources.record_files import masked_crc
from tfmot_ops.data.sources.source import Source
from tfmot_ops.errors import SpecError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 6, 4, 3), dtype=np.uint8)
AGES = np.random.default_rng(1).random((10, 2)).astype(np.float32)
IMAGE = {"shape": [6, 4, 3], "dtype": "uint8", "encoding": "raw", "role": "input"}
LABEL = {"shape": [], "dtype": "int64", "role": "target"}


def example(index: int, image: bytes | None = None) -> bytes:
    def feature(**given: Any) -> tf.train.Feature:
        return tf.train.Feature(**given)

    features = {
        "image": feature(bytes_list=tf.train.BytesList(value=[image or IMAGES[index].tobytes()])),
        "label": feature(int64_list=tf.train.Int64List(value=[index % 3])),
        "ages": feature(float_list=tf.train.FloatList(value=AGES[index])),
        "word": feature(bytes_list=tf.train.BytesList(value=[f"w{index}".encode()])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path: Path, records: list[bytes]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def two_files(folder: Path, features: Any = None, **beside: Any) -> str:
    """Two files of five records, and the sidecar; the name of the data set."""
    (folder / "features.json").write_text(
        json.dumps({"features": features or {"image": IMAGE, "label": LABEL}, **beside})
    )
    for file in range(2):
        write(folder / f"part-{file}.tfrecord", [example(5 * file + index) for index in range(5)])
    return f"{folder}/part-?.tfrecord"


def read(name: str) -> Source:
    return read_source(f"tfrecord:{name}", 0)


def refused(name: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read(name)
    assert caught.value.required
    assert caught.value.remedy
    return caught.value


def test_records_are_read_by_index(tmp_path: Path):
    source = read(two_files(tmp_path, class_names=["a", "b", "c"]))
    assert isinstance(source.x, Lazy)
    assert (source.x.shape, source.x.dtype) == ((10, 6, 4, 3), np.uint8)
    assert (source.y.shape, source.y.dtype) == ((10,), np.int64)
    assert np.array_equal(source.x[:], IMAGES)
    assert np.array_equal(source.x[[9, 2, 5]], IMAGES[[9, 2, 5]])
    assert np.array_equal(take(take(source.x, slice(2, 9)), [0, 6])[:], IMAGES[[2, 8]])
    assert np.array_equal(source.y[:], np.arange(10) % 3)
    assert (source.class_names, source.task, source.x_test) == (("a", "b", "c"), None, None)
    assert source.record == {
        "files": 2,
        "records": [10, 0],
        "checked": "every record's checksum",
        "fingerprint_of": "names and contents",
    }
    assert len(source.fingerprint) == 64


def test_features_of_every_kind(tmp_path: Path):
    features = {
        "image": IMAGE | {"dtype": "int16", "shape": [36], "name": "pixels"},
        "ages": {"shape": [2, 1], "dtype": "float32", "role": "input"},
        "word": {"shape": [], "dtype": "string", "role": "input"},
        "label": LABEL | {"name": "class"},
    }
    source = read(two_files(tmp_path, features))
    assert list(source.x) == ["pixels", "ages", "word"]
    assert np.array_equal(source.x["pixels"][[3]][0], np.frombuffer(IMAGES[3].tobytes(), "<i2"))
    assert np.array_equal(source.x["ages"][:], AGES[..., np.newaxis])
    assert list(source.x["word"][[1, 0]]) == [b"w1", b"w0"]
    assert list(source.y) == ["class"]
    assert list(source.y["class"][:4]) == [0, 1, 2, 0]


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_images_are_decoded_and_resized_when_they_are_read(tmp_path: Path, encoding: str):
    encode = {"png": tf.io.encode_png, "jpeg": tf.io.encode_jpeg}[encoding]
    for size, expected in (IMAGE["shape"], IMAGES[1]), ([3, 2, 3], None):
        name = two_files(tmp_path, {"image": IMAGE | {"encoding": encoding, "shape": size}})
        write(tmp_path / "part-0.tfrecord", [example(0, encode(image).numpy()) for image in IMAGES[:2]])
        (tmp_path / "part-1.tfrecord").unlink()
        image = read(name).x[[1]][0]
        assert image.shape == tuple(size)
        if expected is not None and encoding == "png":
            assert np.array_equal(image, expected)


def test_without_targets_the_input_is_reconstructed(tmp_path: Path):
    source = read(two_files(tmp_path, {"image": IMAGE}))
    assert (source.y, source.task) == (None, "reconstruction")


def test_other_files_are_the_test_set(tmp_path: Path):
    name = two_files(tmp_path)
    sidecar = (tmp_path / "features.json").rename(tmp_path / "other.json")
    test = write(tmp_path / "test.tfrecord", [example(7)])
    source = read(f"{name}?features={sidecar}&test={tmp_path}/test*")
    assert np.array_equal(source.x_test[:], IMAGES[[7]])
    assert list(source.y_test[:]) == [1]
    assert source.record["records"] == [10, 1]
    both = f"{tmp_path}/*.tfrecord"
    assert refused(f"{both}?features={sidecar}&test={test}").required == f"files that {both} does not name, too"


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path):
    name = two_files(tmp_path)
    path = tmp_path / "part-1.tfrecord"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    error = refused(name)
    assert error.summary == f"record 4 of {path} cannot be read"
    length = len(example(9))
    assert error.received == f"{length - 6} bytes where {length + 4} should follow: cut off"
    path.write_bytes(whole + b"\0\0\0")
    error = refused(name)
    assert error.summary == f"record 5 of {path} cannot be read"
    assert error.received == f"no header of a record at byte {len(whole)}"
    path.write_bytes(b"\x1f\x8b" + whole)
    assert refused(name).received == "a file that is compressed with gzip"
    path.write_bytes(b"")
    assert len(read(name).x) == 5


def test_content_that_changed_is_found_by_its_checksum(tmp_path: Path):
    name = two_files(tmp_path)
    path = tmp_path / "part-1.tfrecord"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    error = refused(name)
    assert error.summary == f"record 4 of {path} cannot be read"
    assert error.received == "content that its checksum does not fit"


def test_a_record_that_breaks_later_is_named(tmp_path: Path):
    source = read(two_files(tmp_path))
    path = tmp_path / "part-1.tfrecord"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SpecError, match=f"record 4 of {path} cannot be read") as caught:
        source.x[:]
    assert caught.value.received.endswith("the file changed since it was indexed")


@pytest.mark.parametrize(
    ("features", "received"),
    [
        ({"picture": IMAGE}, "no feature picture; there are ages, image, label, word"),
        ({"image": IMAGE | {"shape": [6, 4, 1]}}, "72 values of image, where the shape [6, 4, 1] is asked for"),
        ({"image": IMAGE | {"dtype": "float64", "shape": [9]}}, None),
        (
            {"ages": {"shape": [2], "dtype": "int64", "role": "input"}},
            "the feature ages is a float_list, where dtype and encoding say int64_list",
        ),
        (
            {"image": IMAGE | {"dtype": "float64", "shape": [10]}},
            "9 values of image, where the shape [10] is asked for",
        ),
    ],
)
def test_records_that_are_not_as_described_are_named(tmp_path: Path, features: Any, received: str | None):
    source = read(two_files(tmp_path, features))
    if received is None:
        assert source.x[:].shape == (10, 9)
        return
    with pytest.raises(SpecError) as caught:
        source.x[[6]]
    assert caught.value.summary == f"record 1 of {tmp_path / 'part-1.tfrecord'} cannot be read"
    assert caught.value.received == received


def test_records_that_are_no_example_are_named(tmp_path: Path):
    name = two_files(tmp_path)
    path = write(tmp_path / "part-0.tfrecord", [b"no example"])
    with pytest.raises(SpecError, match=f"record 0 of {path} cannot be read"):
        read(name).x[[0]]


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"image": IMAGE | {"dtype": "uint9"}}, "features.image.dtype"),
        ({"image": IMAGE | {"kind": "raw"}}, "features.image.kind"),
        ({"image": IMAGE | {"shape": [0]}}, "a shape of sizes of at least 1"),
        ({"image": IMAGE | {"encoding": None}}, "without an encoding, the dtype float32, int64 or string"),
        ({"image": IMAGE | {"dtype": "string"}}, "numbers for the encoding raw"),
        ({"image": IMAGE | {"encoding": "png", "shape": [6, 4]}}, "shape [H, W, 1 or 3] and dtype uint8"),
        ({"label": LABEL}, "at least one feature of the role input"),
        ({"a": IMAGE | {"name": "x"}, "b": IMAGE | {"name": "x"}}, "different names"),
    ],
)
def test_a_description_that_is_wrong_is_refused(tmp_path: Path, features: Any, says: str):
    error = refused(two_files(tmp_path, features))
    assert error.summary.startswith(f"{tmp_path / 'features.json'}: field ")
    assert says in str(error)


def test_files_that_are_not_there_are_refused(tmp_path: Path):
    assert refused(f"{tmp_path}/*.tfrecord").summary == f"no file fits {tmp_path}/*.tfrecord"
    name = two_files(tmp_path)
    (tmp_path / "features.json").unlink()
    assert refused(name).summary == f"{tmp_path / 'features.json'} cannot be read"
    (tmp_path / "features.json").write_text("{")
    assert refused(name).summary == f"{tmp_path / 'features.json'}: field (whole)"
    write(tmp_path / "part-0.tfrecord", [])
    write(tmp_path / "part-1.tfrecord", [])
    (tmp_path / "features.json").write_text(json.dumps({"features": {"image": IMAGE}}))
    assert refused(name).received == "no record in any file"


def test_the_checksum_is_tensorflows(tmp_path: Path):
    content = write(tmp_path / "a", [b"123456789"]).read_bytes()
    assert content[-4:] == masked_crc(b"123456789").to_bytes(4, "little")
