"""Finds tensors that are never negative, from the calls that compute them: their roots and powers are finite.

Used where a root, power or inverse may become int8 (`clusters`, `rules.roots`). A tensor may be non-negative without
being found here; then the root stays in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.layers import AxisMean, InverseRoot, Power
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.graph.roles import activation_name
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
#: Functions whose result is not negative, whatever their operand.
_NEVER_NEGATIVE = {
    *("math.square", "math.squared_difference", "math.abs", "math.exp", "math.softplus", "nn.softplus", "math.sqrt"),
    *("math.rsqrt", "nn.relu", "nn.relu6", "math.sigmoid", "nn.sigmoid", "nn.softmax"),
    *("math.reduce_variance", "math.reduce_std", "math.reduce_euclidean_norm", "norm", "linalg.norm", "compat.v1.norm"),
}
_ACTIVATIONS = {"relu", "relu6", "relu with a bound", "sigmoid", "hard_sigmoid", "softmax", "softplus", "exponential"}
#: Functions whose result is not negative where none of their operands is.
_SIGN_PRESERVING = {
    *("math.reduce_mean", "math.reduce_sum", "math.reduce_max", "math.reduce_min", "math.reduce_prod", "math.add"),
    *("__operators__.add", "math.multiply", "math.truediv", "math.divide", "math.maximum", "math.minimum", "math.pow"),
    *("identity", "stop_gradient", "reshape", "expand_dims", "compat.v1.squeeze", "compat.v1.transpose", "tile"),
    *("broadcast_to", "repeat", "__operators__.getitem", "concat", "stack", "cast"),
}
_SIGN_PRESERVING_LAYERS = (
    *(AxisMean, _L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D, _L.GlobalAveragePooling3D, _L.Reshape),
    *(_L.AveragePooling1D, _L.AveragePooling2D, _L.MaxPooling1D, _L.MaxPooling2D, _L.GlobalMaxPooling1D),
    *(_L.GlobalMaxPooling2D, _L.Flatten, _L.Permute, _L.Dropout, _L.Add, _L.Multiply, _L.Concatenate, _L.Maximum),
)
#: Numbers at which a table's function is tried.
_GRID = np.concatenate([-np.geomspace(1e3, 1e-6, 64), [0.0], np.geomspace(1e-6, 1e3, 64)]).astype(np.float32)


def is_never_negative(tensor: Tensor) -> bool:
    """Whether a tensor has no negative element, for any input of the model, as far as the calls before it show."""
    node = tensor.producer
    if node is None:
        return False
    symbol, layer = getattr(node.layer, "symbol", None), node.layer
    if symbol in _NEVER_NEGATIVE or isinstance(layer, InverseRoot | Power) or activation_name(layer) in _ACTIVATIONS:
        return True
    if type(layer) is Pointwise:
        return _gives_no_negative(layer, input_is_never_negative=is_never_negative(node.inputs()[0]))
    keeps = symbol in _SIGN_PRESERVING or type(layer) in _SIGN_PRESERVING_LAYERS
    return _is_clipped_at_zero(node, symbol) or _is_a_square(node, symbol) or (keeps and _none_is_negative(node))


def _is_clipped_at_zero(node: Node, symbol: str | None) -> bool:
    """Whether a call clips its operand to numbers that are not negative."""
    if symbol == "clip_by_value":
        return len(node.args) > 1 and _is_at_least_zero(node.args[1])
    return symbol == "math.maximum" and any(map(_is_at_least_zero, _constants(node)))


def _is_a_square(node: Node, symbol: str | None) -> bool:
    """Whether a call multiplies a tensor with itself, or raises it to an even power."""
    if symbol == "math.pow":
        powers = [float(leaf) for leaf in _constants(node) if np.size(leaf) == 1]
        return len(node.inputs()) == 1 and bool(powers) and powers[0] % 2 == 0
    return _is_product(node, symbol) and len(node.inputs()) > len(set(node.inputs())) == 1


def _is_product(node: Node, symbol: str | None) -> bool:
    return type(node.layer) is _L.Multiply or symbol == "math.multiply"


def _none_is_negative(node: Node) -> bool:
    """Whether no operand of a call is negative; arguments such as axes do not count."""
    symbol = getattr(node.layer, "symbol", None)
    of_numbers = {"math.add", "__operators__.add", "math.multiply", "math.truediv", "math.divide", "math.minimum"}
    constants = _constants(node) if symbol in of_numbers else []
    return all(_is_at_least_zero(leaf) for leaf in constants) and all(map(is_never_negative, node.inputs()))


def _constants(node: Node) -> list[Any]:
    leaves = tf.nest.flatten((node.args, node.kwargs))
    return [leaf for leaf in leaves if not (leaf is None or isinstance(leaf, Tensor | str))]


def _is_at_least_zero(leaf: Any) -> bool:
    try:
        return bool(np.all(np.asarray(leaf, np.float64) >= 0.0))
    except (TypeError, ValueError, NotImplementedError):  # no number
        return False


def _gives_no_negative(layer: Pointwise, *, input_is_never_negative: bool) -> bool:
    """Whether a table's function has no negative result; `known` says that its operand is never negative."""
    grid = _GRID[_GRID >= 0.0] if input_is_never_negative else _GRID
    with tf.init_scope():
        values = np.asarray(layer(tf.constant(grid)))
    return bool(np.all(values >= 0.0))
