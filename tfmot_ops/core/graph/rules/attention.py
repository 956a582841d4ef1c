"""Attention: projections become Dense layers, products of two activations become `tf.linalg.matmul`.

Equations: Vaswani et al. 2017 (arXiv:1706.03762), as tf_keras computes them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor, tensors
from tfmot_ops.core.graph.layers import MaskedScores
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.activations import with_activation
from tfmot_ops.core.graph.rules.emitting import Emitter
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Array

_L = keras.layers
#: [N, T, channels]
_RANK = 3


def einsum_dense(node: Node, out: Rewriter) -> Any:
    """EinsumDense over the last axes -> Reshape, Dense, Reshape.

    Example: "abc,cde->abde" on [N, T, C] -> Dense(d * e), then a reshape to [N, T, d, e].
    """
    layer = node.layer
    if type(layer) is not _L.EinsumDense:
        return None
    (tensor,) = node.inputs()
    kernel, *bias = out.graph.weights_of(layer)
    summed = summed_axes(layer.equation, len(tensor.shape))
    if not summed or any(array.shape != kernel.shape[summed:] for array in bias):
        return None
    kept, shape = tensor.shape[:-summed], kernel.shape[summed:]
    if not shape or kept[1:].count(None) > 1:
        return None
    emit = Emitter(node, out)
    channels = math.prod(kernel.shape[:summed])
    rows = emit.reshape("rows", tensor, (*kept, channels))
    weights = [np.reshape(kernel, (channels, -1)), *(np.ravel(array) for array in bias)]
    result = emit.dense("", rows, weights, layer.kernel_regularizer, layer.bias_regularizer)
    return with_activation(node, out, emit.reshape("columns", result, (*kept, *shape)), layer.activation)


def summed_axes(equation: str, rank: int) -> int:
    """How many last axes of the input the equation sums over: 1 for "abc,cd->abd"; 0 if no Dense can compute it."""
    operands, result = equation.replace(" ", "").replace("...", "").split("->")
    read, kernel = operands.split(",")
    count = next((n for n in range(len(read), 0, -1) if kernel.startswith(read[-n:])), 0)
    fits = 0 < count < rank and result == read[:-count] + kernel[count:]
    # Every letter may occur once: a repeated letter would take a diagonal.
    return count if fits and len(set(read + kernel[count:])) == len(read + kernel[count:]) else 0


def multi_head_attention(node: Node, out: Rewriter) -> Any:
    """MultiHeadAttention over one axis -> Dense, softmax(q k / sqrt(d)) v, Dense; see `MaskedScores` for its masks."""
    layer = node.layer
    if type(layer) is not _L.MultiHeadAttention:
        return None
    config, inputs = layer.get_config(), _query_value_key(node, masks=True)
    if inputs is None or config["activity_regularizer"] or not isinstance(config["output_shape"] or 0, int):
        return None
    query, value, key = inputs
    heads, emit = config["num_heads"], Emitter(node, out)
    weights = iter(out.graph.weights_of(layer))

    def dense(part: str, tensor: Tensor, axes: int) -> Tensor:
        """One projection as a Dense; the first `axes` axes of Keras' kernel are its input channels."""
        kernel = next(weights)
        values = [np.reshape(kernel, (math.prod(kernel.shape[:axes]), -1))]
        values += [np.ravel(next(weights))] if config["use_bias"] else []
        regularizers = (*private.projection_regularizers(layer),)
        return emit.dense(part, tensor, values, *regularizers)

    def split(part: str, tensor: Tensor) -> Tensor:
        """[N, T, heads * channels] -> [N, heads, T, channels]."""
        batch, size, channels = tensor.shape
        parted = emit.reshape(f"{part}_heads", tensor, (batch, size, heads, (channels or 0) // heads))
        return emit.permute(f"{part}_by_head", parted, (2, 1, 3))

    projected = dense("query", query, 1)
    # Keras stores the weights in the order query, key, value, output.
    keys, values = dense("key", key, 1), dense("value", value, 1)
    scaled = emit.scale("scaled", projected, 1.0 / math.sqrt(config["key_dim"]))
    heads_of = split("query", scaled), split("key", keys), split("value", values)
    causal = bool(node.kwargs.get("use_causal_mask"))
    mixed = emit.attend(*heads_of, config["dropout"], mask=_mask(node, emit), causal=causal)
    batch, _, size, channels = mixed.shape
    by_step = emit.permute("by_step", mixed, (2, 1, 3))
    return dense("", emit.reshape("joined", by_step, (batch, size, heads * (channels or 0))), 2)


def attention(node: Node, out: Rewriter) -> Any:
    """Attention, AdditiveAttention without padding masks -> softmax(scores) v."""
    layer = node.layer
    if type(layer) not in {_L.Attention, _L.AdditiveAttention}:
        return None
    inputs = _query_value_key(node, masks=True)
    causal = bool(layer.causal or node.kwargs.get("use_causal_mask"))
    if inputs is None or (causal and not all(tensor.shape[1] for tensor in inputs)):
        return None
    query, value, key = inputs
    emit, weights = Emitter(node, out), list(out.graph.weights_of(layer))
    if type(layer) is _L.Attention and layer.score_mode == "dot":
        scores = emit.matmul("scores", query, key, transpose=True)
        scores = _times_learned(emit, "scores_scaled", scores, weights[0]) if layer.use_scale else scores
    else:
        scores = _additive_scores(emit, query, key, weights)
    return emit.weigh(scores, value, float(layer.dropout), causal=causal)


def _additive_scores(emit: Emitter, query: Tensor, key: Tensor, weights: list[Array]) -> Tensor:
    """Emit the sum over c of w[c] * tanh(query[t, c] + key[s, c]), for all pairs t and s: [N, T, S].

    Attention(score_mode="concat") has one number in place of w, and one that scales the sum within the tanh.
    """
    layer, (batch, steps, channels), read = emit.node.layer, query.shape, key.shape[1]
    by_row = emit.function("query_rows", tf.expand_dims, (query,), {"axis": 2}, shape=(batch, steps, 1, channels))
    by_column = emit.function("key_columns", tf.expand_dims, (key,), {"axis": 1}, shape=(batch, 1, read, channels))
    pairs = emit.merge("pairs", _L.Add, by_row, by_column)
    additive = type(layer) is _L.AdditiveAttention
    if layer.use_scale and not additive:
        pairs = _times_learned(emit, "pairs_scaled", pairs, weights[0])
    bent = emit.call("tanh", lambda name: _L.Activation("tanh", name=name), pairs, pairs.shape)
    if layer.use_scale and additive:
        columns = emit.dense("sums", bent, [np.reshape(weights[0], (-1, 1))], None, None)
        return emit.squeeze("scores", columns, [3])
    sums = emit.function("sums", tf.reduce_sum, (bent,), {"axis": 3}, shape=pairs.shape[:-1])
    return sums if additive else _times_learned(emit, "scores", sums, weights[-1])


def _times_learned(emit: Emitter, part: str, tensor: Tensor, weight: Array) -> Tensor:
    """Emit the product with one learned number."""
    factor = emit.learned(f"{part}_factor", tensor, weight)
    return emit.function(part, tf.multiply, (tensor, factor), {}, shape=tensor.shape)


def _query_value_key(node: Node, *, masks: bool = False) -> tuple[Tensor, Tensor, Tensor] | None:
    """The three inputs, each [N, T, channels]; None for a call with other arguments, or one that returns its scores.

    Args:
        node: the call.
        masks: whether the arguments `attention_mask` [N, T, S] and `use_causal_mask` are allowed, given by name.
    """
    found = _named_inputs(node)
    allowed = {"attention_mask", "use_causal_mask", "training"} if masks else {"training"}
    kwargs = {name: value for name, value in node.kwargs.items() if name not in allowed}
    arguments = [leaf for leaf in tf.nest.flatten((node.args, kwargs)) if not (leaf is None or leaf is False)]
    has_others = len(arguments) != len(found) or (masks and not _is_mask_known(node, list(found.values())))
    if has_others or not {"query", "value"} <= found.keys() or len(tensors(node.outputs)) != 1:
        return None
    inputs = found["query"], found["value"], found.get("key", found["value"])
    plain = all(len(tensor.shape) == _RANK and tensor.channels and tensor.is_float for tensor in inputs)
    return inputs if plain else None


def _is_mask_known(node: Node, inputs: list[Tensor]) -> bool:
    """Whether a call's masks are a tensor [N, T, S] of integers or bools, and a causal one of known size, or none."""
    mask = node.kwargs.get("attention_mask")
    fits = mask is None or (isinstance(mask, Tensor) and len(mask.shape) == _RANK and not mask.is_float)
    if not node.kwargs.get("use_causal_mask"):
        return fits
    return fits and all(len(tensor.shape) == _RANK and tensor.shape[1] for tensor in inputs)


def _mask(node: Node, emit: Emitter) -> Tensor | None:
    """The argument `attention_mask` [N, T, S] as [N, 1, T, S], one for all heads; None without one."""
    mask = node.kwargs.get("attention_mask")
    if mask is None:
        return None
    batch, *sizes = mask.shape
    by_head = emit.function("mask_by_head", tf.expand_dims, (mask,), {"axis": 1}, shape=(batch, 1, *sizes))
    if mask.dtype == "bool":
        return by_head
    return emit.function("mask_as_bool", tf.cast, (by_head,), {"dtype": tf.bool}, shape=by_head.shape, dtype="bool")


def masked_softmax(node: Node, out: Rewriter) -> Any:
    """Softmax over the last axis with a mask of type bool -> MaskedScores, Softmax."""
    mask = node.kwargs.get("mask")
    tensor = node.args[0] if node.args else None
    if type(node.layer) is not _L.Softmax or not isinstance(mask, Tensor) or not isinstance(tensor, Tensor):
        return None
    if mask.dtype != "bool" or node.layer.axis != -1 or len(mask.shape) != len(tensor.shape):
        return None
    emit = Emitter(node, out)
    scores = emit.call("masked", lambda name: MaskedScores(name=name), [tensor, mask], tensor.shape)
    return emit.call("", lambda name: _L.Softmax(name=name), scores, scores.shape)


def _named_inputs(node: Node) -> dict[str, Tensor]:
    """The tensors among `query`, `value` and `key`, given by position, in a list, or by name."""
    names = ("query", "value", "key")
    first = node.args[0]
    by_position = first if isinstance(first, list | tuple) else node.args
    arguments = dict(zip(names, by_position, strict=False)) | {n: node.kwargs[n] for n in names if n in node.kwargs}
    return {name: tensor for name, tensor in arguments.items() if isinstance(tensor, Tensor)}
