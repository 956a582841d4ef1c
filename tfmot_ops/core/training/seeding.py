"""Random numbers of a training: the order of the samples, dropout, augmentation.

All random numbers of an epoch are a function of (seed, epoch). So an epoch is the same whether the epochs before it
ran in this process or in an earlier one that was killed.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, Logs

#: Batches that are read from files while the model trains on another.
BATCHES_AHEAD = 2


def epoch_seed(*parts: int) -> int:
    """Hash integers (a training's seed, an epoch from 0, a generator's index) to one seed in [0, 2**31)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def batches(
    x: Any,
    y: Any,
    batch_size: int,
    seed: int,
    epochs: range,
    *,
    weights: Any = None,
    failures: list[Exception] | None = None,
) -> tf.data.Dataset:
    """The batches of all `epochs` in sequence, with a different order of the samples in each epoch.

    Indices are shuffled instead of samples, so that no samples are copied into a shuffle buffer. Columns that are not
    arrays are read batch by batch, and the next batches are read while the model trains.

    Args:
        x: inputs, an array or column [N, ...], or a list or dict of these.
        y: targets, in the same forms.
        batch_size: samples per batch; the last batch of an epoch may have fewer.
        seed: the training's seed.
        epochs: indices of the epochs, from 0.
        weights: factors of the loss, a column [N, ...], or a list or dict of these; None leaves them out.
        failures: the error of a sample that cannot be read is appended to it; TensorFlow raises only the error's text.

    Returns:
        A data set of batches (inputs [batch, ...], targets [batch, ...]), with weights [batch, ...] if there are any.
    """
    # A tf.data.Dataset makes one tensor of a list.
    x_is_y = x is y
    x, y, weights = (tuple(part) if isinstance(part, list) else part for part in (x, y, weights))
    y = x if x_is_y else y
    size = len(tf.nest.flatten(x)[0])

    def order(drawn_seed: tf.Tensor) -> tf.data.Dataset:
        shuffled = tf.random.experimental.stateless_shuffle(tf.range(size), seed=[drawn_seed, 0])
        return tf.data.Dataset.from_tensor_slices(shuffled).batch(batch_size)

    seeds = tf.constant([epoch_seed(seed, epoch) for epoch in epochs], tf.int32)
    orders = tf.data.Dataset.from_tensor_slices(seeds).flat_map(order)
    parts = (x, y) if weights is None else (x, y, weights)
    if all(is_in_memory(column) for column in tf.nest.flatten(parts)):
        held = tf.nest.map_structure(tf.constant, parts)
        return orders.map(lambda index: tf.nest.map_structure(lambda column: tf.gather(column, index), held))
    return _read_in_order(parts, orders, [] if failures is None else failures)


def is_in_memory(column: Any) -> bool:
    """Whether a column is an array in memory, not read from files by index."""
    return isinstance(column, np.ndarray) and not isinstance(column, np.memmap)


def _read_in_order(parts: tuple[Any, ...], orders: tf.data.Dataset, failures: list[Exception]) -> tf.data.Dataset:
    """Batches of inputs, targets and perhaps weights that are read by index."""

    def read() -> Iterator[tuple[Any, ...]]:
        for index in orders.as_numpy_iterator():
            yield _samples(parts, index, failures)

    def spec(column: Any) -> tf.TensorSpec:
        return tf.TensorSpec((None, *column.shape[1:]), column.dtype)

    signature = tf.nest.map_structure(spec, parts)
    return tf.data.Dataset.from_generator(read, output_signature=signature).prefetch(BATCHES_AHEAD)


def _samples(parts: tuple[Any, ...], index: Any, failures: list[Exception]) -> tuple[Any, ...]:
    """Inputs, targets and weights of the samples of a slice or of an array of indices.

    Targets that are the inputs are read once.
    """
    x, y, *weights = parts

    def read(part: Any) -> Any:
        return tf.nest.map_structure(lambda column: column[index], part)

    try:
        inputs = read(x)
        return (inputs, inputs if y is x else read(y), *map(read, weights))
    except Exception as error:
        failures.append(error)
        raise


