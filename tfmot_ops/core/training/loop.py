"""Reproducible, resumable training: seeds, compiling, and `fit` with progress by callback.

`compile_like` compiles a rewritten model (pruned, quantised, stripped) as the original was, with nothing of the
original's state in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from tfmot_ops.core.keras.compiling import compile_parameters, is_compiled
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.keras.types import Array, Logs
from tfmot_ops.core.training.checkpoint import Checkpoint, History, Keeper, identity
from tfmot_ops.core.training.seeding import SeedEachEpoch, batches
from tfmot_ops.errors import SpecError, StepFailedError

#: Called after each epoch with (epoch, counted from 1; epochs; metric name -> value).
OnEpoch = Callable[[int, int, dict[str, float]], None]


def fit(
    model: keras.Model,
    x: Array,
    y: Array,
    validation: tuple[Array, Array] | None,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    on_epoch: OnEpoch | None = None,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train a compiled `model` in place; the same seed on the same machine gives the same weights.

    With a checkpoint a killed training continues: called again with the same arguments, in a new process, it goes on
    after the last whole epoch and ends with the weights it would have had, bit for bit.

    Args:
        model: compiled model.
        x: inputs [N, ...].
        y: labels [N] or targets [N, ...].
        validation: (inputs, labels) to measure after each epoch, or None.
        epochs: passes over `x`; 0 trains nothing.
        batch_size: samples per step; the last step of an epoch takes what is left.
        seed: seeds the order of the samples and whatever the layers draw (dropout).
        callbacks: Keras callbacks. A checkpoint holds what they keep in the model (as the pruning ones do), not what
            they keep in themselves (EarlyStopping).
        on_epoch: told the progress, of the epochs that run now and the last one before a kill; Keras itself writes
            nothing.
        checkpoint: where the state is kept after each epoch, and restored from; None keeps nothing.

    Returns:
        Metric name -> one value per epoch, those before a kill included; empty after 0 epochs.

    Raises:
        SpecError: the model is not compiled.
        StepFailedError: the loss became NaN or infinite.
        SparsityLostError: at a checkpoint, a kernel does not hold the sparsity that its mask is there for.
    """
    if not is_compiled(model):
        raise SpecError(
            f"model {model.name} cannot be trained",
            required="a compiled model",
            received="a model without optimizer and loss",
            remedy="compile it, or use compile_default",
        )
    if epochs == 0:
        return {}
    set_seed(seed)
    keeper = None
    if checkpoint is not None:
        if not model.built:
            model(x[:1])
        settings = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
        keeper = Keeper(checkpoint, model, identity(model, x, y, compile_parameters(model), **settings), epochs)
    done, history = keeper.resume() if keeper else (0, {})
    if done and on_epoch:
        # The kill may have come after the epoch was kept and before it was told of.
        on_epoch(done, epochs, {name: values[-1] for name, values in history.items()})
    if done < epochs:
        model.fit(
            batches(x, y, batch_size, seed, range(done, epochs)),
            steps_per_epoch=math.ceil(len(x) / batch_size),
            validation_data=validation,
            validation_batch_size=batch_size,
            initial_epoch=done,
            epochs=epochs,
            callbacks=[SeedEachEpoch(seed), *callbacks, _EpochEnd(epochs, on_epoch, keeper, history)],
            verbose=0,
        )
    return history


class _EpochEnd(keras.callbacks.Callback):
    """Keeps each epoch's state and hands its figures on, and ends a training that cannot recover."""

    def __init__(self, epochs: int, on_epoch: OnEpoch | None, keeper: Keeper | None, history: History) -> None:
        super().__init__()
        self._epochs = epochs
        self._on_epoch = on_epoch
        self._keeper = keeper
        self._history = history

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        if not math.isfinite(figures.get("loss", 0.0)):
            raise StepFailedError(
                f"training of {self.model.name} diverged in epoch {epoch + 1}",
                required="a finite loss",
                received=f"loss {figures['loss']}",
                remedy="lower the learning rate, or check the data",
            )
        for name, value in figures.items():
            self._history.setdefault(name, []).append(value)
        # Last of the callbacks, so that what the others did at the end of the epoch is kept too.
        if self._keeper:
            self._keeper.save(epoch + 1, self._history)
        if self._on_epoch:
            self._on_epoch(epoch + 1, self._epochs, figures)
