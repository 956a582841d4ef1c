"""Data sets of TensorFlow, read once into files: then they have a length, and samples by index."""

from __future__ import annotations

import atexit
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import JsonValue

from tfmot_ops.data.columns import Array, Column
from tfmot_ops.data.sources.source import Samples, Source
from tfmot_ops.errors import SpecError
from tfmot_ops.system.scratch import ScratchFolder

#: The values of one element by name; the name is empty where there is one alone.
_Values = dict[str, Array]


def is_stream(value: object) -> bool:
    """Whether something is a `tf.data.Dataset`."""
    tensorflow = sys.modules.get("tensorflow")  # who has not imported it has no data set of it
    return tensorflow is not None and isinstance(value, tensorflow.data.Dataset)


def from_streams(name: str, streams: Mapping[str, Any], class_names: tuple[str, ...] = ()) -> Source:
    """A source from data sets of TensorFlow.

    An element is one sample, not a batch: `(x, y)`, or `x` for reconstruction. `x` and `y` are a tensor, or a dict or
    a tuple of them, also nested: `{"a": {"b": tensor}}` has the name `a.b`, and a tuple the names `0`, `1`. Each data
    set is read once, to its end, into a temporary folder that is removed when the process ends.

    Args:
        name: the data set's name, for messages.
        streams: `train`, and `test` where there is a test set.
        class_names: name of each class, by label.

    Raises:
        SpecError: elements differ in shape or structure, the data set is infinite, or reading it failed.
    """
    if set(streams) not in ({"train"}, {"train", "test"}):
        raise SpecError(
            f"data set {name} lacks a training set",
            required="the keys train and test, or train alone, for data sets of TensorFlow",
            received=f"keys {sorted(map(str, streams))}",
            remedy="name the data sets as required",
        )
    x, y, count = _spooled(f"{name} (train)", streams["train"])
    given: dict[str, Any] = {}
    record: dict[str, JsonValue] = {"elements": count}
    if "test" in streams:
        given["x_test"], given["y_test"], record["test_elements"] = _spooled(f"{name} (test)", streams["test"])
    task = "reconstruction" if y is None else None
    return Source(x, y, class_names=class_names, task=task, record=record, **given)


def _spooled(name: str, stream: Any) -> tuple[Samples, Samples | None, int]:
    """The inputs, the targets and the number of the elements of a data set."""
    spool = _Spool(name)
    try:
        for element in _elements(name, stream):
            spool.add(element)
    finally:
        spool.close()
    if spool.count == 0:
        raise _refusal(name, "holds no element", "at least one element", "none")
    return spool.samples("x"), spool.samples("y") if spool.has("y") else None, spool.count


def _elements(name: str, stream: Any) -> Iterator[dict[str, _Values]]:
    """The elements, each as `x` and `y` -> values by name."""
    import tensorflow as tf

    if stream.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise _refusal(name, "has no end", "a data set with an end, as it is read once", "one that repeats for ever")
    others = [spec for spec in tf.nest.flatten(stream.element_spec) if not isinstance(spec, tf.TensorSpec)]
    if others:
        raise _refusal(name, "holds no dense tensors alone", "dense tensors", type(others[0]).__name__)
    read = 0
    try:
        for element in stream.as_numpy_iterator():
            yield _parts(name, element)
            read += 1
    except tf.errors.OpError as error:
        text = f"{type(error).__name__} after {read} elements: {str(error).splitlines()[0] if str(error) else ''}"
        raise _refusal(name, "cannot be read to its end", "a data set that can be read", text) from error


def _parts(name: str, element: Any) -> dict[str, _Values]:
    if not isinstance(element, tuple):
        return {"x": dict(_leaves(element))}
    if len(element) != 2:  # noqa: PLR2004 - x and y
        raise _refusal(name, "has elements of another kind", "elements (x, y), or x alone", f"tuples of {len(element)}")
    return {"x": dict(_leaves(element[0])), "y": dict(_leaves(element[1]))}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Array]]:
    """The tensors within a structure, with the names on the way to each, dots between them."""
    if isinstance(value, Mapping | tuple):
        members = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, member in members:
            yield from _leaves(member, f"{name}.{key}" if name else str(key))
    elif isinstance(value, bytes):
        yield name, np.array(value, object)  # else it would become an array of as many characters as it has
    else:
        yield name, np.asarray(value)


class _Spool:
    """Files that hold the elements' values, one file per input and target; texts are kept in memory.

    Args:
        name: the data set's name, for messages.

    Attributes:
        count: number of elements.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder = Path(tempfile.mkdtemp(dir=_folder().path))
        self._first: dict[tuple[str, str], Array] = {}
        self._files: dict[tuple[str, str], BinaryIO] = {}
        self._texts: dict[tuple[str, str], list[Any]] = {}
        self.count = 0

    def has(self, part: str) -> bool:
        """Whether the elements have a part, `x` or `y`."""
        return any(key[0] == part for key in self._first)

    def add(self, element: dict[str, _Values]) -> None:
        """Write an element; the first one sets shapes and types."""
        values = {(part, name): value for part, named in element.items() for name, value in named.items()}
        if not self.count:
            self._open(values)
        here, first = _shapes(values), _shapes(self._first)
        if here != first:
            raise _refusal(
                self._name,
                "has elements of different shapes",
                f"the shapes of the first element: {first}",
                f"{here} in element {self.count + 1}",
            )
        for key, value in values.items():
            if key in self._texts:
                self._texts[key].append(value)
            else:
                self._files[key].write(np.ascontiguousarray(value).tobytes())
        self.count += 1

    def _open(self, values: Mapping[tuple[str, str], Array]) -> None:
        self._first = dict(values)
        for key, value in values.items():
            if value.dtype.hasobject:
                self._texts[key] = []
            else:
                self._files[key] = (self._folder / str(len(self._files))).open("wb")

    def close(self) -> None:
        """End the writing."""
        for file in self._files.values():
            file.close()

    def samples(self, part: str) -> Samples:
        """The columns of a part."""
        columns = {key[1]: self._column(key) for key in self._first if key[0] == part}
        return columns[""] if set(columns) == {""} else columns

    def _column(self, key: tuple[str, str]) -> Column:
        shape, dtype = (self.count, *self._first[key].shape), self._first[key].dtype
        if key in self._texts:
            texts = np.empty(shape, dtype)
            for place, value in enumerate(self._texts[key]):
                texts[place] = value
            return texts
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(self._files[key].name, dtype, "r", shape=shape)


def _shapes(values: Mapping[tuple[str, str], Array]) -> str:
    """Shape and type of each value, by name, as a text."""
    return ", ".join(
        f"{'.'.join(filter(None, key))} {value.dtype} {list(value.shape)}" for key, value in sorted(values.items())
    )


@cache
def _folder() -> ScratchFolder:
    """The temporary folder of this process's data sets."""
    folder = ScratchFolder()
    atexit.register(folder.cleanup)
    return folder


def _refusal(name: str, fault: str, required: str, received: str) -> SpecError:
    return SpecError(
        f"the data set {name} {fault}",
        required=required,
        received=received,
        remedy="correct the function that is registered for the data set, or map the elements with tf.data",
    )
