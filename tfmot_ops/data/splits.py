"""Named data sets: from a name to training, validation, calibration and test sets.

The same checks, scaling and splits are applied to every source, so a user's data set is treated like the built-in
data sets. The splits are disjoint and depend on the seed only. Samples that are read from files stay unread until a
batch asks for them, unless all of a split fits into little memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from tfmot_ops.data.checks import (
    check_inputs,
    check_same_shapes,
    check_sizes,
    check_targets,
    check_together,
    check_weights,
)
from tfmot_ops.data.columns import Lazy, Rows, take
from tfmot_ops.data.sources.by_name import read_source
from tfmot_ops.data.sources.source import Samples, Source
from tfmot_ops.errors import SpecError
from tfmot_ops.tasks.by_name import inferred, task_named
from tfmot_ops.tasks.task import Facts, Shape, Task

#: Largest number of calibration samples; more samples hardly change the measured ranges and only take time.
_MAX_CALIBRATION = 1024
#: A column of a split that takes at most so many bytes as float32 is read once and kept in memory.
_IN_MEMORY_BYTES = 256 * 2**20
#: Largest value of an unsigned byte, which becomes 1.0 in images.
_WHITE = np.float32(255.0)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, split. Each set of inputs or targets is one column [N, ...], or a dict of columns by name.

    Images of unsigned bytes are scaled to float32 in [0, 1]; other floats become float32 and other integers int32, with
    their values unchanged.

    Attributes:
        name: the name it was loaded by.
        task: what the targets mean.
        task_reason: why this task was chosen, as part of a sentence.
        facts: shapes, number of outputs and names of classes.
        x_train: inputs to train on; `y_train` their targets, which are the inputs themselves for reconstruction.
        x_validation: inputs to watch the training with; `y_validation` their targets.
        x_test: inputs for the final figures, the official test set where one exists; `y_test` their targets, None
            where nothing is known of them (reconstruction).
        x_calibration: inputs to read activation ranges from; in none of the other sets.
        weights_train: factor of the loss of each training sample, float32 [N]; None is 1 for each.
        digest: sha256 (hex) of all arrays, shapes included; for files that are not read as a whole, of the source's
            fingerprint and the splits.
        has_own_test_set: whether the source has a test set; if not, the test set was drawn from all samples, and a
            model that was trained on the source elsewhere may have seen its samples.
        record: what the source did to the samples, and the scaling.
    """

    name: str
    task: Task
    task_reason: str
    facts: Facts
    x_train: Any = field(repr=False)
    y_train: Any = field(repr=False)
    x_validation: Any = field(repr=False)
    y_validation: Any = field(repr=False)
    x_test: Any = field(repr=False)
    y_test: Any = field(repr=False)
    x_calibration: Any = field(repr=False)
    digest: str
    weights_train: Any = field(default=None, repr=False)
    has_own_test_set: bool = False
    record: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, by label; empty when the source has none."""
        return self.facts.class_names

    @property
    def num_classes(self) -> int:
        """How many classes, labels or values the targets have."""
        return self.facts.outputs or 0

    @property
    def input_shape(self) -> Shape:
        """Shape of one sample, (H, W, C) for images; by name for several inputs."""
        return self.facts.input_shape

    @property
    def train_samples(self) -> int:
        """Number of samples to train on."""
        return length(self.x_train)

    @property
    def calibration_samples(self) -> int:
        """Number of samples to read activation ranges from."""
        return length(self.x_calibration)

    def schema(self) -> dict[str, str]:
        """Type and shape of inputs and targets, as `float32 [N, 8, 8, 1]`."""
        return _described("x", self.x_train) | ({} if self.task.learns_its_input else _described("y", self.y_train))


def load_dataset(
    name: str, seed: int = 0, limit: int | None = None, task: str | None = None, metric: str | None = None
) -> Dataset:
    """Load a data set by name and split it.

    A source without a test set gives 20 % of its samples to it. Of what remains, 10 % are for validation, 10 %
    (at most 1024) for calibration, and the rest for training. The calibration set is thus never trained on.

    Args:
        name: as `tfmot-ops list datasets` prints the names: a built-in (`digits`), a kind with a path (`npz:<path>`),
            or a name registered under the entry-point group `tfmot_ops.datasets`.
        seed: decides which sample goes to which split, and what a registered data set draws.
        limit: keep at most so many training samples; the other splits stay whole.
        task: name of the task; None takes the source's, or infers it from the targets.
        metric: headline of the task `own`.

    Raises:
        SpecError: the name is unknown, a file is missing, or the samples do not fit the task.
        StepFailedError: a download failed.
    """
    if limit is not None and limit < 1:
        raise SpecError("limit keeps no samples", required="limit >= 1", received=str(limit), remedy="raise limit")
    source = read_source(name, seed)
    chosen, reason = _chosen_task(source, task, metric)
    x, y, x_test, y_test = _checked(name, source, chosen)
    weights = _checked_weights(name, source, chosen, length(x))
    rng = np.random.default_rng(seed)
    order = rng.permutation(length(x))
    if x_test is None:
        size = len(order) // 5
        x_test, y_test = _take(x, order[:size]), _take(y, order[:size])
        order = order[size:]
        if chosen.learns_its_input:
            y_test = None
    tenth = max(1, len(order) // 10)
    calibration_end = tenth + min(tenth, _MAX_CALIBRATION)
    parts = {
        "calibration": order[tenth:calibration_end],
        "train": order[calibration_end:][:limit],
        "validation": order[:tenth],
    }
    arrays: dict[str, Any] = {}
    for part, index in parts.items():
        arrays[f"x_{part}"] = _each(_take(x, index), _scaled)
        if part != "calibration":
            arrays[f"y_{part}"] = arrays[f"x_{part}"] if chosen.learns_its_input else _each(_take(y, index), _read)
    if weights is not None:
        arrays["weights_train"] = weights[parts["train"]]
    arrays |= {"x_test": _each(x_test, _scaled), "y_test": _each(y_test, _read)}
    return Dataset(
        name=name,
        task=chosen,
        task_reason=reason,
        facts=_facts(arrays, y, y_test, chosen, source),
        digest=_digest(arrays, source, seed, chosen),
        has_own_test_set=source.x_test is not None,
        record=dict(source.record) | _scaling(x) | ({} if weights is None else {"sample_weights": True}),
        **arrays,
    )


def length(samples: Samples) -> int:
    """Number of samples of a column, or of columns by name."""
    return len(next(iter(samples.values())) if isinstance(samples, Mapping) else samples)


def _chosen_task(source: Source, task: str | None, metric: str | None) -> tuple[Task, str]:
    if task is not None:
        return task_named(task, metric), "it was asked for"
    if metric is not None:
        return task_named("own", metric), "a metric was asked for"
    if source.task is not None:
        return task_named(source.task), "the data set says so"
    name, reason = inferred(source.y)
    return task_named(name), reason


def _checked(name: str, source: Source, task: Task) -> tuple[Any, Any, Any, Any]:
    """Inputs as images with a channel axis where they are images, and canonical targets, all checked."""
    x, x_test = _each(source.x, _with_channels), _each(source.x_test, _with_channels)
    y, y_test = source.y, source.y_test
    check_inputs(name, "training", x)
    if x_test is not None:
        check_inputs(name, "test", x_test)
        check_same_shapes(name, x, x_test)
    if task.learns_its_input:
        x, y = _normal_samples(name, task, x, y)
    else:
        y = check_targets(name, "training", task, x, y)
    if x_test is not None and (y_test is not None or not task.learns_its_input):
        y_test = check_targets(name, "test", task, x_test, y_test)
    check_sizes(name, length(x))
    if y is not None:
        check_together(name, task, y, y_test, source.class_names)
    return x, y, x_test, y_test


def _checked_weights(name: str, source: Source, task: Task, samples: int) -> Any:
    if source.weights is None:
        return None
    if task.learns_its_input and source.y is not None:
        raise SpecError(
            f"data set {name} has weights and flags of anomalies",
            required="weights of samples that are all trained on",
            received="both",
            remedy="leave the weights out",
        )
    return check_weights(name, source.weights, samples)


def _normal_samples(name: str, task: Task, x: Any, y: Any) -> tuple[Any, None]:
    """The samples to learn from: all of them, or with flags those that are no anomaly."""
    if y is None:
        return x, None
    normal = np.flatnonzero(check_targets(name, "training", task, x, y) == 0)
    return _take(x, normal), None


def _facts(arrays: Mapping[str, Any], y: Any, y_test: Any, task: Task, source: Source) -> Facts:
    both = [part for part in (y, y_test) if part is not None and not task.learns_its_input]
    outputs = [task.outputs(part, source.class_names) for part in both]
    return Facts(
        input_shape=_sample_shape(arrays["x_train"]),
        target_shape=_sample_shape(arrays["y_train"]),
        outputs=max((count for count in outputs if count is not None), default=None),
        class_names=source.class_names,
        has_test_targets=y_test is not None,
    )


def _each(samples: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of a column, or of each of the columns by name; None stays None."""
    if samples is None:
        return None
    if isinstance(samples, Mapping):
        return {key: function(column) for key, column in samples.items()}
    return function(samples)


