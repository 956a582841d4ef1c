"""Tables: features, targets, windows over time, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfmot_ops.data.columns import Lazy
from tfmot_ops.data.sources import csv_file
from tfmot_ops.data.sources.by_name import read_source
from tfmot_ops.data.sources.source import Source
from tfmot_ops.errors import SpecError

FLOWERS = "length,width,kind,count,age\n1,2.5,rose,3,1.5\n4,-5,tulip,0,2\n7,8e1,rose,1,3\n"


def table(path: Path, text: str = FLOWERS) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, options: str) -> Source:
    return read_source(f"csv:{path}?{options}", 0)


def refused(path: Path, options: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read(path, options)
    assert caught.value.required
    assert caught.value.remedy
    return caught.value


def test_columns_of_numbers_and_a_target_of_words(tmp_path: Path):
    source = read(table(tmp_path / "a.csv"), "target=kind")
    assert source.x.dtype == np.float32
    assert np.array_equal(source.x, np.array([[1, 2.5, 3, 1.5], [4, -5, 0, 2], [7, 80, 1, 3]], np.float32))
    assert (list(source.y), source.class_names, source.task) == ([0, 1, 0], ("rose", "tulip"), "classification")
    assert source.record == {
        "features": ["length", "width", "count", "age"],
        "targets": ["kind"],
        "rows": [3],
        "fingerprint_of": "names and contents",
    }
    assert len(source.fingerprint) == 64


def test_a_column_may_weight_the_samples(tmp_path: Path):
    source = read(table(tmp_path / "a.csv"), "target=kind&weight=age")
    assert list(source.weights) == [1.5, 2.0, 3.0]
    assert source.record["features"] == ["length", "width", "count"]
    windows = read(table(tmp_path / "a.csv"), "target=count&weight=age&window=2&step=1&features=length")
    assert list(windows.weights) == [2.0, 3.0]
    assert np.array_equal(windows.x, np.array([[[1], [4]], [[4], [7]]], np.float32))
    error = refused(table(tmp_path / "b.csv", FLOWERS.replace("1.5", "-1.5")), "target=kind&weight=age")
    assert "numbers of at least 0" in error.required


def test_features_and_the_order_of_classes_can_be_named(tmp_path: Path):
    source = read(table(tmp_path / "a.csv"), "target=kind&features=width,length&classes=tulip,rose,lily")
    assert np.array_equal(source.x, np.array([[2.5, 1], [-5, 4], [80, 7]], np.float32))
    assert (list(source.y), source.class_names) == ([1, 0, 1], ("tulip", "rose", "lily"))


@pytest.mark.parametrize(
    ("target", "y", "dtype", "task"),
    [
        ("count", [3, 0, 1], np.int64, None),
        ("age", [1.5, 2.0, 3.0], np.float32, "regression"),
        ("count,age", [[3, 1.5], [0, 2], [1, 3]], np.float32, "regression"),
        ("count,length", [[3, 1], [0, 4], [1, 7]], np.int64, None),
    ],
)
def test_targets_of_numbers(tmp_path: Path, target: str, y: list[float], dtype: type, task: str | None):
    source = read(table(tmp_path / "a.csv"), f"target={target}&features=width")
    assert (source.y.dtype, source.task, source.class_names) == (dtype, task, ())
    assert np.array_equal(source.y, np.array(y, dtype))


def test_words_that_look_like_missing_numbers_are_classes(tmp_path: Path):
    source = read(table(tmp_path / "a.csv", "a,b\n1,NA\n2,None\n3,NA\n"), "target=b")
    assert source.class_names == ("NA", "None")


def test_another_file_is_the_test_set(tmp_path: Path):
    test = table(tmp_path / "test.csv", "kind,width,length\ntulip,1,2\n")
    path = table(tmp_path / "a.csv")
    options = f"target=kind&features=length,width&test={test}"
    source = read(path, options)
    assert np.array_equal(source.x_test, np.array([[2, 1]], np.float32))
    assert list(source.y_test) == [1]
    table(test, "kind,width,length\nlily,1,2\n")
    error = refused(path, options)
    assert error.summary == f"{test}, column kind: the target of row 1 is not like those of the training set"
    assert (error.required, error.received) == ("one of rose, tulip", "'lily'")
    table(test, "kind,width\nrose,1\n")
    assert refused(path, options).summary == f"{test} has no column length"
    assert refused(path, f"target=kind&test={path}").required == "another file than the training set's"
    table(test, FLOWERS.replace("3,1.5", "3.5,1.5"))
    error = refused(path, f"target=count&features=length&test={test}")
    assert (error.required, error.received) == ("a whole number", "'3.5'")


def sensors(*groups: tuple[str, int]) -> str:
    rows = [f"{row},{-row},{group},{'run' if row % 2 else 'walk'}" for row, group in enumerate(
        group for group, count in groups for _ in range(count))]  # fmt: skip
    return "\n".join(["x,y,person,act", *rows]) + "\n"


def test_windows_over_time(tmp_path: Path):
    path = table(tmp_path / "a.csv", sensors(("a", 7)))
    source = read(path, "target=act&features=x,y&window=3")
    assert np.array_equal(source.x[..., 0], [[0, 1, 2], [3, 4, 5]])
    assert np.array_equal(source.x[..., 1], [[0, -1, -2], [-3, -4, -5]])
    assert source.x.dtype == np.float32
    assert list(source.y) == [1, 0]  # of rows 2 and 5: walk, run
    assert source.class_names == ("run", "walk")
    overlapping = read(path, "target=act&features=x&window=3&step=2")
    assert np.array_equal(overlapping.x[..., 0], [[0, 1, 2], [2, 3, 4], [4, 5, 6]])
    assert (source.record["overlap"], overlapping.record["overlap"]) == (False, True)


def test_windows_never_cross_a_group(tmp_path: Path):
    path = table(tmp_path / "a.csv", sensors(("b", 4), ("a", 5), ("c", 2), ("b", 2)))
    source = read(path, "target=act&features=x&window=3&step=3&group=person")
    # Person a has rows 4 to 8, b rows 0 to 3, 11 and 12, and c too few.
    assert np.array_equal(source.x[..., 0], [[4, 5, 6], [0, 1, 2], [3, 11, 12]])
    assert list(source.y) == [1, 1, 1]
    assert (source.record["group"], source.record["groups_shorter_than_window"]) == ("person", 1)
    error = refused(path, "target=act&features=x&window=8&group=person")
    assert (error.required, error.received) == (
        "window=8 rows one after the other, of one group",
        "13 rows, at most 6 of one group",
    )


def test_many_windows_are_cut_when_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = table(tmp_path / "a.csv", sensors(("a", 50)))
    at_once = read(path, "target=act&features=x,y&window=8&step=1")
    monkeypatch.setattr(csv_file, "_AT_ONCE_BYTES", 100)
    lazy = read(path, "target=act&features=x,y&window=8&step=1")
    assert isinstance(lazy.x, Lazy)
    assert lazy.x.shape == at_once.x.shape == (43, 8, 2)
    assert np.array_equal(lazy.x[:], at_once.x)


@pytest.mark.parametrize(
    ("options", "summary", "received"),
    [
        ("target=sort", "{} has no column sort", "length, width, kind, count, age"),
        ("target=age&features=length,depth", "{} has no column depth", "length, width, kind, count, age"),
        ("target=age", "{}: column kind is not a number in row 1", "'rose'"),
        ("features=age", "the option target of csv:<path>?target=<column> cannot be read", "?target="),
        (
            "target=age&features=age",
            "the option features of csv:<path>?target=<column> cannot be read",
            "?features=age",
        ),
        ("target=kind,age", "the option target of csv:<path>?target=<column> cannot be read", "?target=kind,age"),
        ("target=age&step=2", "the option step of csv:<path>?target=<column> cannot be read", "?step=2"),
        ("target=age&features=width&window=4", "{} has no window of 4 rows", "3 rows, at most 3 of one group"),
        ("target=kind&sep=;", "an option of csv:<path>?target=<column> cannot be read", "?sep=;"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(tmp_path: Path, options: str, summary: str, received: str):
    path = table(tmp_path / "a.csv")
    error = refused(path, options)
    assert (error.summary, error.received) == (summary.format(path), received)


@pytest.mark.parametrize(
    ("text", "summary", "received"),
    [
        (
            "a,b,t\n1,2,0\n3,,1\nnan,inf,0\n",
            "{} lacks numbers",
            "3 values that are missing, NaN or infinite, the first in row 2, column b",
        ),
        ("a,b,t\n1,2,0\n3,4x,1\n", "{}: column b is not a number in row 2", "'4x'"),
        ("a,b,t\n1,2,0\n3,4,\n", "{}, column t: 1 targets are missing", "no value in row 2"),
        ("a,b,t\n1,2,0.5\n3,4,x\n", "{}, column t: the target of row 2 is no number, and others are", "'x'"),
        ("a,b,t\n", "{} cannot be read", "no row below the names"),
        ("", "{} cannot be read", "an empty file"),
        ("a,b,t\n1,2,0\n1,2,3,4,5\n", "{} cannot be read", "5 values in row 2, for 3 columns"),
        ("a,a,t\n1,2,0\n", "{} cannot be read", "the columns a, a, t"),
    ],
)
def test_tables_that_cannot_be_trained_on_are_refused(tmp_path: Path, text: str, summary: str, received: str):
    path = table(tmp_path / "a.csv", text)
    error = refused(path, "target=t")
    assert (error.summary, error.received) == (summary.format(path), received)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    path = tmp_path / "none.csv"
    error = refused(path, "target=t")
    assert error.received == f"FileNotFoundError: [Errno 2] No such file or directory: '{path}'"
    path.write_bytes(b"gr\xf6\xdfe,t\n1,2\n")
    assert refused(path, "target=t").received.startswith("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xf6")
