"""A trial on random values: whether a graph computes what a layer computes.

A recorded call may lack something: a weight that the layer changes during its call, or a tensor that it keeps between
two calls. The trial finds that. Called by `custom` and `base_class`, before they replace a layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors
from tfmot_ops.core.graph.run import infer, run_graph
from tfmot_ops.core.keras.types import Args, Kwargs, Layer
from tfmot_ops.core.keras.weights import restore_attributes, snapshot_attributes

#: Sizes for axes of unknown size: the batch axis, and any other.
_BATCH, _OTHER = 2, 8
#: Largest difference, as a part of the largest value: recorded functions may be computed in another order.
_TOLERANCE = 1e-3


def computes_the_same(
    call: Node, graph: Graph, read: list[Tensor], *, training: bool = False, unknown: bool = True
) -> bool:
    """Whether a graph gives the results of a call for one batch of random values.

    Args:
        call: a call of a layer.
        graph: what was recorded of it.
        read: the tensors that the call reads, in the order of the graph's inputs.
        training: whether both are computed as in training. What training changes in weights is undone.
        unknown: what to return if the layer raises an error on random values, so that nothing can be compared.

    Returns:
        Whether the results are equal up to rounding, or `unknown`.
    """
    if any(tensor.dtype == "string" for tensor in read):
        return unknown
    values = dict(zip(read, _values(read), strict=True))
    args, kwargs = map_tensors((call.args, call.kwargs), values.get)
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    attributes, state = snapshot_attributes(call.layer), _weight_values(call.layer)
    try:
        expected = infer(call.layer, args, kwargs, training=training)
    except Exception:  # noqa: BLE001 - a user's layer may refuse values, such as an index that is too large
        return unknown
    finally:
        restore_attributes(attributes)
        _restore(call.layer, state)

    def compute(node: Node, args: Args, kwargs: Kwargs) -> Any:
        before = _weight_values(node.layer) if training else []
        result = infer(node.layer, args, kwargs, training=training)
        if training:
            _restore(node.layer, before)
        return result

    found = run_graph(graph, list(values.values()), compute)
    pairs = zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True)
    return all(_are_close(np.asarray(one), np.asarray(other)) for one, other in pairs)


def _weight_values(layer: Layer) -> list[np.ndarray]:
    """The values of a layer's weights."""
    return [weight.numpy() for weight in layer.weights]


def _restore(layer: Layer, state: list[np.ndarray]) -> None:
    """Give the weights of a layer their values back where its call has changed them."""
    for weight, before in zip(layer.weights, state, strict=True):
        if not np.array_equal(weight.numpy(), before):
            weight.assign(before)


def _values(read: list[Tensor]) -> list[Any]:
    """Random values for tensors, reproducible; unknown sizes become `_BATCH` and `_OTHER`."""
    rng = np.random.default_rng(0)
    batch = next((tensor.shape[0] for tensor in read if tensor.shape and tensor.shape[0]), _BATCH)
    found = []
    for tensor in read:
        sizes = [batch if axis == 0 else _OTHER for axis in range(len(tensor.shape))]
        shape = [size or other for size, other in zip(tensor.shape, sizes, strict=True)]
        # 0 and 1 are valid as indices, classes and truth values.
        drawn = rng.normal(size=shape) if tensor.is_float else rng.integers(0, 2, shape)
        found.append(tf.cast(drawn, tensor.dtype))
    return found


def _are_close(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not np.issubdtype(one.dtype, np.floating):
        return bool(np.array_equal(one, other))
    largest = float(np.max(np.abs(one), initial=0.0, where=np.isfinite(one)))
    return bool(np.allclose(one, other, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True))
