"""Reproducible training that can be resumed after a kill: `fit`, with seeds, checkpoints and a progress callback."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras.compiling import compile_parameters, is_compiled
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.keras.types import Logs
from tfmot_ops.core.training.checkpoint import Checkpoint, CheckpointManager, History, training_identity
from tfmot_ops.core.training.convolutions import strides_as_slices
from tfmot_ops.core.training.seeding import BATCHES_AHEAD, SeedEachEpoch, SequentialBatches, batches, is_in_memory
from tfmot_ops.core.training.stopping import BestEpoch
from tfmot_ops.core.training.train_step import Additions, extended_train_step
from tfmot_ops.errors import SpecError, StepFailedError

_NOTHING_ADDED = Additions()
#: Called after each epoch with (number of the epoch, from 1; number of epochs; metric name -> value).
OnEpoch = Callable[[int, int, dict[str, float]], None]


def fit(
    model: keras.Model,
    x: Any,
    y: Any,
    validation: tuple[Any, Any] | None,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    on_epoch: OnEpoch | None = None,
    on_restored: OnEpoch | None = None,
    checkpoint: Checkpoint | None = None,
    data_digest: str | None = None,
    weights: Any = None,
    additions: Additions = _NOTHING_ADDED,
    best_epoch: BestEpoch | None = None,
    plan: str = "",
) -> History:
    """Train a compiled `model` in place; the same seed on the same machine gives the same weights.

    With a checkpoint, a killed training can be continued: called again with the same arguments in a new process, `fit`
    continues after the last finished epoch, and ends with exactly the weights of an uninterrupted training.

    Args:
        model: compiled model.
        x: inputs, an array or column [N, ...], or a list or dict of these for several inputs. A column is read by index
            when a batch needs its samples.
        y: labels [N] or targets [N, ...], in the same forms.
        validation: (inputs, targets) to measure after each epoch, or None.
        epochs: passes over `x`; 0 trains nothing.
        batch_size: samples per step; the last step of an epoch may have fewer.
        seed: seeds the order of the samples and the layers' random numbers (dropout).
        callbacks: Keras callbacks. A checkpoint contains state that they keep in the model (the pruning step), but not
            state in the callback object (EarlyStopping).
        on_epoch: called after each epoch; a continued training first calls it for the last epoch before the kill.
        on_restored: called for the other epochs before the kill, which the killed process may not have recorded.
        checkpoint: the file in which the state is saved after each epoch, and from which it is restored; None saves
            nothing.
        data_digest: digest of the samples, by which a checkpoint belongs to a training; None computes it from arrays;
            columns would have to be read for it, so they need one.
        weights: factor of the loss of each sample, [N] or of the targets' shape without classes; None is 1 for each.
        additions: augmentation, and a model to learn from.
        best_epoch: stops the training early, and puts the weights of the best epoch back at its end; None trains all
            epochs, and the last one's weights stay.
        plan: text that determines all of these; a checkpoint of a training with another text is not used.

    Returns:
        Metric name -> one value per epoch, including the epochs before a kill; empty for 0 epochs.

    Raises:
        SpecError: the model is not compiled, a sample that is read from a file is broken, or `best_epoch` watches a
            metric that is not reported.
        StepFailedError: the loss became NaN or infinite.
        SparsityLostError: at a checkpoint, a kernel has fewer zeros than its mask's schedule or quantiser requires.
    """
    if not is_compiled(model):
        raise SpecError(
            f"model {model.name} cannot be trained",
            required="a compiled model",
            received="a model without optimizer and loss",
            remedy="call model.compile, or use compile_default",
        )
    if epochs == 0:
        return {}
    set_seed(seed)
    manager = None
    layers = [layer for _, layer in additions.augmentation]
    if checkpoint is not None:
        if not model.built:
            model(tf.nest.map_structure(lambda column: tf.convert_to_tensor(column[:1]), x))
        settings: dict[str, int | str] = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
        settings |= {"training plan": plan} if plan else {}
        samples = (x, y) if weights is None else (x, y, weights)
        belongs_to = training_identity(model, samples, data_digest, compile_parameters(model), settings)
        more = [variable for layer in layers for variable in layer.variables]
        manager = CheckpointManager(
            checkpoint, model, belongs_to, epochs, [*more, *(best_epoch.variables if best_epoch else ())]
        )
    if best_epoch:
        best_epoch.require_metric(_reported_metrics(model, x, y, validation))
    done, history = manager.resume() if manager else (0, {})
    _report_restored_epochs(on_epoch, on_restored, done, epochs, history)
    if done < epochs and not (best_epoch and best_epoch.is_over):
        _create_variables(model, y)
        failures: list[Exception] = []
        with strides_as_slices(), _raise_original_errors(failures), extended_train_step(model, additions, failures):
            model.fit(
                batches(x, y, batch_size, seed, range(done, epochs), weights=weights, failures=failures),
                steps_per_epoch=math.ceil(len(tf.nest.flatten(x)[0]) / batch_size),
                **_validation(validation, batch_size, failures),
                initial_epoch=done,
                epochs=epochs,
                callbacks=[
                    SeedEachEpoch(seed, layers),
                    *callbacks,
                    *([best_epoch] if best_epoch else []),
                    _EpochEnd(epochs, on_epoch, manager, history),
                ],
                verbose=0,
            )
    elif hasattr(model.optimizer, "finalize_variable_values"):
        # The process was killed after the last epoch: what Keras does at the end, for averaged weights, is still to do.
        model.optimizer.finalize_variable_values(model.trainable_variables)
    if best_epoch:
        best_epoch.restore_best_weights(len(next(iter(history.values()), [])))
    return history


def _create_variables(model: keras.Model, y: Any) -> None:
    """Create the variables of the optimizer, the loss and the metrics, which Keras creates in the first training step.

    TensorFlow traces a function that creates variables twice: for a deep QAT model that takes as long as some epochs.
    """
    outputs = getattr(model, "output", None)
    if outputs is None or not isinstance(model.optimizer, keras.optimizers.Optimizer):
        return  # a subclassed model has no symbolic outputs, a legacy optimizer creates its variables itself
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)
    try:
        tf.nest.assert_same_structure(outputs, y)
    except (TypeError, ValueError):
        return  # Keras finds the targets of the outputs by itself: a dict for a list, or fewer targets than outputs
    targets = tf.nest.map_structure(lambda column: tf.convert_to_tensor(column[:1]), y)
    with model.distribute_strategy.scope():
        if not model.compiled_loss.built:
            model.compiled_loss.build(outputs)
        if not model.compiled_metrics.built:
            model.compiled_metrics.build(outputs, targets)


def _report_restored_epochs(
    on_epoch: OnEpoch | None, on_restored: OnEpoch | None, done: int, epochs: int, history: History
) -> None:
    """Report the epochs before a kill."""
    for epoch in range(1, done + 1):
        report = on_epoch if epoch == done else on_restored
        if report is not None:
            report(epoch, epochs, {name: values[epoch - 1] for name, values in history.items()})


def _reported_metrics(model: keras.Model, x: Any, y: Any, validation: tuple[Any, Any] | None) -> list[str]:
    """Names of the metrics that Keras reports after an epoch; they are known only once the model has seen targets."""
    measured = (x, y) if validation is None else validation
    one = tf.nest.map_structure(lambda column: tf.convert_to_tensor(column[:1]), measured)
    names = list(model.evaluate(*one, verbose=0, return_dict=True))
    return names if validation is None else [*names, *(f"val_{name}" for name in names)]


@contextlib.contextmanager
def _raise_original_errors(failures: list[Exception]) -> Iterator[None]:
    """Raise the error of a sample or of the training step itself, not TensorFlow's error that quotes it."""
    try:
        yield
    except Exception as error:
        if failures and failures[0] is not error:
            raise failures[0] from error
        raise


