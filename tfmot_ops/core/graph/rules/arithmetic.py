"""Tensor arithmetic (`a + b`, `x / 255`) and TensorFlow functions, called on the tensors of a model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor, tensors
from tfmot_ops.core.graph.layers import Affine, AxisMean, LearnedTensor, Shift, scale_and_offset
from tfmot_ops.core.graph.rewrite import Rewriter, channel_constant
from tfmot_ops.core.graph.rules.activations import emit_activation
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import TFOpLambda

_L = keras.layers
_MERGES = {
    "math.add": _L.Add,
    "__operators__.add": _L.Add,
    "math.multiply": _L.Multiply,
    "math.subtract": _L.Subtract,
    "math.maximum": _L.Maximum,
    "math.minimum": _L.Minimum,
}
_ACTIVATIONS = {
    "nn.relu": "relu",
    "nn.relu6": tf.nn.relu6,
    "nn.silu": "swish",
    "nn.swish": "swish",
    "nn.softmax": "softmax",
    "nn.log_softmax": tf.nn.log_softmax,
    "math.sigmoid": "sigmoid",
    "nn.sigmoid": "sigmoid",
    "math.tanh": "tanh",
    "nn.tanh": "tanh",
    "nn.elu": "elu",
    "nn.gelu": "gelu",
    "nn.selu": "selu",
    "nn.softplus": "softplus",
    "math.softplus": "softplus",
}
_OVER_AN_AXIS = {"nn.softmax", "nn.log_softmax"}
_SCALAR_PRODUCTS = {"math.scalar_mul", "compat.v1.math.scalar_mul", "compat.v1.scalar_mul"}
_QUOTIENTS = {"math.truediv", "math.divide"}
_POOLS = {(1,): _L.GlobalAveragePooling1D, (1, 2): _L.GlobalAveragePooling2D}


def symbol_of(node: Node) -> str:
    """Keras' name for the TensorFlow function of a call (`math.add`); empty for a layer."""
    return getattr(node.layer, "symbol", None) or ""


def arguments_of(node: Node) -> dict[str, Any] | None:
    """The arguments of a function's call by name, with defaults; None if its signature does not fit."""
    try:
        bound = inspect.signature(node.layer.function).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    return dict(bound.arguments)


def all_tensors(values: object) -> bool:
    """Whether a call's argument is a list of tensors of the graph, without any constant."""
    return isinstance(values, list | tuple) and all(isinstance(value, Tensor) for value in values)


def arithmetic(node: Node, out: Rewriter) -> Any:
    """`a + b` of two tensors -> Add; `x / 255 - 0.5` -> Affine(scale=1, offset=-127.5, divisor=255)."""
    symbol = symbol_of(node)
    if symbol in {"math.negative", "nn.bias_add"}:
        return _one_sided(node, out, symbol)
    if symbol in _SCALAR_PRODUCTS:
        return _scalar_product(node, out)
    operands = _operands(node)
    if operands is None or symbol not in {*_MERGES, *_QUOTIENTS}:
        return None
    left, right = operands
    constants = [_constant(operand, out) for operand in operands]
    result = None
    if constants[1] is not None and isinstance(left, Tensor):
        result = _with_constant(node, out, left, constants[1], reversed_=False)
    elif constants[0] is not None and isinstance(right, Tensor):
        result = _with_constant(node, out, right, constants[0], reversed_=True)
    if result is None and symbol in _QUOTIENTS and isinstance(left, Tensor):
        result = _times_inverse(node, out, left, right)
    if result is not None or not (isinstance(left, Tensor) and isinstance(right, Tensor)):
        return result
    if symbol not in _MERGES or not (left.is_float and right.is_float) or _broadcast_differently(left, right):
        return None
    return out.call(_MERGES[symbol](name=node.layer.name), node.path, [left, right], shape=node.output().shape)


class _Constant(NamedTuple):
    """An operand that a rule can make part of a layer.

    Attributes:
        values: the operand's values.
        trainable: whether training changes them.
    """

    values: Any
    trainable: bool


