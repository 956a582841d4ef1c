"""Arrays and data sets by name, as .npz files and registered data sets give them.

Names are `x`, `y` for one set of samples that is split here; `x_train`, `y_train`, `x_test`, `y_test` for samples with
a test set; without `y` or `y_train` the input is its own target (reconstruction), and `y_test` says of each test sample
whether it is normal (0) or an anomaly (1). A model's several inputs or outputs have their names after a dot:
`x_train.image`, `x_train.age`, `y_train.box`. `class_names` is an array of texts, by label.
`sample_weight` is the factor of the loss of each sample of `x` or `x_train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from tfmot_ops.data.columns import Column, Lazy
from tfmot_ops.data.sources.source import Samples, Source
from tfmot_ops.data.sources.streams import from_streams, is_stream
from tfmot_ops.errors import SpecError

#: Sets of names that make a source; the dot and what follows left out.
_SETS = (
    {"x_train", "y_train", "x_test", "y_test"},
    {"x", "y"},
    {"x_train", "x_test", "y_test"},
    {"x_train", "x_test"},
    {"x"},
)
_REQUIRED = (
    "the keys x_train, y_train, x_test, y_test, or the keys x, y; without y_train or y for reconstruction; "
    "with a dot and a name for several inputs or outputs, as x.image; class_names and sample_weight beside them"
)


def from_mapping(name: str, given: object) -> Source:
    """A source from what a registered data set gives.

    Args:
        name: the data set's name, for messages.
        given: a `Source`; arrays, or columns of `Lazy`, by name, see this module; a `tf.data.Dataset` with one element
            (x, y) or x per sample; or such data sets by the names `train` and `test`.

    Raises:
        SpecError: it is none of these, or the names fit none of the sets.
    """
    if isinstance(given, Source):
        return given
    if is_stream(given):
        return from_streams(name, {"train": given})
    if not isinstance(given, Mapping):
        _refuse(name, type(given).__name__)
    values = dict(given)
    weights = values.pop("sample_weight", None)
    class_names = tuple(str(each) for each in np.atleast_1d(values.pop("class_names", ())))
    if values and all(map(is_stream, values.values())):
        if weights is not None:
            _refuse(name, "sample_weight beside data sets of TensorFlow")
        return from_streams(name, values, class_names)
    parts = {str(key).partition(".")[0] for key in values}
    if parts not in _SETS:
        _refuse(name, f"keys {sorted(map(str, given))}")
    train = "_train" if "x_train" in parts else ""
    x, y, x_test, y_test = (_samples(name, values, part) for part in (f"x{train}", f"y{train}", "x_test", "y_test"))
    if x is None:
        _refuse(name, f"keys {sorted(map(str, given))}")
    return Source(x, y, x_test, y_test, class_names, task="reconstruction" if y is None else None, weights=weights)


def _samples(name: str, values: Mapping[str, Any], part: str) -> Samples | None:
    """The array of a part, or its arrays by name; None if it is not there."""
    named = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{part}.")}
    if named and (part in values or "" in named):
        _refuse(name, f"keys {sorted(values)}: {part} beside {part}.<name>, or no name after the dot")
    if named:
        return {key: _column(name, f"{part}.{key}", value) for key, value in named.items()}
    return None if values.get(part) is None else _column(name, part, values[part])


def _column(name: str, key: str, value: Any) -> Column:
    """A column as it is, or made of what NumPy takes for an array, such as a list or a tensor."""
    if isinstance(value, np.ndarray | Lazy):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:
        _refuse(name, f"{key} of type {type(value).__name__}, which is no array: {error}")


def _refuse(name: str, received: str) -> NoReturn:
    raise SpecError(
        f"data set {name} lacks arrays",
        required=_REQUIRED,
        received=received,
        remedy="name the arrays as required",
    )
