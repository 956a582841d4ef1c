"""Padding with a constant other than 0, rewritten to forms that TFLite computes on integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.new_values import pad_constant
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import TFOpLambda
from tfmot_ops.core.keras.types import Args, Function

_L = keras.layers
#: Padding values at or below this number count as minus infinity: the lowest float16, -65504.
_MINUS_INFINITY = float(np.finfo(np.float16).min)
_POOLS = (_L.MaxPooling1D, _L.MaxPooling2D)
_GLOBAL_POOLS = (_L.GlobalMaxPooling1D, _L.GlobalMaxPooling2D)


def pad_with_minus_infinity(node: Node, out: Rewriter) -> Any:
    """`tf.pad(x, ..., constant_values=-1e9)` before max pooling -> `tf.pad(x, ..., mode="SYMMETRIC")`.

    Example, windows of 3: max(-1e9, a, b) = max(a, a, b). The mirrored a is in the same window as a itself, so every
    maximum stays equal. With -1e9 in it, an int8 range would have no level left for the values of x.
    """
    paddings = _paddings(node)
    if paddings is None:
        return None
    (tensor,) = node.inputs()
    constant = pad_constant(node)
    if isinstance(constant, Tensor) or np.ndim(constant) or not float(constant) <= _MINUS_INFINITY:
        return None
    readers = out.graph.readers().get(node.output(), [])
    fits = all(size is None or max(pair) <= size for size, pair in zip(tensor.shape, paddings, strict=True))
    if not (fits and readers) or not all(_is_maximum(reader, paddings) for reader in readers):
        return None
    if any(leaf is node.output() for leaf in tf.nest.flatten(out.graph.outputs)):
        return None
    return _function(node, out, tf.compat.v1.pad, (tensor, paddings, "SYMMETRIC"), node.path)


def pad_by_sum(node: Node, out: Rewriter) -> Any:
    """`tf.pad(x, constant_values=c)` -> `tf.pad(x)` + border, where border is c outside x and 0 inside.

    TFLite pads int16 tensors with zeros only.
    """
    paddings, constant = _paddings(node), pad_constant(node)
    if paddings is None or isinstance(constant, Tensor) or np.ndim(constant) or not np.any(constant):
        return None
    (tensor,) = node.inputs()
    padded = [any(pair) for pair in paddings]
    sizes = [(size or 0) if is_padded else 1 for size, is_padded in zip(tensor.shape, padded, strict=True)]
    if not all(sizes):
        return None
    border = np.pad(np.zeros(sizes, np.float32), paddings, constant_values=float(constant))
    zeros = _function(node, out, tf.compat.v1.pad, (tensor, paddings), f"{node.path}_zeros")
    return _function(node, out, tf.add, (zeros, border), node.path)


def _paddings(node: Node) -> list[list[int]] | None:
    """[before, after] for each axis of a call of `tf.pad`; None for another call, or if the paddings are a tensor."""
    if getattr(node.layer, "symbol", "") != "compat.v1.pad" or not node.output().is_float:
        return None
    value = node.args[1] if len(node.args) > 1 else node.kwargs.get("paddings")
    leaves = tf.nest.flatten(value)
    if value is None or any(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    found: list[list[int]] = np.asarray(value).tolist()
    return found


def _is_maximum(reader: Node, paddings: list[list[int]]) -> bool:
    """Whether a call is a max pooling whose windows are at least twice as wide as the padding on each side.

    Such a window that reaches into the padding also contains the values that are mirrored there.
    """
    window, (batch, *sides, channels) = _window(reader), paddings
    if window is None or any((*batch, *channels)):
        return False
    return all(2 * max(pair) <= size for pair, size in zip(sides, np.broadcast_to(window, len(sides)), strict=True))


def _window(reader: Node) -> Any:
    """Window sizes of a max pooling with padding="valid", infinite for a global pooling; None for any other call."""
    layer = reader.layer
    if isinstance(layer, _GLOBAL_POOLS) and layer.data_format == "channels_last":
        return np.inf
    if type(layer) in _POOLS and (layer.padding, layer.data_format) == ("valid", "channels_last"):
        return layer.pool_size
    if getattr(layer, "symbol", "") != "nn.max_pool2d":
        return None
    arguments = (
        dict(zip(("input", "ksize", "strides", "padding", "data_format"), reader.args, strict=False)) | reader.kwargs
    )
    sizes = np.ravel(arguments["ksize"])
    plain = arguments.get("padding") == "VALID" and arguments.get("data_format", "NHWC") == "NHWC"
    return sizes[1:3] if plain and len(sizes) == 4 else sizes if plain else None  # noqa: PLR2004 - [N, H, W, C]


def _function(node: Node, out: Rewriter, function: Function, args: Args, path: str) -> Tensor:
    """Emit a call of a TensorFlow function whose result has the shape of `node`'s output."""
    layer = out.shared_layer(node.layer, path, lambda: TFOpLambda(function, name=path.rsplit("/", 1)[-1]))
    result = out.call(layer, path, args[0], shape=node.output().shape)
    if result.producer is not None:
        result.producer.args = args
    return result