def _constant(operand: object, out: Rewriter) -> _Constant | None:
    """A constant, or a weight that this call alone reads; None for any other tensor."""
    if not isinstance(operand, Tensor):
        return None if operand is None else _Constant(operand, trainable=False)
    layer = operand.producer.layer if operand.producer is not None else None
    if not isinstance(layer, LearnedTensor) or out.reads[operand] != 1 or not out.is_called_once(layer):
        return None
    if layer.regularizer is not None or layer.constraint is not None:
        return None  # an Affine has neither
    return _Constant(out.graph.weights_of(layer)[0], layer.trainable)


def _broadcast_differently(left: Tensor, right: Tensor) -> bool:
    # Keras' merge layers refuse two different known batch sizes; tensors made of weights have no batch axis.
    if left.shape and right.shape and len({left.shape[0], right.shape[0]} - {None}) > 1:
        return True
    # They broadcast differently: beside [N, T, C], a merge layer reads [N, C] as [N, 1, C], an operator as [1, N, C].
    return len(left.shape) != len(right.shape)


def _operands(node: Node) -> tuple[Any, Any] | None:
    values = [*node.args, *(value for name, value in node.kwargs.items() if name in {"x", "y"})]
    return (values[0], values[1]) if len(values) == 2 else None  # noqa: PLR2004 - the two sides of an operator


def _scalar_product(node: Node, out: Rewriter) -> Any:
    """`tf.math.scalar_mul(c, x)` with a constant c -> c * x."""
    arguments = arguments_of(node) or {}
    scalar, tensor = arguments.get("scalar"), arguments.get("x")
    if not isinstance(tensor, Tensor) or not (tensor.is_float and tensor.has_channel_axis):
        return None
    return None if channel_constant(scalar, tensor) is None else out.affine(node.path, tensor, np.asarray(scalar), 0.0)


def _times_inverse(node: Node, out: Rewriter, tensor: Tensor, divisor: Any) -> Any:
    """A quotient x / c, with c a constant or a tensor of weights, as x * (1 / c): TFLite divides in float only."""
    if not tensor.is_float or tensor.producer in out.weight_only:
        return None
    if isinstance(divisor, Tensor):
        if divisor.producer not in out.weight_only:
            return None
        layer = TFOpLambda(tf.math.reciprocal, name=f"{node.layer.name}_inverse")
        inverse: Any = out.call(layer, f"{node.path}_inverse", divisor)
        out.weight_only.add(inverse.producer)
    else:
        values = np.asarray(divisor, np.float32)
        if not np.all(values):
            return None
        inverse = 1.0 / values
    product = TFOpLambda(tf.math.multiply, name=node.layer.name)
    result = out.call(product, node.path, tensor, shape=node.output().shape)
    if result.producer is not None:
        result.producer.args = (tensor, inverse)
    return result


def _one_sided(node: Node, out: Rewriter, symbol: str) -> Any:
    """`-x`, `tf.nn.bias_add(x, b)` -> Affine; None if b is neither a constant nor a weight of this call alone."""
    tensor = node.inputs()[0]
    if not tensor.has_channel_axis:
        return None
    if symbol == "math.negative" and tensor.is_float:
        return out.affine(node.path, tensor, -1.0, 0.0)
    rest = [*node.args[1:], *(value for name, value in node.kwargs.items() if name == "bias")]
    bias = _constant(rest[0], out) if rest else None
    values = None if bias is None else channel_constant(bias.values, tensor)
    if bias is None or values is None:
        return None
    return out.affine(node.path, tensor, 1.0, values, trainable=bias.trainable)


def _with_constant(node: Node, out: Rewriter, tensor: Tensor, constant: _Constant, *, reversed_: bool) -> Any:
    """Arithmetic of a tensor and a constant per channel -> Affine; `reversed_`: the constant is the first operand."""
    takes = tensor.is_float and tensor.has_channel_axis and node.output().shape == tensor.shape
    values = channel_constant(constant.values, tensor) if takes else None
    # One trained weight for all channels would become one for each.
    if values is None or (constant.trainable and values.size != (tensor.channels or 1)):
        return None
    trainable = constant.trainable

    def affine(scale: npt.ArrayLike, offset: npt.ArrayLike, divisor: npt.ArrayLike = 1.0) -> Tensor:
        return out.affine(node.path, tensor, scale, offset, divisor, trainable=trainable)

    match symbol_of(node):
        case "math.add" | "__operators__.add":
            return affine(1.0, values)
        case "math.subtract":
            return affine(-1.0, values) if reversed_ else affine(1.0, -values)
        case "math.multiply":
            return affine(values, 0.0)
        case "math.truediv" | "math.divide" if not reversed_ and np.all(values != 0):
            return affine(1.0 / values, 0.0) if trainable else affine(1.0, 0.0, values)
    return None


