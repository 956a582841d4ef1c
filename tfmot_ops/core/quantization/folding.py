"""The factor per channel by which export multiplies a kernel: the affine call after it, folded into it.

A kernel with one scale has to be rounded after the fold, as in the file: channels whose factors differ get other int8
levels then. With one scale per channel, the fold does not change the levels.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.layers import Affine
from tfmot_ops.core.graph.roles import is_affine
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.keras.wrapped import inner_layer


def folded_factor(layer: Layer) -> Any:
    """The factor [channels], of inference, of the only call that reads a layer's result; None if that is no affine.

    Args:
        layer: a layer without rounded output, called once in a functional model.
    """
    readers = layer.outbound_nodes
    if len(readers) != 1 or len(layer.inbound_nodes) != 1:
        return None
    affine = inner_layer(readers[0].outbound_layer)
    if not affine.built or not is_affine(affine):
        return None
    if isinstance(affine, Affine):
        factor = affine.scale / affine.divisor
    else:
        factor = tf.math.rsqrt(affine.moving_variance + affine.epsilon)
        factor = factor * affine.gamma if affine.scale else factor
    # A channel that is multiplied by 0 may be rounded by any factor.
    return tf.stop_gradient(tf.where(tf.equal(factor, 0.0), tf.ones_like(factor), factor))