def _take(samples: Any, index: npt.NDArray[np.int64]) -> Any:
    return _each(samples, lambda column: take(column, index))


def _sample_shape(samples: Any) -> Shape:
    shape: Shape = _each(samples, lambda column: tuple(int(size) for size in column.shape[1:]))
    return shape


def _with_channels(column: Any) -> Any:
    """Images of unsigned bytes [N, H, W] with the channel axis that was left out, [N, H, W, 1]."""
    if not isinstance(column, Lazy):
        column = np.asanyarray(column)
        column = Rows(column) if isinstance(column, np.memmap) else column
    if column.dtype != np.uint8 or len(column.shape) != 3:  # noqa: PLR2004 - [N, H, W]
        return column
    if isinstance(column, Lazy):
        return column.then(lambda image: image[..., np.newaxis], (*column.shape[1:], 1), np.uint8)
    return column[..., np.newaxis]


def _scaled(column: Any) -> Any:
    """A column in the type in which models take it: images of bytes in [0, 1], float32 or int32."""
    kind = _kind(column)
    if kind is None:
        return _read(column)
    function, dtype = kind
    if isinstance(column, Lazy):
        return _read(column.then(function, column.shape[1:], dtype))
    return function(column)


def _kind(column: Any) -> tuple[Callable[[Any], Any], Any] | None:
    """(conversion, type) of a column; None for a type that stays as it is, such as text."""
    if column.dtype == np.uint8 and len(column.shape) > 2:  # noqa: PLR2004 - images, not rows of numbers
        return lambda images: images.astype(np.float32) / _WHITE, np.float32
    if column.dtype == np.bool_ or np.issubdtype(column.dtype, np.floating):
        return _finite, np.float32
    if np.issubdtype(column.dtype, np.integer):
        return lambda values: values.astype(np.int32), np.int32
    return None


