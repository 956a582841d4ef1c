"""What TFLite's int8 kernels ask of the tensors around each kind of call; placement and export read it here.

Sources: TFLite's 8-bit quantisation specification (tensorflow.org/lite/performance/quantization_spec) and the
converter's `tfl.quantize` pass of TensorFlow 2.21, whose behaviour `tests/core/test_roles.py` checks row by row.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.layers import Affine, AxisMean, HardSwish, InverseRoot, Shift
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers


class Role(StrEnum):
    """How a call takes part in an int8 graph."""

    CONVOLUTION = "int8 kernel, int32 sums"
    AFFINE = "a scale and an offset per channel"  # affine: y = scale * x + offset, one of each per channel
    RELU = "clips, fused into the call before it"
    FIXED_RANGE = "output range fixed by TFLite"
    PASS = "values of its input, so its range"  # noqa: S105 - no password
    SAME_SCALE = "one range for all inputs and the output"
    COMPUTES = "a range of its own for its output"
    GATHER = "rows of an int8 table"
    FLOAT = "no int8 form"


#: TFLite fixes the output range of these: 1/256, 1/128 and 1/16 a level.
FIXED_RANGES = {
    **dict.fromkeys(("sigmoid", "softmax"), (0.0, 255 / 256)),
    "tanh": (-1.0, 127 / 128),
    "log_softmax_v2": (-255 / 16, 0.0),  # what tf.nn.log_softmax calls itself
}

CLASSES: dict[type, Role] = {
    **dict.fromkeys(
        (_L.Conv1D, _L.Conv2D, _L.DepthwiseConv1D, _L.DepthwiseConv2D, _L.Conv2DTranspose, _L.Dense), Role.CONVOLUTION
    ),
    **dict.fromkeys(
        (
            *(_L.MaxPooling1D, _L.MaxPooling2D, _L.GlobalMaxPooling1D, _L.GlobalMaxPooling2D),
            *(_L.ZeroPadding1D, _L.ZeroPadding2D, _L.Cropping1D, _L.Cropping2D, _L.CenterCrop),
            *(_L.ZeroPadding3D, _L.Cropping3D, _L.UpSampling3D, _L.GlobalMaxPooling3D, _L.SpatialDropout3D),
            *(_L.UpSampling1D, _L.Reshape, _L.Flatten, _L.Permute, _L.RepeatVector, _L.Identity),
            *(_L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.AlphaDropout),
            *(_L.GaussianNoise, _L.GaussianDropout, _L.ActivityRegularization),
            *(_L.RandomFlip, _L.RandomRotation, _L.RandomZoom, _L.RandomTranslation, _L.RandomContrast),
            _L.RandomBrightness,
        ),
        Role.PASS,
    ),
    **dict.fromkeys(
        (
            _L.Concatenate,
            _L.Maximum,
            _L.Minimum,
            _L.AveragePooling1D,
            _L.AveragePooling2D,
            _L.UpSampling2D,
            _L.Resizing,
        ),
        Role.SAME_SCALE,
    ),
    **dict.fromkeys(
        (
            *(_L.Add, _L.Subtract, _L.Multiply, _L.Dot, _L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D),
            *(_L.GlobalAveragePooling3D, _L.LeakyReLU, _L.PReLU, HardSwish, InverseRoot, AxisMean, Shift),
        ),
        Role.COMPUTES,
    ),
    Affine: Role.AFFINE,
    _L.Embedding: Role.GATHER,
}
#: Functions of TensorFlow called on tensors of a model, by the symbol Keras records.
SYMBOLS: dict[str, Role] = {
    **dict.fromkeys(
        (
            *("reshape", "compat.v1.transpose", "compat.v1.squeeze", "__operators__.getitem", "expand_dims"),
            *("compat.v1.pad", "split", "unstack", "nn.depth_to_space", "nn.space_to_depth", "identity"),
            *("stop_gradient", "tile", "compat.v1.gather", "repeat", "broadcast_to", "roll"),
            *("slice", "strided_slice", "linalg.matrix_transpose", "space_to_batch_nd", "compat.v1.batch_to_space_nd"),
            *("image.transpose", "image.crop_to_bounding_box", "image.central_crop", "image.pad_to_bounding_box"),
            *("image.resize_with_crop_or_pad", "math.reduce_max", "math.reduce_min", "math.top_k"),
            *("nn.max_pool2d", "compat.v1.nn.max_pool"),
        ),
        Role.PASS,
    ),
    **dict.fromkeys(
        (
            *("concat", "stack", "math.maximum", "math.minimum", "where", "clip_by_value"),
            *("nn.avg_pool2d", "nn.avg_pool", "compat.v1.nn.avg_pool"),
            *("image.resize", "image.resize_with_pad", "compat.v1.image.resize_images"),
            *("compat.v1.image.resize_bilinear", "compat.v1.image.resize_nearest_neighbor"),
            # Of REVERSE_V2, which these are, the converter does not take the range on to the output.
            *("reverse", "image.flip_left_right", "image.flip_up_down", "image.rot90"),
        ),
        Role.SAME_SCALE,
    ),
    **dict.fromkeys(
        (
            *("math.reduce_mean", "math.reduce_sum", "math.reduce_prod", "linalg.matmul", "einsum"),
            *("math.abs", "math.squared_difference"),
            # With a constant that is none per channel, or a tensor of another rank; otherwise they become layers.
            *("math.add", "__operators__.add", "math.multiply", "math.subtract"),
            # Constants, of which the file has the int8 form.
            *("ones_like", "zeros_like", "fill"),
        ),
        Role.COMPUTES,
    ),
}
FUNCTIONS: dict[str, Role] = {
    "linear": Role.PASS,
    "relu": Role.RELU,
    "relu6": Role.RELU,
    "gelu": Role.COMPUTES,
    "exponential": Role.COMPUTES,
    "leaky_relu": Role.COMPUTES,
    **dict.fromkeys(FIXED_RANGES, Role.FIXED_RANGE),
}

#: What TFLite itself cannot do in int8, and why; seen in the converter of TensorFlow 2.21.
NO_INT8_OPERATION: dict[type, str] = {
    **dict.fromkeys((_L.Conv3D, _L.Conv3DTranspose), "TFLite computes {} in float only"),
    **dict.fromkeys((_L.AveragePooling3D, _L.MaxPooling3D), "TFLite has no operation for {}"),
}


def role(layer: Any) -> Role:
    """The role of a call of this layer (the inner one, without wrappers), channels on the last axis."""
    layer = _computed(layer)
    symbol = getattr(layer, "symbol", None)
    if symbol is not None:
        return SYMBOLS.get(symbol, Role.FLOAT)
    if getattr(layer, "data_format", None) == "channels_first" or getattr(layer, "normalize", False) is True:
        return Role.FLOAT  # Dot with `normalize` divides by a norm
    if is_affine(layer):
        return Role.AFFINE
    name = activation_name(layer)
    if name is not None:
        return FUNCTIONS.get(name, Role.FLOAT)
    known = CLASSES.get(type(layer))
    if known is not None:
        return known
    return Role.PASS if is_identity(layer) else Role.FLOAT


def float_reason(layer: Any) -> str:
    """Why a layer of the role FLOAT stays in float: TFLite's limit, or ours."""
    sentence = NO_INT8_OPERATION.get(
        type(layer), "{} is not supported in QAT yet: trained in float, left to the converter"
    )
    return sentence.format(describe(layer))


