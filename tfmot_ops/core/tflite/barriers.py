"""Calls that stay in float in a graph that the converter quantises: it must not spread ranges over them.

Used by `emit` for QAT models. For PTQ, `kept_float` names the operations that the converter leaves in float.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.added_losses import without_added_losses
from tfmot_ops.core.keras.batches import with_zero_state
from tfmot_ops.core.keras.types import Args, Kwargs, Layer, TensorLike

#: Operations whose input and output the converter ties to one range, even if both have a range of their own.
_RANGE_TYING_OPS = {
    *("Reshape", "Transpose", "Squeeze", "ExpandDims", "Identity", "StopGradient", "BroadcastTo", "Tile", "Roll"),
    *("Pad", "PadV2", "MirrorPad", "Slice", "StridedSlice", "Split", "SplitV", "Pack", "Unpack", "ConcatV2"),
    "ReverseV2",
    *("Gather", "GatherV2", "GatherNd", "TopKV2", "Select", "SelectV2", "ReverseSequence", "ScatterNd"),
    *("ResizeBilinear", "ResizeNearestNeighbor", "MaxPool", "AvgPool", "Max", "Min", "Maximum", "Minimum"),
    *("DepthToSpace", "SpaceToDepth", "BatchToSpaceND", "SpaceToBatchND", "ClipByValue"),
    # OneHot has no float input; the converter would make its two values int8 by the range after it, and then fail.
    "OneHot",
}


def float_call(layer: Layer, args: Args, kwargs: Kwargs) -> Any:
    """Emit a call that stays in float, between float barriers if the converter would tie its input and output."""
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    result = call_for_inference(layer, args, kwargs)
    made = [op for op in graph.get_operations()[before:] if op.type != "Const" and _has_float_output(op)]
    if not made or any(op.type not in _RANGE_TYING_OPS for op in made):
        return result
    # Nothing reads the operations of the first call, so the converter drops them.
    return call_between_barriers(layer, args, kwargs)


def _has_float_output(op: tf.Operation) -> bool:
    return any(tensor.dtype.is_floating for tensor in op.outputs)


def call_between_barriers(layer: Layer, args: Args, kwargs: Kwargs) -> Any:
    """Emit a call between float barriers, so that the converter copies no range from input to output or back."""
    args, kwargs = tf.nest.map_structure(float_barrier, (args, kwargs))
    return tf.nest.map_structure(float_barrier, call_for_inference(layer, args, kwargs))


def float_barrier(value: TensorLike) -> Any:
    """The value as sign(x) * abs(x): TFLite has SIGN in float only, and the converter does not simplify the product.

    The converter quantises every operation between two tensors with ranges; this barrier stops it.
    """
    return tf.sign(value) * tf.abs(value) if tf.is_tensor(value) and value.dtype.is_floating else value


def call_for_inference(layer: Layer, args: Args, kwargs: Kwargs) -> Any:
    """The result of a layer's `call` with training=False; a stateful layer starts from 0, and no losses are added."""
    if private.call_signature(layer).expects_training_arg:
        kwargs = kwargs | {"training": False}
    with with_zero_state(layer), without_added_losses(private.layers_within(layer)):
        return layer.call(*args, **kwargs)
