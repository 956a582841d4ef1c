"""Patches of images, for which TFLite has no operation: as space-to-depth, or as a convolution that copies values."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import TFOpLambda

#: Most values of a patch that a convolution copies; its kernel has the square of this number of weights.
_MOST_RESULTS = 512
_PATCHES = {"image.extract_patches", "compat.v1.image.extract_image_patches", "compat.v1.extract_image_patches"}


def patches(node: Node, out: Rewriter) -> Any:
    """`tf.image.extract_patches` of [N, H, W, C] -> [N, H', W', kh * kw * C]."""
    arguments = arguments_of(node) if symbol_of(node) in _PATCHES else None
    tensor = None if arguments is None else arguments.get("images")
    if arguments is None or not isinstance(tensor, Tensor) or not tensor.is_float or None in tensor.shape[1:]:
        return None
    size, strides, rates = (
        _two(arguments.get(name, arguments.get(f"k{name}"))) for name in ("sizes", "strides", "rates")
    )
    padding = str(arguments["padding"]).upper()
    if size is None or strides is None or rates is None:
        return None
    height, width = (int(axis or 0) for axis in tensor.shape[1:3])
    tiles = size == strides and rates == (1, 1) and padding == "VALID" and size[0] == size[1]
    if tiles and size[0] > 1 and height % size[0] == width % size[1] == 0:
        call = TFOpLambda(tf.nn.space_to_depth, name=node.layer.name)
        result = out.call(call, node.path, tensor, shape=node.output().shape)
        if result.producer is not None:
            result.producer.kwargs = {"block_size": size[0]}
            result.producer.args = (tensor,)
        return result
    return _by_convolution(
        node, out, tensor, size, {"strides": strides, "dilation_rate": rates, "padding": padding.lower()}
    )


def _by_convolution(node: Node, out: Rewriter, tensor: Tensor, size: tuple[int, int], places: dict[str, Any]) -> Any:
    """A convolution whose kernel has a single 1 for each result: int8 holds 0 and 1 exactly."""
    if max(places["strides"]) > 1 and max(places["dilation_rate"]) > 1:
        return None  # Keras' layers refuse both together
    channels = tensor.channels or 0
    results = size[0] * size[1] * channels
    if results > _MOST_RESULTS:
        return None
    kernel = np.eye(results, dtype=np.float32).reshape(*size, channels, results)
    layer = keras.layers.Conv2D(results, size, use_bias=False, trainable=False, name=node.layer.name, **places)
    return out.call(layer, node.path, tensor, shape=node.output().shape, weights=[kernel])


def _two(numbers: Any) -> tuple[int, int] | None:
    """The middle two of [1, height, width, 1]; None for anything else."""
    values = [int(number) for number in np.ravel(numbers)] if numbers is not None else []
    return (values[1], values[2]) if len(values) == 4 and values[0] == values[3] == 1 else None  # noqa: PLR2004