def describe(layer: Any) -> str:
    """What a call computes, for a sentence: class, function of TensorFlow, or activation."""
    name = activation_name(layer)
    kind = getattr(layer, "symbol", None) or type(layer).__name__
    return f"{kind} ({name})" if name else str(kind)


def activation_name(layer: Any) -> str | None:
    """Name of the function an activation layer computes, None for any other layer."""
    layer = _computed(layer)
    match layer:
        case _L.ReLU():
            if layer.negative_slope or layer.threshold:
                return "relu with slope or threshold"
            bounds = {None: "relu", 6.0: "relu6"}
            return bounds.get(None if layer.max_value is None else float(layer.max_value), "relu with a bound")
        case _L.Softmax():
            return "softmax" if layer.axis == -1 else "softmax over an inner axis"
        case _L.Activation():
            return getattr(layer.activation, "__name__", type(layer.activation).__name__)
    return None


def _computed(layer: Any) -> Any:
    """The layer within `Activation(LeakyReLU())`, or the layer itself."""
    inner = layer.activation if type(layer) is _L.Activation else None
    return inner if isinstance(inner, _L.Layer) and not inner.weights else layer


def is_affine(layer: Any) -> bool:
    """Whether inference computes one scale and one offset per channel (last axis)."""
    if isinstance(layer, Affine):
        return True
    # The exact class: a subclass may compute something else.
    if type(layer) is not _L.BatchNormalization:
        return False
    axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
    return axis == -1 or (layer.input_spec is not None and axis == layer.input_spec.ndim - 1)


def is_custom(layer: Any) -> bool:
    """Whether the layer's class is neither one of Keras' own nor ours nor tfmot's."""
    packages = (private.LAYERS_PACKAGE, private.ENGINE_PACKAGE, "tfmot_ops.", "tensorflow_model_optimization.")
    return not type(layer).__module__.startswith(packages)


def _takes_training(layer: Any) -> bool:
    return bool(private.call_signature(layer).expects_training_arg)


def is_identity(layer: Any) -> bool:
    """Whether a custom layer gives its input back in inference, as a drop-path layer does."""
    if not is_custom(layer) or layer.weights or not _takes_training(layer):
        return False
    probe = tf.zeros([1, 1])
    try:
        return layer.call(probe, training=False) is probe
    except Exception:  # noqa: BLE001 - somebody's code, on an input it may not be made for: then it is not known
        return False
