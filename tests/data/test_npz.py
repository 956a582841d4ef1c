"""Arrays and data sets of TensorFlow by name: what becomes columns, what is mapped, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops.data.columns import Lazy
from tfmot_ops.data.sources.by_name import read_source
from tfmot_ops.data.sources.mapping import from_mapping
from tfmot_ops.data.sources.source import Source
from tfmot_ops.errors import SpecError

RNG = np.random.default_rng(0)
X, Y = RNG.random((12, 5), np.float32), np.arange(12) % 3
REQUIRED = (
    "the keys x_train, y_train, x_test, y_test, or the keys x, y; without y_train or y for reconstruction; "
    "with a dot and a name for several inputs or outputs, as x.image; class_names and sample_weight beside them"
)


def read(path: Path, **arrays: Any) -> Source:
    np.savez(path / "a.npz", **arrays)
    return read_source(f"npz:{path / 'a.npz'}", 0)


def refused(name: str, given: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        from_mapping(name, given)
    assert caught.value.required
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    "x",
    [
        X,
        np.asfortranarray(X),
        X.astype(">f4"),
        RNG.integers(-9, 9, (12, 2, 3, 4, 2), dtype=np.int16),
        RNG.random(12) > 0.5,
        RNG.random((12, 3), np.float32).astype(np.float16),
        np.array(["a", "bc"] * 6),
    ],
    ids=["floats", "columns first", "big-endian", "rank 5", "booleans", "half", "texts"],
)
def test_arrays_of_any_shape_and_type_are_mapped_into_memory(tmp_path: Path, x: np.ndarray):
    source = read(tmp_path, x=x, y=Y)
    assert isinstance(source.x, np.memmap)
    assert (source.x.shape, source.x.dtype) == (x.shape, x.dtype)
    assert np.array_equal(source.x, x)
    assert np.array_equal(source.x[[7, 2]], x[[7, 2]])
    assert not source.x.flags.writeable
    assert (source.x_test, source.class_names, source.task, source.fingerprint) == (None, (), None, None)


def test_a_mapped_array_goes_into_tensors(tmp_path: Path):
    np.savez(tmp_path / "a.npz", odd_length=np.zeros(3, np.uint8), x=X)  # x begins at an odd place of the file
    assert np.array_equal(tf.constant(np.asarray(read(tmp_path, x=X).x)), X)


def test_compressed_arrays_and_those_without_bytes_are_read(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y)
    source = read_source(f"npz:{tmp_path / 'a.npz'}", 0)
    assert not isinstance(source.x, np.memmap)
    assert np.array_equal(source.x, X)
    assert read(tmp_path, x=X[:0]).x.shape == (0, 5)


def test_a_test_set_and_class_names_come_along(tmp_path: Path):
    names = np.array(["cat", "dog", "wolf"])
    source = read(tmp_path, x_train=X[:8], y_train=Y[:8], x_test=X[8:], y_test=Y[8:], class_names=names)
    assert np.array_equal(source.x_test, X[8:])
    assert np.array_equal(source.y_test, Y[8:])
    assert source.class_names == ("cat", "dog", "wolf")


@pytest.mark.parametrize(
    ("arrays", "y_test"),
    [
        ({"x": X}, None),
        ({"x_train": X, "x_test": X[:3]}, None),
        ({"x_train": X, "x_test": X[:3], "y_test": Y[:3]}, Y[:3]),
    ],
)
def test_without_targets_the_input_is_reconstructed(tmp_path: Path, arrays: dict[str, np.ndarray], y_test: Any):
    source = read(tmp_path, **arrays)
    assert (source.y, source.task) == (None, "reconstruction")
    assert (source.x_test is None) == ("x" in arrays)
    assert np.array_equal(source.y_test, y_test) if y_test is not None else source.y_test is None


def test_inputs_and_outputs_have_names_after_a_dot(tmp_path: Path):
    arrays = {"x_train.image": X, "x_train.age": Y, "y_train.box": X[:, :4], "y_train.class": Y}
    arrays |= {key.replace("train", "test"): value[:3] for key, value in arrays.items()}
    source = read(tmp_path, **arrays)
    assert list(source.x) == ["image", "age"]
    assert list(source.y) == ["box", "class"]
    assert np.array_equal(source.x["age"], Y)
    assert np.array_equal(source.y_test["box"], X[:3, :4])
    one = read(tmp_path, **{"x.image": X, "y": Y})
    assert list(one.x) == ["image"]
    assert np.array_equal(one.y, Y)


@pytest.mark.parametrize(
    ("keys", "received"),
    [
        (("images", "y"), "keys ['images', 'y']"),
        (("x_train", "y_train"), "keys ['x_train', 'y_train']"),
        (("x_train", "y_trian", "x_test", "y_test"), "keys ['x_test', 'x_train', 'y_test', 'y_trian']"),
        (("x", "y", "z"), "keys ['x', 'y', 'z']"),
        (("y",), "keys ['y']"),
        (("class_names",), "keys ['class_names']"),
        (("x", "x.image", "y"), "keys ['x', 'x.image', 'y']: x beside x.<name>, or no name after the dot"),
    ],
)
def test_wrong_keys_are_listed_with_those_required(tmp_path: Path, keys: tuple[str, ...], received: str):
    with pytest.raises(SpecError) as caught:
        read(tmp_path, **dict.fromkeys(keys, Y))
    assert caught.value.summary == f"data set npz:{tmp_path / 'a.npz'} lacks arrays"
    assert (caught.value.required, caught.value.received) == (REQUIRED, received)
    assert caught.value.remedy == "name the arrays as required"


def test_files_that_are_no_archive_are_refused(tmp_path: Path):
    path = tmp_path / "a.npz"

    def received() -> str:
        with pytest.raises(SpecError) as caught:
            read_source(f"npz:{path}", 0)
        assert caught.value.summary == f"{path} cannot be read"
        return caught.value.received

    assert received() == f"FileNotFoundError: [Errno 2] No such file or directory: '{path}'"
    path.write_text("text")
    assert received() == "BadZipFile: File is not a zip file"
    np.savez(path, x=np.array([None, "a"]), y=Y)
    assert received() == "ValueError: Object arrays cannot be loaded when allow_pickle=False"
    np.savez(path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[:-50])
    assert received() == "BadZipFile: File is not a zip file"
    with pytest.raises(SpecError, match="an option of npz:<path> cannot be read"):
        read_source(f"npz:{path}?mmap=1", 0)


def test_a_source_is_taken_as_it_is():
    source = Source(X, Y)
    assert from_mapping("mine", source) is source
    assert refused("mine", [X, Y]).received == "list"


def test_what_becomes_an_array_is_taken_and_lazy_columns_stay_unread():
    lazy = Lazy(range(12), lambda place: X[place], (5,), np.float32)
    source = from_mapping("mine", {"x.a": X.tolist(), "x.b": tf.constant(X), "x.c": lazy, "y": list(Y)})
    assert np.array_equal(source.x["a"], X.astype(float))
    assert np.array_equal(source.x["b"], X)
    assert source.x["c"] is lazy
    assert np.array_equal(source.y, Y)
    received = refused("mine", {"x": [[1, 2], [3]], "y": [0, 1]}).received
    assert received.startswith("x of type list, which is no array: setting an array element with a sequence")
    assert from_mapping("mine", {"x": X, "class_names": "a"}).class_names == ("a",)


def elements(count: int, start: int = 0) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X[start : start + count], Y[start : start + count]))


def test_a_data_set_of_tensorflow_is_read_by_index():
    source = from_mapping("mine", elements(12).filter(lambda _, y: y > 0))  # of unknown length
    assert isinstance(source.x, np.memmap)
    assert (source.x.dtype, source.y.dtype) == (np.float32, np.int64)
    assert np.array_equal(source.x, X[Y > 0])
    assert np.array_equal(source.y[[1, 0]], [2, 1])
    assert source.record == {"elements": 8}
    again = from_mapping("other", elements(3))
    assert np.array_equal(again.x, X[:3])
    assert np.array_equal(source.x, X[Y > 0])


def test_data_sets_by_split_and_class_names():
    source = from_mapping("mine", {"train": elements(8), "test": elements(4, 8), "class_names": ["a", "b", "c"]})
    assert np.array_equal(source.x_test, X[8:])
    assert np.array_equal(source.y_test, Y[8:])
    assert (source.record, source.class_names) == ({"elements": 8, "test_elements": 4}, ("a", "b", "c"))
    assert refused("mine", {"train": elements(3), "val": elements(3)}).received == "keys ['train', 'val']"


def test_elements_of_any_structure_become_columns_by_name():
    texts = np.array(["a", "bc", "d"])
    given = tf.data.Dataset.from_tensor_slices(
        ({"image": X[:3], "meta": {"age": Y[:3], "word": texts}}, (X[:3, 0], Y[:3] > 0))
    )
    source = from_mapping("mine", given)
    assert list(source.x) == ["image", "meta.age", "meta.word"]
    assert list(source.y) == ["0", "1"]
    assert np.array_equal(source.x["meta.age"], Y[:3])
    assert list(source.x["meta.word"]) == [b"a", b"bc", b"d"]
    assert np.array_equal(source.y["1"], Y[:3] > 0)
    alone = from_mapping("mine", tf.data.Dataset.from_tensor_slices(X))
    assert (alone.y, alone.task) == (None, "reconstruction")
    assert np.array_equal(alone.x, X)


def test_data_sets_that_cannot_become_columns_are_refused():
    def ragged():
        yield np.zeros((2, 3), np.float32), 0
        yield np.zeros((2, 4), np.float32), 0

    signature = (tf.TensorSpec((2, None), tf.float32), tf.TensorSpec((), tf.int64))
    error = refused("mine", tf.data.Dataset.from_generator(ragged, output_signature=signature))
    assert error.summary == "the data set mine (train) has elements of different shapes"
    assert error.required == "the shapes of the first element: x float32 [2, 3], y int64 []"
    assert error.received == "x float32 [2, 4], y int64 [] in element 2"
    assert refused("mine", elements(0)).summary == "the data set mine (train) holds no element"
    assert refused("mine", elements(3).repeat()).summary == "the data set mine (train) has no end"
    ragged_rows = tf.data.Dataset.from_tensors(({"a": tf.ragged.constant([[1], [2, 3]])}, 0))
    assert refused("mine", ragged_rows).received == "RaggedTensorSpec"
    sparse = tf.data.Dataset.from_tensors(tf.sparse.from_dense([[0, 1]]))
    assert refused("mine", sparse).received == "SparseTensorSpec"
    three = tf.data.Dataset.from_tensor_slices((X, Y, Y))
    assert refused("mine", three).received == "tuples of 3"
    infinite = elements(3).map(lambda x, y: (tf.debugging.check_numerics(x / 0.0, "a division"), y))
    error = refused("mine", infinite)
    assert error.summary == "the data set mine (train) cannot be read to its end"
    assert error.received.startswith("InvalidArgumentError after 0 elements: ")


@pytest.mark.slow
def test_the_temporary_folder_is_removed_when_the_process_ends(tmp_path: Path):
    program = (
        "import numpy as np, tensorflow as tf\n"
        "from tfmot_ops.data.sources.mapping import from_mapping\n"
        "x = from_mapping('a', tf.data.Dataset.from_tensor_slices(np.zeros((9, 2)))).x\n"
        "print(x.filename, x.shape)\n"
    )
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.startswith(f"{tmp_path}/tfmot-ops-scratch-")
    assert done.stdout.endswith(" (9, 2)\n")
    assert list(tmp_path.iterdir()) == []
