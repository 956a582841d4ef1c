"""Columns: samples along the first axis, as an array or read from files only when a batch asks for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Index = npt.NDArray[np.integer[Any]]
Item = TypeVar("Item")

#: Threads that read samples, for all columns together; decoders of JPEG and WAV release Python's lock.
_THREADS = 4
#: Samples that are given to the threads at once: each waiting one takes about a kilobyte.
_TOGETHER = 1024
_of_thread = threading.local()


class Column(Protocol):
    """Samples [N, ...] that can be read by index; a NumPy array is one, and so is `Lazy`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...): the number of samples, then the shape of one."""

    @property
    def dtype(self) -> Any:
        """Type of the samples' values."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any:
        """The samples of a slice or of an array of indices, as an array [n, ...]."""


class Lazy(Generic[Item]):
    """A column whose samples are read when they are indexed.

    Args:
        items: what identifies each sample, such as a file's path; N of them.
        read: from an item to its sample, an array of `sample_shape`; called from several threads.
        sample_shape: shape of one sample.
        dtype: type of the samples' values.
    """

    def __init__(
        self, items: Sequence[Item], read: Callable[[Item], Array], sample_shape: tuple[int, ...], dtype: Any
    ) -> None:
        self.items = items
        self.read = read
        self.shape: tuple[int, ...] = (len(items), *sample_shape)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ndim(self) -> int:
        """Number of axes, the samples' included."""
        return len(self.shape)

    def __getitem__(self, index: slice | Sequence[int] | Index) -> Array:
        """The samples of a slice or of an array of indices, as an array [n, ...]."""
        chosen = self._items(index)
        result = np.empty((len(chosen), *self.shape[1:]), self.dtype)

        def fill(place: int) -> None:
            # Written by the thread that read it, so that no samples wait for a copy.
            result[place] = self.read(chosen[place])

        _do_each(fill, len(chosen))
        return result

    def take(self, index: slice | Sequence[int] | Index) -> Lazy[Item]:
        """The column of some of the samples, none of them read."""
        return Lazy(self._items(index), self.read, self.shape[1:], self.dtype)

    def then(self, function: Callable[[Array], Array], sample_shape: tuple[int, ...], dtype: Any) -> Lazy[Item]:
        """The column with `function` applied to each sample when it is read."""
        return Lazy(self.items, lambda item: function(self.read(item)), sample_shape, dtype)

    def _items(self, index: slice | Sequence[int] | Index) -> Sequence[Item]:
        if isinstance(index, slice):
            return self.items[index]
        return [self.items[int(place)] for place in index]


class Rows(Lazy[int]):
    """A column of an array in a file that is mapped into memory: a batch copies its own rows.

    Args:
        array: the mapped array [M, ...].
        index: the rows of the column, N of them; None for all.
    """

    def __init__(self, array: Array, index: Index | None = None) -> None:
        rows = np.arange(len(array)) if index is None else index
        super().__init__(rows, lambda row: array[row], array.shape[1:], array.dtype)  # type: ignore[arg-type] # rows are a sequence
        self._array = array

    def __getitem__(self, index: slice | Sequence[int] | Index) -> Array:
        """The samples of a slice or of an array of indices, as an array [n, ...]."""
        return np.array(self._array[np.asarray(self._items(index), np.int64)])

    def take(self, index: slice | Sequence[int] | Index) -> Rows:
        """The column of some of the samples, none of them read."""
        return Rows(self._array, np.asarray(self._items(index), np.int64))


def take(column: Any, index: Any) -> Any:
    """Some samples of a column, as a column: a lazy column stays unread."""
    return column.take(index) if isinstance(column, Lazy) else column[index]


def _do_each(work: Callable[[int], None], count: int) -> None:
    """Do some work for each place from 0 to `count`, in several threads; raises the error of the first place."""
    if getattr(_of_thread, "reads", False):
        # A column whose samples come from another column: a thread that waits for its own pool might wait forever.
        for place in range(count):
            work(place)
        return
    for start in range(0, count, _TOGETHER):
        for _ in _readers(os.getpid()).map(work, range(start, min(start + _TOGETHER, count))):
            pass


@cache
def _readers(process: int) -> ThreadPoolExecutor:
    """The threads of a process; one that was forked has none of its parent's.

    They are kept from batch to batch, as TensorFlow makes a context and the allocator a region of memory for each
    new thread.
    """
    del process

    def mark() -> None:
        _of_thread.reads = True

    return ThreadPoolExecutor(_THREADS, "read-samples", mark)
