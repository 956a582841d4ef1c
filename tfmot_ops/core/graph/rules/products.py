"""Replaces TensorFlow functions with a weight (`tf.matmul(x, w)`, `tf.nn.conv2d(x, w, ...)`) by Keras' layers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor, map_tensors, tensors
from tfmot_ops.core.graph.layers import Einsum, LearnedTensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.graph.rules.attention import summed_axes
from tfmot_ops.core.graph.rules.emitting import Emitter
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array

_L = keras.layers
_LOG = logging.getLogger(__name__)
#: Functions that only move the elements of a weight, or leave it as it is.
_MOVES = {"reshape", "expand_dims", "compat.v1.squeeze", "compat.v1.transpose", "linalg.matrix_transpose", "identity"}
_MOVES |= {"cast", "convert_to_tensor", "__operators__.getitem"}
#: Regularisers that do not depend on the weight's shape.
_ELEMENTWISE = (type(None), keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
_MATRIX = 2


class WeightOperand(NamedTuple):
    """A weight that a function reads.

    Attributes:
        values: the weight, in the shape in which the function reads it.
        trainable: whether training changes it.
        regularizer: its regulariser.
        constraint: its constraint.
    """

    values: Array
    trainable: bool = False
    regularizer: Any = None
    constraint: Any = None

    @property
    def may_be_reshaped(self) -> bool:
        """Whether regulariser and constraint do not depend on the weight's shape."""
        return isinstance(self.regularizer, _ELEMENTWISE) and self.constraint is None

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of the constructor of a layer that gets the weight under the attribute `name`."""
        rules = {f"{name}_regularizer": self.regularizer, f"{name}_constraint": self.constraint}
        return {"trainable": self.trainable, **rules}


def product(node: Node, out: Rewriter) -> Any:
    """A matrix product or convolution of a tensor with a weight or a constant -> Dense, Conv1D, Conv2D, ..."""
    make = _FORMS.get(symbol_of(node))
    if make is None:
        return None
    arguments = arguments_of(node)
    return None if arguments is None else make(node, out, arguments)


def weight_operand(value: object, out: Rewriter, *, computed: bool = False) -> WeightOperand | None:
    """The weight or constant that a function reads, also reshaped or transposed.

    Args:
        value: the function's argument.
        out: the rewriter.
        computed: whether a weight that is computed from trained weights (a standardised kernel) is replaced by its
            present values, which are trained from then on. Not where it has zeros, as a masked kernel has.

    Returns:
        None for a tensor that depends on the model's inputs, and for a weight that other calls read too.
    """
    if not isinstance(value, Tensor):
        array = None if value is None else np.asarray(value)
        return WeightOperand(array) if array is not None and np.issubdtype(array.dtype, np.floating) else None
    chain = _chain_of_weights(value, out)
    if not chain or not value.is_float:
        return None
    values: dict[Tensor, Any] = {}
    for node in chain:
        args, kwargs = map_tensors((node.args, node.kwargs), values.get)
        is_weight = isinstance(node.layer, LearnedTensor)
        result = tf.constant(out.graph.weights_of(node.layer)[0]) if is_weight else node.layer(*args, **kwargs)
        values |= zip(tensors(node.outputs), tf.nest.flatten(result), strict=True)
    weights = [node.layer for node in chain if isinstance(node.layer, LearnedTensor)]
    is_moved = all(isinstance(node.layer, LearnedTensor) or symbol_of(node) in _MOVES for node in chain)
    is_computed = any(weight.trainable for weight in weights) and not is_moved
    if is_computed and not (computed and np.all(values[value])):
        return None
    if is_computed:
        _LOG.warning("%s: its kernel is computed from weights; from now on the computed kernel is trained", out.origin)
    regularizer, constraint = (weights[0].regularizer, weights[0].constraint) if len(weights) == 1 else (None, None)
    if len(chain) > 1 and not (isinstance(regularizer, _ELEMENTWISE) and constraint is None):
        return None
    trainable = any(weight.trainable for weight in weights)
    return WeightOperand(np.asarray(values[value]), trainable, regularizer, constraint)


def _chain_of_weights(value: Tensor, out: Rewriter) -> list[Node]:
    """The calls that compute a tensor from weights alone, in order; empty if other calls read their results too."""
    chain: dict[Node, None] = {}
    waiting = [value]
    while waiting:
        node = waiting.pop().producer
        if node is None or node not in out.weight_only:
            return []
        chain[node] = None
        waiting += [] if isinstance(node.layer, LearnedTensor) else node.inputs()
    within = Counter(tensor for node in chain if not isinstance(node.layer, LearnedTensor) for tensor in node.inputs())
    within[value] += 1
    shared = any(isinstance(node.layer, LearnedTensor) and not out.is_called_once(node.layer) for node in chain)
    alone = not shared and all(
        out.reads[tensor] == within[tensor] for node in chain for tensor in tensors(node.outputs)
    )
    return [node for node in out.nodes if node in chain] if alone else []


def _dense(node: Node, out: Rewriter, tensor: object, kernel: WeightOperand | None) -> Any:
    """Emit a Dense of a tensor [..., C] with a kernel [C, units]."""
    if not isinstance(tensor, Tensor) or kernel is None or kernel.values.ndim != _MATRIX or not tensor.is_float:
        return None
    channels, units = kernel.values.shape
    result = node.output().shape
    if tensor.channels != channels or (*tensor.shape[:-1], units) != result:
        return None
    layer = _L.Dense(units, use_bias=False, name=node.layer.name, **kernel.arguments("kernel"))
    image = len(tensor.shape) == 4  # noqa: PLR2004 - [N, H, W, C], which `dense_on_image` makes a convolution
    if image and not kernel.may_be_reshaped:
        return None
    if image:
        layer = _L.Conv2D(units, 1, use_bias=False, name=node.layer.name, **kernel.arguments("kernel"))
    values = kernel.values[None, None] if image else kernel.values
    return out.call(layer, node.path, tensor, shape=result, weights=[np.asarray(values, np.float32)])


def _matmul(node: Node, out: Rewriter, arguments: dict[str, Any]) -> Any:
    """`tf.matmul(x, kernel)` -> Dense; None for transposed or sparse operands, except a transposed kernel."""
    flags = ("transpose_a", "adjoint_a", "adjoint_b", "a_is_sparse", "b_is_sparse")
    if any(arguments.get(flag) for flag in flags):
        return None
    kernel = weight_operand(arguments["b"], out)
    if kernel is not None and arguments.get("transpose_b") and kernel.values.ndim == _MATRIX:
        if not kernel.may_be_reshaped:
            return None
        kernel = kernel._replace(values=kernel.values.T)
    return _dense(node, out, arguments["a"], kernel)


def _tensordot(node: Node, out: Rewriter, arguments: dict[str, Any]) -> Any:
    """`tf.tensordot(x, kernel, axes)` over the last axis of x and the first of the kernel -> Dense."""
    tensor, axes = arguments["a"], arguments["axes"]
    kernel = weight_operand(arguments["b"], out)
    if not isinstance(tensor, Tensor) or kernel is None or isinstance(axes, Tensor):
        return None
    rank, axes = len(tensor.shape), np.asarray(axes)
    pairs = [[*range(rank - int(axes), rank)], [*range(int(axes))]] if axes.ndim == 0 else np.reshape(axes, (2, -1))
    summed = [[int(axis) % size for axis in side] for side, size in zip(pairs, (rank, kernel.values.ndim), strict=True)]
    if len(summed[0]) != 1 or kernel.values.ndim != _MATRIX or 0 in summed[0] or not tensor.is_float:
        return None
    if summed[1] == [1] and kernel.may_be_reshaped:
        kernel = kernel._replace(values=kernel.values.T)
    elif summed[1] == [1]:
        return None
    # The summed axis comes last; the order of the others is that of the result.
    others = [axis for axis in range(1, rank) if axis not in summed[0]]
    moved = (
        tensor if summed[0] == [rank - 1] else Emitter(node, out).permute("axis_last", tensor, (*others, *summed[0]))
    )
    return _dense(node, out, moved, kernel)


def _einsum(node: Node, out: Rewriter, arguments: dict[str, Any]) -> Any:
    operands = arguments.get("inputs", ())
    if len(operands) != 2 or not isinstance(operands[0], Tensor):  # noqa: PLR2004 - a tensor and its kernel
        return None
    equation, kernel = str(arguments["equation"]), weight_operand(operands[1], out)
    one_axis = kernel is not None and kernel.values.ndim == _MATRIX
    fits = one_axis and "->" in equation and summed_axes(equation, len(operands[0].shape)) == 1
    return _dense(node, out, operands[0], kernel) if fits else None


def einsum(node: Node, out: Rewriter) -> Any:
    """`tf.einsum` of tensors -> a layer that computes it."""
    arguments = arguments_of(node) if symbol_of(node) == "einsum" else None
    if arguments is None or not all(
        isinstance(operand, Tensor) and operand.is_float for operand in arguments["inputs"]
    ):
        return None
    layer = Einsum(str(arguments["equation"]), name=node.layer.name)
    return out.call(layer, node.path, list(arguments["inputs"]), shape=node.output().shape)


def _convolution(node: Node, out: Rewriter, arguments: dict[str, Any]) -> Any:
    """`tf.nn.conv1d`, `tf.nn.conv2d`, `tf.nn.convolution` with a kernel [..., C_in, C_out] -> Conv1D, Conv2D."""
    form = _form(out, arguments)
    if form is None:
        return None
    tensor, kernel, places = form
    filters = kernel.values.shape[-1]
    layer_class = {3: _L.Conv1D, 4: _L.Conv2D}.get(len(tensor.shape))
    groups = (tensor.channels or 0) // kernel.values.shape[-2]
    if layer_class is None or kernel.values.ndim != len(tensor.shape) or groups != 1:
        return None
    sizes = kernel.values.shape[:-2]
    layer = layer_class(filters, sizes, use_bias=False, name=node.layer.name, **places, **kernel.arguments("kernel"))
    weights = [np.asarray(kernel.values, np.float32)]
    return out.call(layer, node.path, tensor, shape=node.output().shape, weights=weights)


def _depthwise(node: Node, out: Rewriter, arguments: dict[str, Any]) -> Any:
    """`tf.nn.depthwise_conv2d` with a kernel [kh, kw, C, multiplier] -> DepthwiseConv2D."""
    form = _form(out, arguments)
    if form is None or len(form[0].shape) != 4:  # noqa: PLR2004 - [N, H, W, C]
        return None
    tensor, kernel, places = form
    sizes, multiplier = kernel.values.shape[:2], kernel.values.shape[3]
    layer = _L.DepthwiseConv2D(
        sizes,
        depth_multiplier=multiplier,
        use_bias=False,
        name=node.layer.name,
        **places,
        **kernel.arguments("depthwise"),
    )
    weights = [np.asarray(kernel.values, np.float32)]
    return out.call(layer, node.path, tensor, shape=node.output().shape, weights=weights)


def _form(out: Rewriter, arguments: dict[str, Any]) -> tuple[Tensor, WeightOperand, dict[str, Any]] | None:
    """(input, kernel, arguments `strides`, `padding`, `dilation_rate`) of a convolution that Keras' layers can compute.

    TensorFlow's versions of these functions name their arguments differently.
    """

    def first(*names: str) -> Any:
        return next((arguments[name] for name in names if arguments.get(name) is not None), None)

    tensor, kernel = first("input", "value"), weight_operand(first("filters", "filter"), out, computed=True)
    padding, layout = first("padding"), first("data_format")
    plain = isinstance(padding, str) and padding.upper() in {"SAME", "VALID"} and layout in {None, "NHWC", "NWC"}
    if not isinstance(tensor, Tensor) or kernel is None or not plain or not tensor.is_float:
        return None
    axes = len(tensor.shape) - 2
    strides, rates = (
        _per_axis(first(*names), axes) for names in (("strides", "stride"), ("dilations", "dilation_rate", "rate"))
    )
    if strides is None or rates is None or (max(strides) > 1 and max(rates) > 1):
        return None
    return tensor, kernel, {"strides": strides, "padding": padding.lower(), "dilation_rate": rates}


def _per_axis(value: Any, axes: int) -> tuple[int, ...] | None:
    """Strides or dilations for each spatial axis, from one number, one per axis, or one per axis of [N, ..., C]."""
    numbers = [1] if value is None else [int(number) for number in np.ravel(value)]
    if len(numbers) == axes + 2:
        return tuple(numbers[1:-1]) if numbers[0] == numbers[-1] == 1 else None
    return tuple(numbers * axes) if len(numbers) == 1 else tuple(numbers) if len(numbers) == axes else None


#: TensorFlow's name of a function -> (call, rewriter, arguments by name) -> the new output, or None.
_FORMS: dict[str, Callable[[Node, Rewriter, dict[str, Any]], Any]] = {
    "linalg.matmul": _matmul,
    "tensordot": _tensordot,
    "einsum": _einsum,
    **dict.fromkeys(("nn.conv1d", "compat.v1.nn.conv1d", "nn.conv2d", "compat.v1.nn.conv2d"), _convolution),
    **dict.fromkeys(("nn.convolution", "compat.v1.nn.convolution"), _convolution),
    **dict.fromkeys(("nn.depthwise_conv2d", "compat.v1.nn.depthwise_conv2d"), _depthwise),
}
