"""Checkpoints: the state of a training after each epoch, in one file, from which a killed training continues.

A continued training ends with exactly the weights of a training that was never stopped, as `seeding` makes the random
numbers of each epoch a function of the seed and the epoch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tfmot_ops.core.graph.ir import layer_paths
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, Layer
from tfmot_ops.core.pruning.sparsity import require_sparsity
from tfmot_ops.system import files

#: Metric name -> one value per epoch.
History = dict[str, list[float]]


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of a training, and the callbacks for its progress.

    The training does not delete the file; the caller deletes it after saving the trained model.

    Attributes:
        path: the file, `.npz`; written to a temporary name and renamed, so that a kill leaves the previous state.
        report: called with a line of text that reports from which epoch the training continues, or why it does not.
        saved: called with `path` after each save; may raise OSError.
    """

    path: Path
    report: Callable[[str], None] = lambda _: None
    saved: Callable[[Path], None] = lambda _: None


def training_identity(
    model: keras.Model,
    samples: Any,
    data_digest: str | None,
    compiled: Mapping[str, object],
    settings: Mapping[str, int | str],
) -> dict[str, str]:
    """Everything that determines a training; a training that differs in any item must not use the checkpoint.

    Args:
        model: the model before the training.
        samples: inputs and targets, arrays [N, ...] in any structure.
        data_digest: digest of the samples; None computes it.
        compiled: the compile configuration, name -> value (see `compile_parameters`).
        settings: what else determines the training, by name: numbers such as `epochs` and `seed`, and texts.

    Returns:
        Name of the item -> its value, or its SHA-256 (hex).
    """
    return {
        **{name: str(value) for name, value in settings.items()},
        "data": data_digest or _digest(tf.nest.flatten(samples)),
        "model": _digest([np.frombuffer(_architecture(model).encode(), np.uint8)]),
        # Not ranges and batch statistics: they are computed, and another CPU model may round them differently. The
        # weights of frozen layers count: a variable stays trainable when its layer is not.
        "initial weights": _digest(variable.numpy() for variable in model.variables if variable.trainable),
        "compile configuration": json.dumps(dict(compiled), sort_keys=True, default=str),
        "tensorflow": tf.__version__,
    }


