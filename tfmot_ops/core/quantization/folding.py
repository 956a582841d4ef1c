"""The factor per channel by which export multiplies a kernel when it folds the affine call after it into the kernel.

QAT has to round a kernel with one scale for all channels after this multiplication, as the file does: folding changes
the int8 levels of channels with different factors. With one scale per channel, folding does not change the levels.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.layers import Affine
from tfmot_ops.core.graph.roles import is_affine
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.keras.wrapped import inner_layer


def folded_factor(layer: Layer) -> Any:
    """The factor [channels], as in inference, of the affine that alone reads a layer's result; None if there is none.

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
    # A channel that is multiplied by 0 may be rounded with any factor; 1 avoids a division by 0.
    return tf.stop_gradient(tf.where(tf.equal(factor, 0.0), tf.ones_like(factor), factor))
