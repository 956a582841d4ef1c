"""The operation table: one row for each operation of a model, with all that the int8 graph and the TFLite file need.

An operation is a layer class (`LAYERS`), a function of TensorFlow that is called on tensors of a model (`FUNCTIONS`,
by the symbol that Keras records) or an activation function (`ACTIVATIONS`). An operation without a row stays in float.
`roles` looks up the row of a call; placement, tying, sparsity, export and reports read it.

Sources: TFLite's 8-bit quantisation specification (tensorflow.org/lite/performance/quantization_spec) and the
converter's `tfl.quantize` pass of TensorFlow 2.21, whose behaviour `tests/core/test_roles.py` checks row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tfmot_ops.core.graph import linear
from tfmot_ops.core.graph.layers import Affine, AxisMean, HardSwish, InverseRoot, Shift
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


class Arithmetic(StrEnum):
    """How the magnitude of a call's output follows from those of its inputs."""

    SUM = "adds up what it reads, or passes it on within a slope of 1"
    PRODUCT = "multiplies what it reads"


class Constants(StrEnum):
    """Where a call takes constants from that it puts among the values of its output."""

    PADDING = "the value that it pads with"
    LIST = "the list that is its first argument"
    OPERANDS = "any of its arguments"


@dataclass(frozen=True)
class Kernel:
    """A weight of a layer that is pruned, and rounded to int8.

    Attributes:
        attribute: name of the layer's attribute that holds it.
        pruned_by_default: whether a recipe without a scope prunes it. Depthwise kernels have 9 weights a
            channel and lose more than they save, so they are pruned only where a scope names them.
        per_channel: whether TFLite takes one scale for each output channel (FULLY_CONNECTED does not convert).
        channels_axes, swap_channels: where the output channels are, see `WeightQuantizer`.
        stored_axes: the order in which TFLite stores the kernel's axes, as `numpy.transpose` takes it, of a kernel that
            may be written after the conversion; None for one that the converter has to bring into its form.
    """

    attribute: str = "kernel"
    pruned_by_default: bool = True
    per_channel: bool = True
    channels_axes: int = 1
    swap_channels: bool = False
    stored_axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class OpSpec:
    """One row: what is known of an operation.

    Attributes:
        role: how a call of it takes part in an int8 graph.
        tflite: the TFLite operations that an int8 call may become; the first is the one that reads the kernel.
        kernels: its kernels, the first is the one of its sums.
        sums: (layer, kernel, input) -> what it computes with any kernel, without bias and activation.
        one_axis: whether it works on [N, T, C]; TFLite computes it on [N, 1, T, C].
        fuses: roles of the next call that TFLite computes with it as one operation.
        relu_keeps_range: whether a ReLU behind it is fused and has the same range: the ReLU of a pool.
        fixed_range: (lowest, highest) value of the output range that TFLite fixes.
        arithmetic: how its output follows from its inputs, where a range could be too narrow to compute with.
        constants: which constants it puts among the values of its output.
        becomes_int8: whether a rule rewrites it, before roles are looked up, to calls that have an int8 form.
        why_float: a sentence with {} for the operation's name, where TFLite itself cannot compute it in int8.
    """

    role: Role
    tflite: tuple[str, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    sums: Callable[[Any, Any, Any], Any] | None = None
    one_axis: bool = False
    fuses: frozenset[Role] = frozenset()
    relu_keeps_range: bool = False
    fixed_range: tuple[float, float] | None = None
    arithmetic: Arithmetic | None = None
    constants: Constants | None = None
    becomes_int8: bool = False
    why_float: str = "{} is not supported in QAT yet: trained in float, left to the converter"


#: The row of an operation that has none.
UNKNOWN = OpSpec(Role.FLOAT)

_AFFINE_OR_RELU = frozenset({Role.AFFINE, Role.RELU})
_RELU = frozenset({Role.RELU})
# CONV_2D takes [C_out, kh, kw, C_in], FULLY_CONNECTED [units, C_in].
_CONVOLUTION = Kernel(stored_axes=(3, 0, 1, 2))
_DENSE = Kernel(per_channel=False, stored_axes=(1, 0))
_DEPTHWISE = Kernel("depthwise_kernel", pruned_by_default=False, channels_axes=2)
_POINTWISE = Kernel("pointwise_kernel")
_TRANSPOSED = Kernel(swap_channels=True)
_FLOAT_ONLY = "TFLite computes {} in float only"
_NO_OPERATION = "TFLite has no operation for {}"


def _pass(*tflite: str, **more: Any) -> OpSpec:
    return OpSpec(Role.PASS, tflite, **more)


def _same_scale(*tflite: str, **more: Any) -> OpSpec:
    return OpSpec(Role.SAME_SCALE, tflite, **more)


def _computes(*tflite: str, **more: Any) -> OpSpec:
    return OpSpec(Role.COMPUTES, tflite, **more)


def _fixed(tflite: str, low: float, high: float) -> OpSpec:
    return OpSpec(Role.FIXED_RANGE, (tflite,), fixed_range=(low, high))


_SUM, _PRODUCT = Arithmetic.SUM, Arithmetic.PRODUCT

LAYERS: dict[type, OpSpec] = {
    # With kernels.
    _L.Conv1D: OpSpec(
        Role.CONVOLUTION,
        ("CONV_2D", "RESHAPE", "PAD"),
        (_CONVOLUTION,),
        linear.convolution,
        one_axis=True,
        fuses=_AFFINE_OR_RELU,
    ),
    _L.Conv2D: OpSpec(Role.CONVOLUTION, ("CONV_2D",), (_CONVOLUTION,), linear.convolution, fuses=_AFFINE_OR_RELU),
    _L.Conv2DTranspose: OpSpec(
        # The converter computes it as one with no ReLU.
        Role.CONVOLUTION,
        ("TRANSPOSE_CONV",),
        (_TRANSPOSED,),
        linear.transposed,
        fuses=frozenset({Role.AFFINE}),
    ),
    _L.DepthwiseConv1D: OpSpec(
        Role.CONVOLUTION,
        ("DEPTHWISE_CONV_2D", "RESHAPE"),
        (_DEPTHWISE,),
        linear.depthwise,
        one_axis=True,
        fuses=_AFFINE_OR_RELU,
    ),
    _L.DepthwiseConv2D: OpSpec(
        Role.CONVOLUTION, ("DEPTHWISE_CONV_2D",), (_DEPTHWISE,), linear.depthwise, fuses=_AFFINE_OR_RELU
    ),
    _L.Dense: OpSpec(Role.CONVOLUTION, ("FULLY_CONNECTED", "RESHAPE"), (_DENSE,), linear.dense, fuses=_AFFINE_OR_RELU),
    _L.Embedding: OpSpec(Role.GATHER, ("GATHER", "CAST"), (Kernel("embeddings", per_channel=False),)),
    _L.SeparableConv1D: OpSpec(Role.FLOAT, kernels=(_POINTWISE, _DEPTHWISE), becomes_int8=True),
    _L.SeparableConv2D: OpSpec(Role.FLOAT, kernels=(_POINTWISE, _DEPTHWISE), becomes_int8=True),
    _L.Conv1DTranspose: OpSpec(Role.FLOAT, kernels=(_TRANSPOSED,), becomes_int8=True),
    _L.Conv3D: OpSpec(Role.FLOAT, kernels=(Kernel(),), why_float=_FLOAT_ONLY),
    _L.Conv3DTranspose: OpSpec(Role.FLOAT, why_float=_FLOAT_ONLY),
    Affine: OpSpec(Role.AFFINE, ("DEPTHWISE_CONV_2D", "RESHAPE"), fuses=_RELU),
    # Pools.
    _L.MaxPooling1D: _pass("MAX_POOL_2D", "RESHAPE"),
    _L.MaxPooling2D: _pass("MAX_POOL_2D", relu_keeps_range=True),
    _L.MaxPooling3D: OpSpec(Role.FLOAT, why_float=_NO_OPERATION),
    _L.AveragePooling1D: _same_scale("AVERAGE_POOL_2D", "RESHAPE"),
    _L.AveragePooling2D: _same_scale("AVERAGE_POOL_2D", relu_keeps_range=True),
    _L.AveragePooling3D: OpSpec(Role.FLOAT, why_float=_NO_OPERATION),
    _L.GlobalMaxPooling1D: _pass("REDUCE_MAX"),
    _L.GlobalMaxPooling2D: _pass("REDUCE_MAX"),
    _L.GlobalMaxPooling3D: _pass("REDUCE_MAX"),
    _L.GlobalAveragePooling1D: _computes("MEAN", arithmetic=_SUM),
    _L.GlobalAveragePooling2D: _computes("MEAN", arithmetic=_SUM),
    _L.GlobalAveragePooling3D: _computes("MEAN"),
    AxisMean: _computes("MEAN"),
    # Of several tensors.
    _L.Add: _computes("ADD", fuses=_RELU, arithmetic=_SUM),
    _L.Subtract: _computes("SUB", fuses=_RELU, arithmetic=_SUM),
    _L.Multiply: _computes("MUL", fuses=_RELU, arithmetic=_PRODUCT),
    _L.Dot: _computes("BATCH_MATMUL", "RESHAPE", "TRANSPOSE", arithmetic=_PRODUCT),
    _L.Concatenate: _same_scale("CONCATENATION", constants=Constants.LIST),
    _L.Maximum: _same_scale("MAXIMUM", constants=Constants.OPERANDS),
    _L.Minimum: _same_scale("MINIMUM", constants=Constants.OPERANDS),
    # Of each value.
    _L.LeakyReLU: _computes("LEAKY_RELU", arithmetic=_SUM),
    _L.PReLU: _computes("PRELU", arithmetic=_SUM),
    HardSwish: _computes("HARD_SWISH", arithmetic=_SUM),
    Shift: _computes("ADD", arithmetic=_SUM),
    InverseRoot: _computes("RSQRT"),
    # Shapes and places.
    _L.Reshape: _pass("RESHAPE"),
    _L.Flatten: _pass("RESHAPE"),
    _L.Permute: _pass("TRANSPOSE"),
    _L.RepeatVector: _pass("RESHAPE", "TILE"),
    _L.ZeroPadding1D: _pass("PAD"),
    _L.ZeroPadding2D: _pass("PAD"),
    _L.ZeroPadding3D: _pass("PAD", "RESHAPE"),
    _L.Cropping1D: _pass("STRIDED_SLICE"),
    _L.Cropping2D: _pass("STRIDED_SLICE"),
    _L.Cropping3D: _pass("STRIDED_SLICE", "RESHAPE"),
    _L.CenterCrop: _pass("SLICE", "STRIDED_SLICE", "RESIZE_BILINEAR"),
    _L.UpSampling1D: _pass("SPLIT", "CONCATENATION"),
    _L.UpSampling2D: _same_scale("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    _L.UpSampling3D: _pass("SPLIT", "CONCATENATION", "RESHAPE"),
    _L.Resizing: _same_scale("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    # Nothing in inference.
    _L.Identity: _pass(),
    _L.Dropout: _pass(),
    _L.SpatialDropout1D: _pass(),
    _L.SpatialDropout2D: _pass(),
    _L.SpatialDropout3D: _pass(),
    _L.AlphaDropout: _pass(),
    _L.GaussianNoise: _pass(),
    _L.GaussianDropout: _pass(),
    _L.ActivityRegularization: _pass(),
    _L.RandomFlip: _pass(),
    _L.RandomRotation: _pass(),
    _L.RandomZoom: _pass(),
    _L.RandomTranslation: _pass(),
    _L.RandomContrast: _pass(),
    _L.RandomBrightness: _pass(),
}

FUNCTIONS: dict[str, OpSpec] = {
    # Pools and reductions.
    "nn.max_pool2d": _pass("MAX_POOL_2D", relu_keeps_range=True),
    "compat.v1.nn.max_pool": _pass("MAX_POOL_2D", relu_keeps_range=True),
    "nn.avg_pool2d": _same_scale("AVERAGE_POOL_2D", relu_keeps_range=True),
    "nn.avg_pool": _same_scale("AVERAGE_POOL_2D", relu_keeps_range=True),
    "compat.v1.nn.avg_pool": _same_scale("AVERAGE_POOL_2D", relu_keeps_range=True),
    "math.reduce_max": _pass("REDUCE_MAX"),
    "math.reduce_min": _pass("REDUCE_MIN"),
    "math.reduce_mean": _computes("MEAN", arithmetic=_SUM),
    "math.reduce_sum": _computes("SUM", arithmetic=_SUM),
    "math.reduce_prod": _computes("REDUCE_PROD"),
    "math.top_k": _pass("TOPK_V2"),
    # Of several tensors.
    "linalg.matmul": _computes("BATCH_MATMUL", "RESHAPE", "TRANSPOSE", arithmetic=_PRODUCT),
    "einsum": _computes("BATCH_MATMUL", "RESHAPE", "TRANSPOSE"),
    "math.squared_difference": _computes("SQUARED_DIFFERENCE"),
    "concat": _same_scale("CONCATENATION", constants=Constants.LIST),
    "stack": _same_scale("PACK", constants=Constants.LIST),
    "math.maximum": _same_scale("MAXIMUM", constants=Constants.OPERANDS),
    "math.minimum": _same_scale("MINIMUM", constants=Constants.OPERANDS),
    "where": _same_scale("SELECT", "SELECT_V2", constants=Constants.OPERANDS),
    "clip_by_value": _same_scale("MINIMUM", "MAXIMUM", constants=Constants.OPERANDS),
    # With a constant that is none per channel, or a tensor of another rank; otherwise they become layers.
    "math.add": _computes("ADD"),
    "__operators__.add": _computes("ADD"),
    "math.multiply": _computes("MUL"),
    "math.subtract": _computes("SUB"),
    "math.abs": _computes("ABS"),
    # Shapes and places.
    "reshape": _pass("RESHAPE"),
    "expand_dims": _pass("RESHAPE"),
    "compat.v1.squeeze": _pass("RESHAPE"),
    "compat.v1.transpose": _pass("TRANSPOSE"),
    "linalg.matrix_transpose": _pass("TRANSPOSE"),
    "image.transpose": _pass("TRANSPOSE"),
    "__operators__.getitem": _pass("STRIDED_SLICE"),
    "slice": _pass("SLICE"),
    "strided_slice": _pass("STRIDED_SLICE"),
    "split": _pass("SPLIT", "SPLIT_V"),
    "unstack": _pass("UNPACK"),
    "compat.v1.gather": _pass("GATHER"),
    "tile": _pass("TILE"),
    "repeat": _pass("RESHAPE", "TILE"),
    "broadcast_to": _pass("BROADCAST_TO"),
    "roll": _pass("SLICE", "CONCATENATION"),
    "compat.v1.pad": _pass("PAD", "PADV2", "MIRROR_PAD", constants=Constants.PADDING),
    "nn.depth_to_space": _pass("DEPTH_TO_SPACE"),
    "nn.space_to_depth": _pass("SPACE_TO_DEPTH"),
    "space_to_batch_nd": _pass("SPACE_TO_BATCH_ND"),
    "compat.v1.batch_to_space_nd": _pass("BATCH_TO_SPACE_ND"),
    "identity": _pass(),
    "stop_gradient": _pass(),
    # The converter does not take the range of REVERSE_V2, which these are, on to the output.
    "reverse": _same_scale("REVERSE_V2"),
    "image.flip_left_right": _same_scale("REVERSE_V2"),
    "image.flip_up_down": _same_scale("REVERSE_V2"),
    "image.rot90": _same_scale("REVERSE_V2", "TRANSPOSE"),
    # Images.
    "image.resize": _same_scale("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    "image.resize_with_pad": _same_scale("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "PAD"),
    "compat.v1.image.resize_images": _same_scale("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    "compat.v1.image.resize_bilinear": _same_scale("RESIZE_BILINEAR"),
    "compat.v1.image.resize_nearest_neighbor": _same_scale("RESIZE_NEAREST_NEIGHBOR"),
    "image.crop_to_bounding_box": _pass("STRIDED_SLICE", "SLICE"),
    "image.central_crop": _pass("STRIDED_SLICE", "SLICE"),
    "image.pad_to_bounding_box": _pass("PAD"),
    "image.resize_with_crop_or_pad": _pass("STRIDED_SLICE", "SLICE", "PAD"),
    # Constants, of which the file has the int8 form.
    "ones_like": _computes(),
    "zeros_like": _computes(),
    "fill": _computes("FILL"),
}

ACTIVATIONS: dict[str, OpSpec] = {
    "linear": _pass(),
    "relu": OpSpec(Role.RELU, ("RELU",)),
    "relu6": OpSpec(Role.RELU, ("RELU6",)),
    "gelu": _computes("GELU"),
    "exponential": _computes("EXP"),
    "leaky_relu": _computes("LEAKY_RELU"),
    # TFLite fixes the size of a level: 1/256, 1/128 and 1/16.
    "sigmoid": _fixed("LOGISTIC", 0.0, 255 / 256),
    "softmax": _fixed("SOFTMAX", 0.0, 255 / 256),
    "tanh": _fixed("TANH", -1.0, 127 / 128),
    "log_softmax_v2": _fixed("LOG_SOFTMAX", -255 / 16, 0.0),  # what tf.nn.log_softmax calls itself
}
