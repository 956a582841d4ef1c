"""Emits the calls that replace one call: small steps of which TFLite has an int8 form, each with a range of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.layers import Affine, AxisMean, LearnedTensor, MaskedScores
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import TFOpLambda
from tfmot_ops.core.keras.types import Args, Array, Function, Kwargs

_L = keras.layers
#: Size of each axis; None where it is unknown.
Shape = tuple[int | None, ...]


class Emitter:
    """Emits the calls that replace one call; makes one layer per part, so that a shared layer stays shared."""

    def __init__(self, node: Node, out: Rewriter) -> None:
        self.node = node
        self.out = out

    def call(
        self,
        part: str,
        make: Callable[[str], object],
        inputs: object,
        shape: tuple[int | None, ...],
        weights: list[Array] | None = None,
    ) -> Tensor:
        """Emit a call of the layer `make(name)`; `part` becomes the suffix of the name and of the path."""
        suffix = f"_{part}" if part else ""
        layer = self.out.shared_layer(
            self.node.layer, part or "projection", lambda: make(f"{self.node.layer.name}{suffix}")
        )
        return self.out.call(layer, f"{self.node.path}{suffix}", inputs, shape=shape, weights=weights)

    def dense(self, part: str, tensor: Tensor, weights: list[Array], *regularizers: object) -> Tensor:
        """A Dense layer with these weights, its kernel [channels, units]."""
        units, (of_kernel, of_bias) = weights[0].shape[1], regularizers
        trainable = self.node.layer.trainable
        return self.call(part, lambda name: _L.Dense(
            units, use_bias=len(weights) > 1, kernel_regularizer=of_kernel, bias_regularizer=of_bias, name=name,
            trainable=trainable,
        ), tensor, (*tensor.shape[:-1], units), weights)  # fmt: skip

    def product(self, part: str, tensor: Tensor, matrix: Array) -> Tensor:
        """Emit a product [..., C] with a constant matrix [C, units], which training does not change."""
        units = matrix.shape[1]
        layers = {4: lambda name: _L.Conv2D(units, 1, use_bias=False, trainable=False, name=name)}
        dense = lambda name: _L.Dense(units, use_bias=False, trainable=False, name=name)  # noqa: E731 - for `get`
        make = layers.get(len(tensor.shape), dense)
        values = matrix[None, None] if len(tensor.shape) in layers else matrix
        return self.call(part, make, tensor, (*tensor.shape[:-1], units), [np.ascontiguousarray(values)])

    def learned(self, part: str, like: Tensor, value: Array) -> Tensor:
        """Emit a weight of the replaced layer as a tensor of the graph; `like` is any tensor before it."""
        make = lambda name: LearnedTensor(  # noqa: E731 - used once, below
            np.shape(value), name=name, trainable=self.node.layer.trainable
        )
        return self.call(part, make, like, np.shape(value), [np.asarray(value, np.float32)])

    def scale(self, part: str, tensor: Tensor, factor: float) -> Tensor:
        """Emit a frozen multiplication by `factor`, which export folds into the projection before it."""
        ones = np.ones(tensor.channels or 1, np.float32)
        return self.call(part, lambda name: Affine(name=name), tensor, tensor.shape, [ones * factor, ones * 0.0, ones])

    def reshape(self, part: str, tensor: Tensor, shape: tuple[int | None, ...]) -> Tensor:
        """Emit a Reshape, unless the tensor has the shape already; one size besides the batch may be None."""
        if shape == tensor.shape:
            return tensor
        sizes = [-1 if size is None else size for size in shape[1:]]
        return self.call(part, lambda name: _L.Reshape(sizes, name=name), tensor, shape)

    def permute(self, part: str, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Emit a Permute; `axes` counts from 1, as axis 0 is the batch."""
        shape = (tensor.shape[0], *(tensor.shape[axis] for axis in axes))
        return self.call(part, lambda name: _L.Permute(axes, name=name), tensor, shape)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout: float,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """softmax(query key^T) value over the last two axes; see `MaskedScores` for mask and causal."""
        scores = self.matmul("scores", query, key, transpose=True)
        return self.weigh(scores, value, dropout, mask=mask, causal=causal)

    def weigh(
        self, scores: Tensor, value: Tensor, dropout: float, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """softmax(scores) value over the last two axes; see `MaskedScores` for mask and causal."""
        if mask is not None or causal:
            inputs = scores if mask is None else [scores, mask]
            scores = self.call("masked", lambda name: MaskedScores(causal=causal, name=name), inputs, scores.shape)
        weights = self.call("softmax", lambda name: _L.Softmax(name=name), scores, scores.shape)
        if dropout:
            weights = self.call("dropout", lambda name: _L.Dropout(dropout, name=name), weights, weights.shape)
        return self.matmul("mixed", weights, value, transpose=False)

    def matmul(self, part: str, left: Tensor, right: Tensor, *, transpose: bool) -> Tensor:
        """Emit the matrix product over the last two axes of two tensors."""
        shape = (*left.shape[:-1], right.shape[-2] if transpose else right.channels)
        return self.function(part, tf.linalg.matmul, (left, right), {"transpose_b": transpose}, shape=shape)

    def function(
        self, part: str, function: Function, args: Args, kwargs: Kwargs, *, shape: Shape, dtype: str = ""
    ) -> Tensor:
        """Emit a call of a TensorFlow function; an empty `dtype` stands for that of the first argument."""
        result = self.call(part, lambda name: TFOpLambda(function, name=name), args[0], shape)
        result.dtype = dtype or result.dtype
        if result.producer is not None:
            result.producer.args, result.producer.kwargs = args, kwargs
        return result

    def merge(self, part: str, kind: Callable[..., object], left: Tensor, right: Tensor) -> Tensor:
        """Emit a sum, difference or product of two tensors of one rank; sizes of 1 are broadcast."""
        shape = tuple(other if size == 1 else size for size, other in zip(left.shape, right.shape, strict=True))
        return self.call(part, lambda name: kind(name=name), [left, right], shape)

    def squared(self, part: str, tensor: Tensor) -> Tensor:
        """Emit x * x."""
        return self.merge(part, _L.Multiply, tensor, tensor)

    def mean(self, part: str, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """Emit the mean over some axes, whose sizes become 1."""
        return self.call(part, lambda name: AxisMean(list(axes), name=name), tensor, reduced(tensor, axes))

    def table(self, part: str, tensor: Tensor, *steps: tuple[Any, ...]) -> Tensor:
        """Emit an elementwise function, which becomes a lookup table in the file.

        Args:
            part: see `call`.
            tensor: what the first step reads.
            steps: the functions in order, each as (name, further arguments): ("math.pow", 0.5) is the root.
        """
        recorded = [
            {"function": name, "args": [{"value": place}, *arguments], "kwargs": {}}
            for place, (name, *arguments) in enumerate(steps)
        ]
        return self.call(part, lambda name: Pointwise(recorded, name=name), tensor, tensor.shape)

    def squeeze(self, part: str, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """Emit a call that drops axes of size 1."""
        shape = tuple(size for axis, size in enumerate(tensor.shape) if axis not in axes)
        return self.function(part, tf.compat.v1.squeeze, (tensor,), {"axis": list(axes)}, shape=shape)


def reduced(tensor: Tensor, axes: Sequence[int]) -> Shape:
    """The shape of a tensor after a reduction over some axes, which stay with size 1."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(tensor.shape))
