"""Pooling functions over one to three axes (`tf.nn.max_pool1d`, `tf.nn.pool`) as Keras' layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of
from tfmot_ops.core.graph.rules.volumes import Windows, over_volume
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
#: Function -> kind of pooling; `tf.nn.pool` says it in an argument.
_POOLS = {
    **dict.fromkeys(("nn.max_pool1d", "nn.max_pool"), "MAX"),
    "nn.max_pool3d": "MAX",
    **dict.fromkeys(("nn.avg_pool1d", "nn.avg_pool3d"), "AVG"),
    **dict.fromkeys(("nn.pool", "compat.v1.nn.pool"), None),
}
_LAYERS = {
    ("MAX", 1): _L.MaxPooling1D,
    ("AVG", 1): _L.AveragePooling1D,
    ("MAX", 2): _L.MaxPooling2D,
    ("AVG", 2): _L.AveragePooling2D,
    # Over each of the three axes in turn.
    ("MAX", 3): _L.MaxPooling2D,
    ("AVG", 3): _L.AveragePooling2D,
}
_VOLUME = 3


def pool(node: Node, out: Rewriter) -> Any:
    """A pooling function of [N, T, C], [N, H, W, C] or [N, D, H, W, C] -> MaxPooling1D, AveragePooling2D, ..."""
    arguments = arguments_of(node) if symbol_of(node) in _POOLS else None
    tensor = None if arguments is None else arguments.get("input")
    if arguments is None or not isinstance(tensor, Tensor) or not tensor.is_float:
        return None
    axes = len(tensor.shape) - 2
    make = _LAYERS.get((_POOLS[symbol_of(node)] or str(arguments.get("pooling_type")).upper(), axes))
    size = _sizes(arguments.get("ksize", arguments.get("window_shape")), axes)
    strides = _sizes(1 if arguments.get("strides") is None else arguments["strides"], axes)
    padding, layout = arguments.get("padding"), arguments.get("data_format")
    dilated = any(
        np.any(np.asarray(arguments[name]) != 1) for name in ("dilations", "dilation_rate") if arguments.get(name)
    )
    plain = isinstance(padding, str) and layout in {None, "NWC", "NHWC", "NDHWC"} and not dilated
    if make is None or size is None or strides is None or not plain:
        return None
    if axes == _VOLUME:
        return over_volume(node, out, make, Windows(size, strides, str(padding).lower()))
    layer = make(size, strides=strides, padding=str(padding).lower(), name=node.layer.name)
    return out.call(layer, node.path, tensor, shape=node.output().shape)


def _sizes(value: Any, axes: int) -> list[int] | None:
    """One number for each pooled axis, from one number, one for each of them, or one for each axis of the tensor."""
    numbers = [int(number) for number in np.ravel(value)]
    if len(numbers) == axes + 2:
        return numbers[1:-1] if numbers[0] == numbers[-1] == 1 else None
    return numbers * axes if len(numbers) == 1 else numbers if len(numbers) == axes else None
