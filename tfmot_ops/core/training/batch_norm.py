"""BatchNormalization statistics computed from one batch, instead of by hundreds of training steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Node
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.run import infer, run_graph
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Args, Kwargs, TensorLike


def refresh_batch_norm(model: keras.Model, inputs: Sequence[TensorLike]) -> None:
    """Set the moving mean and variance of each BatchNormalization to those of one batch, in place.

    One pass is enough: each BatchNormalization normalises by the batch's statistics while its moving statistics are
    set, so later layers get the same values as in inference.

    Args:
        model: float model.
        inputs: one array [N, ...] for each input of the model, with N of some dozens.
    """

    def compute(node: Node, args: Args, kwargs: Kwargs) -> Any:
        layer = node.layer
        if not isinstance(layer, keras.layers.BatchNormalization):
            return infer(layer, args, kwargs)
        axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
        value = args[0]
        axes = [index for index in range(len(value.shape)) if index != axis % len(value.shape)]
        mean, variance = tf.nn.moments(value, axes, keepdims=True)
        layer.moving_mean.assign(tf.reshape(mean, [-1]))
        layer.moving_variance.assign(tf.reshape(variance, [-1]))
        scale = 1.0 if layer.gamma is None else tf.reshape(layer.gamma, mean.shape)
        offset = None if layer.beta is None else tf.reshape(layer.beta, mean.shape)
        return tf.nn.batch_normalization(value, mean, variance, offset, scale, layer.epsilon)

    # Run eagerly, as tracing would cost more than the only batch.
    run_graph(read_graph(model), [tf.convert_to_tensor(array) for array in inputs], compute)
