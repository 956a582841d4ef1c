"""The state of a training after each epoch, in one file, from which a killed training goes on.

Together with `seeding`, which makes each epoch's draws a function of the seed and the epoch, a training that goes
on ends with the weights, bit for bit, of one that was never stopped.
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
    """Where a training keeps its state, and who is told what becomes of it.

    The file outlives the training: whoever has put the trained model in a safe place removes it.

    Attributes:
        path: the file, `.npz`; written beside and renamed, so that a kill leaves the one before.
        tell: takes a line: from where the training goes on, or why not.
        saved: called after each save with `path`; may raise OSError.
    """

    path: Path
    tell: Callable[[str], None] = lambda _: None
    saved: Callable[[Path], None] = lambda _: None


def identity(model: keras.Model, x: Array, y: Array, compiled: Mapping[str, object], **settings: int) -> dict[str, str]:
    """What a state belongs to: a training that differs in any of it must not go on from there.

    Args:
        model: before the training.
        x: inputs [N, ...].
        y: labels [N] or targets [N, ...].
        compiled: what the model is compiled with, by name.
        settings: numbers that decide the training, by name: `epochs`, `batch_size`, `seed`.

    Returns:
        Name -> its value, or a sha256 (hex) of it.
    """
    return {
        **{name: str(value) for name, value in settings.items()},
        "data": _digest([x, y]),
        "model": _digest([np.frombuffer(_architecture(model).encode(), np.uint8)]),
        # Ranges and statistics follow from these and the data; a processor of another make may round them otherwise.
        "initial weights": _digest(variable.numpy() for variable in model.trainable_variables),
        "compile configuration": json.dumps(dict(compiled), sort_keys=True, default=str),
        "tensorflow": tf.__version__,
    }


class Keeper:
    """Saves the state of one training, and restores it.

    Args:
        checkpoint: where, and who is told.
        model: compiled and built.
        belongs_to: see `identity`.
        epochs: the training's.
    """

    def __init__(self, checkpoint: Checkpoint, model: keras.Model, belongs_to: dict[str, str], epochs: int) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._belongs_to = belongs_to
        self._epochs = epochs
        self._variables = list(_state(model))

    def resume(self) -> tuple[int, History]:
        """Restore what an earlier attempt saved; an unusable file is reported, and the model left as it is.

        Returns:
            How many epochs are done, and the metrics of each; (0, {}) to start from the beginning.
        """
        path, tell = self._checkpoint.path, self._checkpoint.tell
        if not path.exists():
            return 0, {}
        try:
            about, values = _read(path)
            other = _differences(about["belongs_to"], self._belongs_to)
            if other:
                tell(f"starts from the beginning: the checkpoint is of another training ({other})")
                return 0, {}
            epoch, history = int(about["epoch"]), {str(k): [float(f) for f in v] for k, v in about["history"].items()}
            self._check(values)
        except Exception as error:  # noqa: BLE001 - a damaged file makes its readers raise anything
            tell(f"starts from the beginning: the checkpoint cannot be used ({type(error).__name__}: {error})")
            return 0, {}
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        tell(f"continues after epoch {epoch} of {self._epochs}")
        return epoch, history

    def save(self, epoch: int, history: History) -> None:
        """Save the state after `epoch` epochs; a failed write is reported, and the training goes on.

        Raises:
            SparsityLostError: a kernel does not hold the sparsity that its mask is there for.
        """
        assert_masks_hold(self._model)
        about = {"belongs_to": self._belongs_to, "epoch": epoch, "history": history}
        try:
            _write(self._checkpoint.path, about, [variable.numpy() for variable in self._variables])
            self._checkpoint.saved(self._checkpoint.path)
        except OSError as error:
            self._checkpoint.tell(f"cannot keep its state after epoch {epoch} of {self._epochs}: {error}")

    def _check(self, values: list[Array]) -> None:
        wanted = [(tuple(v.shape), v.dtype.as_numpy_dtype) for v in self._variables]
        if wanted != [(value.shape, value.dtype.type) for value in values]:
            raise ValueError("its variables are not those of the model")


def assert_masks_hold(model: keras.Model) -> None:
    """Check, in the middle of a training, the kernels that masks hold at zero.

    A kernel under a pruning wrapper has the ratio that its schedule asked for at its last update; one under a
    quantiser the ratio that its export will ask for.

    Raises:
        SparsityLostError: a kernel holds less; the message names its layer.
    """
    for path, layer in layer_paths(model):
        for value, ratio in _held(layer):
            if ratio > 0.0:
                require_sparsity(path, [value], ratio)


def _held(layer: Layer) -> Iterator[tuple[Array, float]]:
    """The kernels of a wrapper with the fraction of zeros that each has to hold now."""
    for variable, mask, _ in getattr(layer, "pruning_vars", ()):
        held = 1.0 - float(np.mean(mask.numpy()))
        yield variable.numpy(), max(held, _scheduled(layer.pruning_schedule, int(layer.pruning_step.numpy())))
    for variable, quantizer, extra in private.weight_variables(layer):
        value = variable.numpy()
        kept = value * extra["mask"].numpy() if "mask" in extra else value
        yield kept, float(getattr(quantizer, "required_sparsity", 0.0))


def _scheduled(schedule: tfmot.sparsity.keras.PruningSchedule, step: int) -> float:
    """The ratio of a schedule's last update at or before `step`, 0 before the first."""
    begin, end, every = (getattr(schedule, name, None) for name in ("begin_step", "end_step", "frequency"))
    if begin is None or end is None or every is None or step < begin:
        return 0.0  # or a user's own schedule, of which nothing is known
    step = step if end < 0 else min(step, end)
    return float(schedule(tf.constant(begin + (step - begin) // every * every, tf.int64))[1])


def build_optimizer(model: keras.Model) -> None:
    """Create the variables of a compiled model's optimizer, which otherwise its first step does."""
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
    # A rate that a callback lowered; a schedule follows the optimizer's steps.
    yield from private.learning_rate_variables(inner)


def _architecture(model: keras.Model) -> str:
    """Layers, connections, schedules and quantisers as text, the same whatever the layers are called."""
    try:
        text = str(model.to_json())
    except (NotImplementedError, TypeError, ValueError):  # a subclassed model, or a layer without a config
        return "; ".join(f"{type(layer).__name__} {[w.shape for w in layer.weights]}" for layer in model.layers)
    # Keras numbers names on within a process, so a model built again there has others: put their order instead.
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


def _differences(found: dict[str, str], wanted: dict[str, str]) -> str:
    return ", ".join(
        f"{name} {found.get(name)}, now {value}" if value.isdecimal() else f"other {name}"
        for name, value in wanted.items()
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