def _finite(values: Any) -> Any:
    """Numbers as float32.

    Raises:
        SpecError: a sample that is read from a file while the model trains holds NaN or infinity.
    """
    numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise SpecError(
            "a sample cannot be used",
            required="finite numbers in the range of float32",
            received=f"{int((~np.isfinite(numbers)).sum())} values that are NaN or infinite",
            remedy="repair or remove the file of the sample",
        )
    return numbers


def _scaling(x: Any) -> dict[str, JsonValue]:
    """Which inputs were scaled."""
    columns = x if isinstance(x, Mapping) else {"x": x}
    scaled = [name for name, column in columns.items() if column.dtype == np.uint8 and len(column.shape) > 2]  # noqa: PLR2004
    return {"scaling": f"bytes / 255: {', '.join(scaled)}"} if scaled else {}


def _read(column: Any) -> Any:
    """A small lazy column as an array; others as they are."""
    if isinstance(column, Lazy) and 4 * math.prod(column.shape) <= _IN_MEMORY_BYTES:
        return column[:]
    return column


def _described(key: str, samples: Any) -> dict[str, str]:
    columns = (
        {f"{key}.{name}": column for name, column in samples.items()}
        if isinstance(samples, Mapping)
        else {key: samples}
    )
    return {
        name: f"{column.dtype} [{', '.join(['N', *map(str, column.shape[1:])])}]" for name, column in columns.items()
    }


def _digest(arrays: Mapping[str, Any], source: Source, seed: int, task: Task) -> str:
    digest = hashlib.sha256()
    flat: dict[str, Any] = {}
    for key, samples in arrays.items():
        if samples is None or (task.learns_its_input and key in {"y_train", "y_validation"}):
            continue
        flat |= (
            {f"{key}.{name}": column for name, column in samples.items()}
            if isinstance(samples, Mapping)
            else {key: samples}
        )
    for key in sorted(flat):
        digest.update(f"{key}{flat[key].shape}".encode())
        if isinstance(flat[key], Lazy):
            digest.update(f"{source.fingerprint} {seed}".encode())
        else:
            digest.update(np.ascontiguousarray(flat[key]).data)
    return digest.hexdigest()