class CheckpointManager:
    """Saves and restores the state of one training.

    Args:
        checkpoint: the file and the callbacks.
        model: the model, compiled and built.
        belongs_to: from `training_identity`.
        epochs: number of epochs of the whole training.
        extra_variables: further variables with state of the training, besides those of the model and its optimizer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: keras.Model,
        belongs_to: dict[str, str],
        epochs: int,
        extra_variables: Iterable[Any] = (),
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._belongs_to = belongs_to
        self._epochs = epochs
        self._variables = [*_state(model), *extra_variables]

    def resume(self) -> tuple[int, History]:
        """Restore the state that an earlier process saved; an unusable file is reported and does not change the model.

        Returns:
            (number of finished epochs, their metrics); (0, {}) if the training starts from the beginning.
        """
        path, report = self._checkpoint.path, self._checkpoint.report
        if not path.exists():
            return 0, {}
        try:
            about, values = _read(path)
            differences = _differences(about["belongs_to"], self._belongs_to)
            if differences:
                report(f"starts from the beginning: the checkpoint is of another training ({differences})")
                return 0, {}
            epoch, history = int(about["epoch"]), {str(k): [float(f) for f in v] for k, v in about["history"].items()}
            self._check(values)
        except Exception as error:  # noqa: BLE001 - readers of a damaged file may raise any class
            report(f"starts from the beginning: the checkpoint cannot be used ({type(error).__name__}: {error})")
            return 0, {}
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        report(f"continues after epoch {epoch} of {self._epochs}")
        return epoch, history

    def save(self, epoch: int, history: History) -> None:
        """Save the state after `epoch` epochs; a failed write is reported, and the training continues.

        Raises:
            SparsityLostError: a kernel has fewer zeros than its mask's schedule or its quantiser requires.
        """
        assert_masks_hold(self._model)
        about = {"belongs_to": self._belongs_to, "epoch": epoch, "history": history}
        try:
            _write(self._checkpoint.path, about, [variable.numpy() for variable in self._variables])
            self._checkpoint.saved(self._checkpoint.path)
        except OSError as error:
            self._checkpoint.report(f"cannot keep its state after epoch {epoch} of {self._epochs}: {error}")

    def _check(self, values: list[Array]) -> None:
        required = [(tuple(v.shape), v.dtype.as_numpy_dtype) for v in self._variables]
        if required != [(value.shape, value.dtype.type) for value in values]:
            raise ValueError("shapes or types of its variables differ from the model's")


def assert_masks_hold(model: keras.Model) -> None:
    """Check during a training that the masked kernels have enough zeros.

    In a pruning wrapper, the required fraction is that of the schedule's last update; under a quantiser, it is the
    fraction that the export requires.

    Raises:
        SparsityLostError: a kernel has fewer zeros; names its layer.
    """
    for path, layer in layer_paths(model):
        for value, ratio in _masked_kernels(layer):
            if ratio > 0.0:
                require_sparsity(path, [value], ratio)


def _masked_kernels(layer: Layer) -> Iterator[tuple[Array, float]]:
    """(kernel with its mask applied, required fraction of zeros) of each kernel in a wrapper."""
    for variable, mask, _ in getattr(layer, "pruning_vars", ()):
        masked_share = 1.0 - float(np.mean(mask.numpy()))
        yield (
            variable.numpy(),
            max(masked_share, _scheduled_ratio(layer.pruning_schedule, int(layer.pruning_step.numpy()))),
        )
    for variable, quantizer, extra in private.weight_variables(layer):
        value = variable.numpy()
        kept = value * extra["mask"].numpy() if "mask" in extra else value
        yield kept, float(getattr(quantizer, "required_sparsity", 0.0))


def _scheduled_ratio(schedule: tfmot.sparsity.keras.PruningSchedule, step: int) -> float:
    """The fraction of zeros at a schedule's last update, at or before `step`; 0 before its first update.

    0 also for a user's own schedule without `begin_step`, `end_step` and `frequency`.
    """
    begin, end, frequency = (getattr(schedule, name, None) for name in ("begin_step", "end_step", "frequency"))
    if begin is None or end is None or frequency is None or step < begin:
        return 0.0
    step = step if end < 0 else min(step, end)
    return float(schedule(tf.constant(begin + (step - begin) // frequency * frequency, tf.int64))[1])


def build_optimizer(model: keras.Model) -> None:
    """Create the variables of a compiled model's optimizer, which Keras otherwise creates at the first step."""
    private.build_optimizer(model.optimizer, model.trainable_variables)


def _state(model: keras.Model) -> Iterator[Any]:
    """Every variable that a training changes: weights, masks, ranges, pruning steps, and the optimizer's."""
    yield from model.variables
    optimizer = model.optimizer
    # Before its first step an optimizer has no variables to restore.
    build_optimizer(model)
    yield from optimizer.variables()
    yield from private.loss_scale_variables(optimizer)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    # A callback may have changed the learning rate; a schedule needs no state besides the optimizer's step counter.
    yield from private.learning_rate_variables(inner)


def _architecture(model: keras.Model) -> str:
    """Layers, connections, schedules and quantisers as text, independent of the layers' names."""
    try:
        text = str(model.to_json())
    except (NotImplementedError, TypeError, ValueError):  # a subclassed model, or a layer without a config
        return "; ".join(f"{type(layer).__name__} {[w.shape for w in layer.weights]}" for layer in model.layers)
    # Keras counts names over the whole process (`dense_7`), so names are replaced by the order of their appearance.
    order: dict[str, int] = {}
    for name in re.findall(r'"name": ("[^"]*")', text):
        order.setdefault(name, len(order))
    return re.sub(r'"[^"]*"', lambda match: str(order.get(match[0], match[0])), text)


def _digest(arrays: Iterable[Array]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _differences(found: dict[str, str], required: dict[str, str]) -> str:
    return ", ".join(
        f"{name} {found.get(name)}, now {value}" if value.isdecimal() else f"other {name}"
        for name, value in required.items()
        if found.get(name) != value
    )


def _write(path: Path, about: dict[str, object], values: list[Array]) -> None:
    entries: dict[str, Any] = {f"variable_{index}": value for index, value in enumerate(values)}
    with files.whole(path) as part, part.open("wb") as file:
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), allow_pickle=False, **entries)


def _read(path: Path) -> tuple[dict[str, Any], list[Array]]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as entries:
        about = json.loads(entries["about"].tobytes())
        return about, [entries[f"variable_{index}"] for index in range(len(entries.files) - 1)]
