"""What a training draws, epoch by epoch: the order of the samples, dropout, augmentation.

All of it is a function of (seed, epoch): an epoch draws the same whether the ones before it ran in this process
or in one that was killed.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array, Logs


def epoch_seed(*parts: int) -> int:
    """One seed, in [0, 2**31), of a training's seed, an epoch (from 0), and whatever else tells draws apart."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def batches(x: Array, y: Array, batch_size: int, seed: int, epochs: range) -> tf.data.Dataset:
    """The batches of all `epochs`, one after the other, each epoch in an order of its own.

    Indices are shuffled, so that no sample is copied into a buffer.

    Args:
        x: inputs [N, ...].
        y: labels [N] or targets [N, ...].
        batch_size: samples per batch; the last one of an epoch takes what is left.
        seed: of the training.
        epochs: counted from 0.
    """
    inputs, targets = tf.constant(x), tf.constant(y)

    def order(drawn: tf.Tensor) -> tf.data.Dataset:
        shuffled = tf.random.experimental.stateless_shuffle(tf.range(len(x)), seed=[drawn, 0])
        return tf.data.Dataset.from_tensor_slices(shuffled).batch(batch_size)

    seeds = tf.constant([epoch_seed(seed, epoch) for epoch in epochs], tf.int32)
    orders = tf.data.Dataset.from_tensor_slices(seeds).flat_map(order)
    return orders.map(lambda index: (tf.gather(inputs, index), tf.gather(targets, index)))


class SeedEachEpoch(keras.callbacks.Callback):
    """Puts every source of randomness, at the start of an epoch, where the seed and the epoch say.

    Args:
        seed: of the training.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._drawers: list[Any] = []
        self._own_seeds: list[int | None] = []
        self._without_draws: Any = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Find what draws."""
        del logs
        self._drawers = list(_drawers(self.model))
        self._own_seeds = [private.own_seed(drawer) for drawer in self._drawers]
        for drawer in self._drawers:
            private.make_generator(drawer)
            # A layer's own seed is counted up each time it is traced, and how often that is depends on the process.
            private.set_own_seed(drawer, None)

    def on_train_end(self, logs: Logs = None) -> None:
        """Give the layers their own seeds back."""
        del logs
        for drawer, own in zip(self._drawers, self._own_seeds, strict=True):
            private.set_own_seed(drawer, own)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Seed it."""
        del logs
        seed = epoch_seed(self._seed, epoch)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what a user's layers and callbacks draw from
        for index, (drawer, own) in enumerate(zip(self._drawers, self._own_seeds, strict=True)):
            generator = private.generator_of(drawer)
            if isinstance(generator, tf.random.Generator):
                generator.reset_from_seed(epoch_seed(seed, index, own or 0))
        if self._draws_from_state():
            keras.utils.set_random_seed(seed)
            # Ops that keep a state (dropout's) are seeded when they are traced, and never again: trace again.
            logging.getLogger("tensorflow").addFilter(_not_of_tracing)
            self.model.make_train_function(force=True)

    def _draws_from_state(self) -> bool:
        """Whether a training step holds ops with a random state, as far as is known: before its first trace it may."""
        function = getattr(self.model, "train_tf_function", None)
        if function is None or self.model.run_eagerly:
            return True
        if function is self._without_draws:
            return False
        traces = private.traces_of(function)
        if traces and not any(_has_seeded_ops(trace.graph) for trace in traces):
            # Remembered, as reading a large graph takes as long as some epochs.
            self._without_draws = function
            return False
        return True


def _not_of_tracing(record: logging.LogRecord) -> bool:
    """Filter of a log: TensorFlow takes one trace per epoch for a mistake, and says so at length."""
    return "triggered tf.function retracing" not in record.getMessage()


def _drawers(model: keras.Model) -> Iterator[Any]:
    """Keras' and TensorFlow's random generators in the layers of `model`, nested ones included, in its order."""
    for layer in private.layers_within(model):
        for value in vars(layer).values():
            if isinstance(value, tf.random.Generator) or hasattr(value, "make_legacy_seed"):
                yield value


def _has_seeded_ops(graph: tf.Graph) -> bool:
    definition = graph.as_graph_def()
    nodes = chain(definition.node, *(function.node_def for function in definition.library.function))
    return any("seed2" in node.attr for node in nodes)