class SequentialBatches(keras.utils.Sequence):
    """Batches of columns in their order, read when Keras asks for them; for the validation.

    Args:
        x: inputs, a column [N, ...], or a list or dict of columns.
        y: targets, in the same forms.
        batch_size: samples per batch.
        failures: see `batches`.
    """

    def __init__(self, x: Any, y: Any, batch_size: int, failures: list[Exception]) -> None:
        self._x, self._y, self._batch_size, self._failures = x, y, batch_size, failures

    def __len__(self) -> int:
        return math.ceil(len(tf.nest.flatten(self._x)[0]) / self._batch_size)

    def __getitem__(self, place: int) -> tuple[Any, ...]:
        """Batch number `place` as (inputs, targets)."""
        part = slice(place * self._batch_size, (place + 1) * self._batch_size)
        return _samples((self._x, self._y), part, self._failures)


class SeedEachEpoch(keras.callbacks.Callback):
    """Callback that seeds every random generator at the start of each epoch by (seed, epoch).

    Args:
        seed: the training's seed.
        layers: layers besides the model's that draw random numbers, such as those of an augmentation.
    """

    def __init__(self, seed: int, layers: Iterable[Layer] = ()) -> None:
        super().__init__()
        self._seed, self._layers = seed, tuple(layers)
        self._generators: list[Any] = []
        self._own_seeds: list[int | None] = []
        self._stateless_function: Any = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Find the layers' random generators."""
        del logs
        self._generators = [found for layer in (self.model, *self._layers) for found in _generators(layer)]
        self._own_seeds = [private.own_seed(random_generator) for random_generator in self._generators]
        for random_generator in self._generators:
            private.make_generator(random_generator)
            # Keras increments a layer's own seed at each trace, and the number of traces differs between processes.
            private.set_own_seed(random_generator, None)

    def on_train_end(self, logs: Logs = None) -> None:
        """Restore the layers' own seeds."""
        del logs
        for random_generator, own in zip(self._generators, self._own_seeds, strict=True):
            private.set_own_seed(random_generator, own)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Seed Python, NumPy, TensorFlow and the layers' generators for this epoch."""
        del logs
        seed = epoch_seed(self._seed, epoch)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - a user's layers and callbacks may use the global generator
        for index, (random_generator, own) in enumerate(zip(self._generators, self._own_seeds, strict=True)):
            generator = private.generator_of(random_generator)
            if isinstance(generator, tf.random.Generator):
                generator.reset_from_seed(epoch_seed(seed, index, own or 0))
        if self._has_stateful_ops():
            keras.utils.set_random_seed(seed)
            # Stateful random ops (dropout) are seeded only when they are traced, so the training step is traced again.
            logging.getLogger("tensorflow").addFilter(_drop_retracing_warning)
            self.model.make_train_function(force=True)

    def _has_stateful_ops(self) -> bool:
        """Whether the training step has, or before its first trace may have, stateful random operations."""
        function = getattr(self.model, "train_tf_function", None)
        if function is None or self.model.run_eagerly:
            return True
        if function is self._stateless_function:
            return False
        traces = private.traces_of(function)
        if traces and not any(_has_seeded_ops(trace.graph) for trace in traces):
            # The result is cached, as searching a large graph can take as long as an epoch.
            self._stateless_function = function
            return False
        return True


def _drop_retracing_warning(record: logging.LogRecord) -> bool:
    """Log filter that drops TensorFlow's warning about frequent retracing; one trace per epoch is intended here."""
    return "triggered tf.function retracing" not in record.getMessage()


def _generators(outer: Layer) -> Iterator[Any]:
    """The random generators (Keras' or TensorFlow's) of a layer or model and of all layers within, in their order."""
    for layer in private.layers_within(outer):
        for value in vars(layer).values():
            if isinstance(value, tf.random.Generator) or hasattr(value, "make_legacy_seed"):
                yield value


def _has_seeded_ops(graph: tf.Graph) -> bool:
    definition = graph.as_graph_def()
    nodes = chain(definition.node, *(function.node_def for function in definition.library.function))
    return any("seed2" in node.attr for node in nodes)