def _validation(validation: tuple[Any, Any] | None, batch_size: int, failures: list[Exception]) -> dict[str, Any]:
    """Arguments of `Model.fit` for (inputs, targets): in memory as they are, else in batches that are read."""
    if validation is None:
        return {}
    if all(is_in_memory(column) for column in tf.nest.flatten(validation)):
        return {"validation_data": validation, "validation_batch_size": batch_size}
    # Keras itself would keep ten batches ready.
    return {"validation_data": SequentialBatches(*validation, batch_size, failures), "max_queue_size": BATCHES_AHEAD}


class _EpochEnd(keras.callbacks.Callback):
    """Saves the state and reports the metrics after each epoch, and stops a training whose loss is not finite."""

    def __init__(
        self, epochs: int, on_epoch: OnEpoch | None, manager: CheckpointManager | None, history: History
    ) -> None:
        super().__init__()
        self._epochs = epochs
        self._on_epoch = on_epoch
        self._manager = manager
        self._history = history

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise StepFailedError(
                f"training of {self.model.name} diverged in epoch {epoch + 1}",
                required="a finite loss",
                received=f"loss {metrics['loss']}",
                remedy="lower the learning rate, or check the data",
            )
        for name, value in metrics.items():
            self._history.setdefault(name, []).append(value)
        # This callback is the last, so that changes by the other callbacks at the epoch's end are saved too.
        if self._manager:
            self._manager.save(epoch + 1, self._history)
        if self._on_epoch:
            self._on_epoch(epoch + 1, self._epochs, metrics)
