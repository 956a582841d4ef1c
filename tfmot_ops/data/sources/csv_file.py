"""A table in a CSV file: columns of numbers and a target, by row or in windows over time.

`csv:<path>?target=<column>[,<column>][&features=a,b][&window=128][&step=64][&group=<column>][&test=<path>]
[&classes=a,b][&weight=<column>]`

The first row names the columns. Features are all columns but targets, group and weight, unless `features` names them.
One target of words gives labels, in the order of the sorted words or of `classes`; whole numbers stay whole numbers;
other numbers are a regression. Several targets are numbers, [N, K]. `weight` is the factor of a sample's loss. Rows
count from 1, the first below the names.

With `window`, a sample is so many rows one after the other, with target and weight of the last; the next one begins
`step` rows later (default: `window`, so that none overlap). A window holds rows of one value of `group` only, such as
one person's; rows of a group stay in their order. Windows that overlap share rows, and so do the sets that are drawn
from them: give `test`, a file of the same columns, or leave `step` out.
"""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from tfmot_ops.data.columns import Array, Column, Lazy
from tfmot_ops.data.sources.fingerprint import fingerprint
from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.data.sources.targets import Targets, targets_of
from tfmot_ops.errors import SpecError
from tfmot_ops.system import files

FORM = "csv:<path>?target=<column>"
OPTIONS = ("target", "features", "window", "step", "group", "test", "classes", "weight")
#: What stands for a missing number; words are taken as they are.
_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "None")
#: Bytes of windows that are made at once; more of them are cut from the rows when they are read.
_AT_ONCE_BYTES = 256 * 1024 * 1024
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Plan:
    """Which columns are what, and how rows become samples."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    group: str | None
    window: int
    step: int
    weight: str | None = None


@dataclass
class _Table:
    """The columns of a file that are used: features [rows, F], targets and group as text, and weights [rows]."""

    path: Path
    features: Floats
    targets: list[list[str]]
    group: list[str]
    weights: Floats | None
    short_groups: int = field(default=0)

    def where(self, column: str) -> str:
        """The file and a column, for messages."""
        return f"{self.path}, column {column}"


def read_csv(text: str) -> Source:
    """Features float32 [N, F] or [N, window, F], and targets [N] or [N, K]."""
    query = Query(FORM, text, OPTIONS)
    path = Path(query.location)
    plan = _plan(query, path)
    table = _table(path, plan)
    kinds = [
        targets_of(values, query.names("classes"), table.where(name))
        for name, values in zip(plan.targets, table.targets, strict=True)
    ]
    _check_targets(query, plan, kinds)
    x, y, weights = _samples(table, plan, kinds)
    if weights is not None and weights.min() < 0.0:
        query.refuse("weight", "a column of numbers of at least 0")
    tables, given = [table], {}
    test = query.text("test")
    if test is not None:
        if Path(test).resolve() == path.resolve():
            query.refuse("test", "another file than the training set's")
        tables.append(_table(Path(test), replace(plan, weight=None)))
        given = dict(zip(("x_test", "y_test"), _samples(tables[1], plan, kinds), strict=False))
    digest, over = fingerprint([each.path for each in tables], path.parent, query.given())
    record = _record(plan, tables) | {"fingerprint_of": over}
    names, task = kinds[0].class_names, kinds[0].task
    if len(kinds) > 1:
        task = "regression" if y.dtype == np.float32 else None
    return Source(x, y, class_names=names, task=task, record=record, fingerprint=digest, weights=weights, **given)


def _plan(query: Query, path: Path) -> _Plan:
    columns = _columns(path)
    targets, group, weight = query.names("target"), query.text("group"), query.text("weight")
    if not targets:
        query.refuse("target", f"the name of a column: {', '.join(columns)}")
    taken = {*targets, group, weight}
    others = [name for name in columns if name not in taken]
    features = query.names("features") or tuple(others)
    window = query.integer("window", 0)
    plan = _Plan(features, targets, group, window, query.integer("step", window or 1), weight)
    _check_columns(path, columns, [*targets, *features, *(name for name in (group, weight) if name)])
    if set(features) & set(targets):
        query.refuse("features", "columns that are no targets")
    if not features:
        query.refuse("target", "a column beside those of the features")
    for key in ("step", "group"):
        if not window and key in query.given():
            query.refuse(key, "window= beside it")
    return plan


def _unreadable(path: Path, received: str) -> SpecError:
    return SpecError(
        f"{path} cannot be read",
        required="a CSV file in UTF-8 with commas, whose first row names the columns",
        received=received,
        remedy="check the path and the file",
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """The names of the columns of a file, and its rows."""
    try:
        with io.TextIOWrapper(files.open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            yield [name.strip() for name in next(rows, [])], rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error


def _columns(path: Path) -> list[str]:
    with _opened(path) as (columns, _):
        if len(set(columns)) != len(columns) or not columns:
            raise _unreadable(path, f"the columns {', '.join(columns)}" if columns else "an empty file")
        return columns


def _check_columns(path: Path, columns: Sequence[str], wanted: Sequence[str]) -> None:
    known = frozenset(columns)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise SpecError(
            f"{path} has no column {missing[0]}",
            required=f"the columns {', '.join(wanted)}",
            received=", ".join(columns),
            remedy="use names of the file's first row",
        )


def _table(path: Path, plan: _Plan) -> _Table:
    columns = _columns(path)
    text = [*plan.targets, *([plan.group] if plan.group else [])]
    numeric = (*plan.features, *([plan.weight] if plan.weight else []))
    _check_columns(path, columns, [*text, *numeric])
    places = {name: place for place, name in enumerate(columns)}
    number_places, text_places = ([places[name] for name in names] for names in (numeric, text))
    numbers = array("d")
    words: list[list[str]] = [[] for _ in text]
    with _opened(path) as (_, rows):
        for row, values in enumerate((each for each in rows if each), 1):
            if len(values) != len(columns):
                raise _unreadable(path, f"{len(values)} values in row {row}, for {len(columns)} columns")
            numbers.extend(_number(path, values[place], row, columns[place]) for place in number_places)
            for column, place in zip(words, text_places, strict=True):
                column.append(values[place].strip())
    if not numbers:
        raise _unreadable(path, "no row below the names")
    table = np.frombuffer(numbers, np.float64).reshape(-1, len(numeric)).astype(np.float32)
    _check_finite(path, table, numeric)
    features, weights = (table[:, :-1], table[:, -1]) if plan.weight else (table, None)
    return _Table(path, features, words[: len(plan.targets)], words[-1] if plan.group else [], weights)


def _number(path: Path, value: str, row: int, column: str) -> float:
    """The number of a feature; NaN where it is missing."""
    try:
        return float(value)
    except ValueError:
        if value.strip() in _MISSING:
            return math.nan
    raise SpecError(
        f"{path}: column {column} is not a number in row {row}",
        required="numbers in each column of features and in that of the weight",
        received=repr(value),
        remedy="leave the column out with features=<column>,<column>, or write numbers",
    )


def _check_finite(path: Path, features: Floats, names: Sequence[str]) -> None:
    wrong = ~np.isfinite(features)
    if wrong.any():
        row, column = (int(place) for place in np.unravel_index(np.argmax(wrong), wrong.shape))
        raise SpecError(
            f"{path} lacks numbers",
            required="a finite number in each row and feature",
            received=f"{int(wrong.sum())} values that are missing, NaN or infinite, the first in row {row + 1}, "
            f"column {names[column]}",
            remedy="fill them in, remove the rows, or leave the column out with features=<column>,<column>",
        )


def _check_targets(query: Query, plan: _Plan, kinds: Sequence[Targets]) -> None:
    words = [name for name, kind in zip(plan.targets, kinds, strict=True) if kind.class_names]
    if len(kinds) > 1 and words:
        query.refuse("target", f"one column, or several of numbers; {words[0]} holds words")


def _samples(table: _Table, plan: _Plan, kinds: Sequence[Targets]) -> tuple[Column, Array, Floats | None]:
    """The samples of a table, their targets and their weights."""
    read = [
        kind.read(values, table.where(name))
        for name, values, kind in zip(plan.targets, table.targets, kinds, strict=True)
    ]
    targets = read[0] if len(read) == 1 else np.stack(read, axis=1)
    targets = targets.astype(np.float32) if targets.dtype == np.float64 else targets
    if not plan.window:
        return table.features, targets, table.weights
    column, last = _windows(table, plan)
    return column, targets[last], None if table.weights is None else table.weights[last]


def _windows(table: _Table, plan: _Plan) -> tuple[Column, npt.NDArray[np.int64]]:
    """The windows, and the last row of each."""
    rows = len(table.features)
    group = np.unique(np.array(table.group or [""] * rows), return_inverse=True)[1]
    order = np.argsort(group, kind="stable")  # each group's rows together, in their order
    begins = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    lengths = np.diff(np.r_[begins, rows])
    table.short_groups = int((lengths < plan.window).sum())
    starts = np.concatenate(
        [np.arange(at, at + size - plan.window + 1, plan.step) for at, size in zip(begins, lengths, strict=True)]
    ).astype(np.int64)
    if not len(starts):
        raise SpecError(
            f"{table.path} has no window of {plan.window} rows",
            required=f"window={plan.window} rows one after the other, of one group",
            received=f"{rows} rows, at most {lengths.max()} of one group",
            remedy="take a shorter window",
        )
    features = table.features[order]

    def cut(start: np.int64) -> Floats:
        return features[start : start + plan.window]

    column = Lazy(list(starts), cut, (plan.window, len(plan.features)), np.float32)
    at_once = 4 * len(starts) * plan.window * len(plan.features) <= _AT_ONCE_BYTES
    last = order[starts + plan.window - 1]
    return np.stack([cut(start) for start in starts]) if at_once else column, last


def _record(plan: _Plan, tables: Sequence[_Table]) -> dict[str, JsonValue]:
    record: dict[str, JsonValue] = {
        "features": list(plan.features),
        "targets": list(plan.targets),
        "rows": [len(table.features) for table in tables],
    }
    if plan.window:
        record |= {"window": plan.window, "step": plan.step, "group": plan.group, "overlap": plan.step < plan.window}
        record["groups_shorter_than_window"] = sum(table.short_groups for table in tables)
    return record


READER = Reader(
    FORM,
    "columns of numbers and a target in a CSV file; &features=, &weight=, &test=; &window=, &step=, &group= over time",
    read_csv,
)