def function_as_layer(node: Node, out: Rewriter) -> Any:
    """A TensorFlow function -> the equivalent layer: `tf.nn.relu6` -> Activation, `tf.concat` -> Concatenate."""
    symbol, inputs = symbol_of(node), node.inputs()
    arguments = [*node.args, *(value for name, value in node.kwargs.items() if name != "name")]
    constants = [value for value in arguments if not (value is None or tensors(value))]
    match symbol:
        case "nn.leaky_relu" if len(inputs) == 1:
            alpha = float(constants[0]) if constants else 0.2
            return out.call(_L.LeakyReLU(alpha, name=node.layer.name), node.path, inputs[0])
        case "math.square" if inputs[0].is_float:
            return out.call(_L.Multiply(name=node.layer.name), node.path, [inputs[0], inputs[0]])
        case "concat" if len(inputs) > 1 and len(constants) == 1:
            return _concatenation(node, out, arguments[0], int(constants[0]))
        case "math.reduce_mean" if inputs[0].is_float:
            return _mean(node, out, constants)
        case _ if symbol in _ACTIVATIONS and len(inputs) == 1 and _is_default(symbol, constants, inputs[0]):
            activation = keras.activations.get(_ACTIVATIONS[symbol])
            return emit_activation(node, out, inputs[0], activation, node.path)
    return None


def _is_default(symbol: str, constants: Sequence[Any], tensor: Tensor) -> bool:
    """Whether a function has its default arguments only; a softmax also the last axis, given by its number."""
    return not constants or (symbol in _OVER_AN_AXIS and _is_last_axis(constants, tensor))


def _is_last_axis(constants: Sequence[Any], tensor: Tensor) -> bool:
    return all(np.ndim(axis) == 0 and int(axis) in {-1, len(tensor.shape) - 1} for axis in constants)


def _concatenation(node: Node, out: Rewriter, parts: Any, axis: int) -> Any:
    # Concatenate accepts tensors only, no constants.
    if not all_tensors(parts) or not all(tensor.is_float for tensor in parts):
        return None
    return out.call(_L.Concatenate(axis, name=node.layer.name), node.path, parts, shape=node.output().shape)


def _mean(node: Node, out: Rewriter, extra: Sequence[npt.ArrayLike]) -> Any:
    """`tf.reduce_mean(x, axis, keepdims)` -> AxisMean or a global average pooling; None for other axes."""
    (tensor,) = node.inputs()
    # (axis, keepdims), by position or by name
    axes = extra[0] if extra else None
    keep = any(value is True for value in extra)
    if axes is None or isinstance(axes, bool):
        return None
    rank = len(tensor.shape)
    axes_to_reduce = tuple(sorted(int(axis) % rank for axis in np.ravel(axes)))
    if keep:
        return out.call(
            AxisMean(list(axes_to_reduce), name=node.layer.name), node.path, tensor, shape=node.output().shape
        )
    pool = _POOLS.get(axes_to_reduce)
    if pool is None or rank != len(axes_to_reduce) + 2:
        return None
    return out.call(pool(name=node.layer.name), node.path, tensor, shape=node.output().shape)


def without_addend(tensor: Tensor, out: Rewriter) -> tuple[Tensor, npt.NDArray[Any]]:
    """(x, c) of a tensor x + c with constants c >= 0, [channels] or [1]; (tensor, [0]) for any other tensor."""
    node = tensor.producer
    addend: Any = [0.0]
    if node is not None and isinstance(node.layer, Shift):
        addend = [node.layer.value]
    elif node is not None and isinstance(node.layer, Affine) and not node.layer.trainable:
        scale, offset = scale_and_offset(out.graph.weights_of(node.layer))
        addend = offset if np.all(scale == 1.0) else addend
    found = np.ravel(np.asarray(addend, np.float64))
    return (node.inputs()[0], found) if node is not None and np.all(found >= 0.0) else (tensor, np.zeros(1))
