"""Values that follow from the sizes of the inputs alone, such as a causal mask of `tf.shape(x)[1]` positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Tensor, map_tensors
from tfmot_ops.core.graph.layers import Affine, scale_and_offset

_SHAPES = {"shape", "compat.v1.shape", "shape_v2"}


class _UnknownError(Exception):
    """A value depends on what the inputs hold, or on a size that is not known."""


def static_value(tensor: Tensor, graph: Graph) -> np.ndarray | None:
    """The values of a tensor that is computed from known sizes and constants; None for any other tensor.

    Args:
        tensor: a tensor of the graph.
        graph: holds the weights of its layers.
    """
    try:
        with tf.init_scope():
            found = np.asarray(_value(tensor, graph))
    except Exception:  # noqa: BLE001 - a function of TensorFlow may raise anything on a size that is not known
        return None
    return None if found.dtype == object else found


def _value(tensor: Tensor, graph: Graph) -> Any:
    node = tensor.producer
    if node is None or tensor is not node.outputs:
        raise _UnknownError
    symbol = str(getattr(node.layer, "symbol", ""))
    if symbol in _SHAPES:
        # An unknown size becomes None, which no function but a slice takes.
        return np.array(node.inputs()[0].shape, object)
    if isinstance(node.layer, Affine):
        scale, offset = scale_and_offset(graph.weights_of(node.layer))
        return np.float32(_value(node.inputs()[0], graph) * scale + offset)
    if not symbol or "random" in symbol:
        raise _UnknownError
    args, kwargs = map_tensors((node.args, node.kwargs), lambda operand: _value(operand, graph))
    if symbol == "__operators__.getitem" and isinstance(args[0], np.ndarray) and args[0].dtype == object:
        sizes = args[0][args[1]]
        return sizes if isinstance(sizes, np.ndarray) else np.int32(sizes)
    return np.asarray(node.layer.function(*args, **kwargs))
