"""The operation table: for each operation, its kernels, its ranges, and the TFLite operations that it converts to.

An operation is a layer class (`LAYERS`), a TensorFlow function that is called on tensors of a model (`FUNCTIONS`, by
the name that Keras records) or an activation function (`ACTIVATIONS`). An operation without a row stays in float.
`roles.spec_of` looks up the row of a call. Readers of the table: placement of quantisers, ties between ranges,
sparsity, export and reports.

Sources: TFLite's 8-bit quantisation specification (tensorflow.org/lite/performance/quantization_spec) and the
converter's `tfl.quantize` pass of TensorFlow 2.21, whose behaviour `tests/core/test_roles.py` checks row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tfmot_ops.core.graph import linear
from tfmot_ops.core.graph.layers import (
    Affine,
    AxisMean,
    Einsum,
    HardSwish,
    InverseRoot,
    LearnedTensor,
    MaskedScores,
    Power,
    Shift,
)
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers


class Role(StrEnum):
    """How a call takes part in an int8 graph."""

    CONVOLUTION = "int8 kernel, int32 sums"
    AFFINE = "a scale and an offset per channel"  # y = scale * x + offset
    RELU = "clips, fused into the call before it"
    FIXED_RANGE = "output range fixed by TFLite"
    # Reshape, crop, max pooling: every output value is an input value (or 0), so the input's range fits the output.
    PASS = "values of its input, so its range"  # noqa: S105 - no password
    # Concatenation, average pooling: TFLite requires one scale and zero point for all inputs and the output.
    SAME_SCALE = "one range for all inputs and the output"
    # Addition, multiplication, mean: the output gets a quantiser of its own.
    COMPUTES = "a range of its own for its output"
    # A weight that a function reads, and functions of such weights alone.
    CONSTANT = "a constant of the file"
    # Embedding lookup.
    GATHER = "rows of an int8 table"
    FLOAT = "no int8 form"


class Arithmetic(StrEnum):
    """How the magnitude of a call's output follows from the magnitudes of its inputs."""

    SUM = "adds up its inputs, or has a slope of at most 1 (LeakyReLU)"
    PRODUCT = "multiplies its inputs"


class Constants(StrEnum):
    """Which argument of a call holds the constants that appear in its output."""

    PADDING = "the value that it pads with"
    LIST = "the list that is its first argument"
    OPERANDS = "any of its arguments"


@dataclass(frozen=True)
class Kernel:
    """A weight of a layer that can be pruned and rounded to int8.

    Attributes:
        attribute: name of the layer's attribute that holds the kernel; with dots for an attribute of an attribute.
        pruned_by_default: whether a recipe without a scope prunes the kernel. Depthwise kernels are pruned only where
            a scope names them: with 9 weights per channel, zeros cost more accuracy than they save in size.
        per_channel: whether each output channel has its own scale; False for FULLY_CONNECTED, where the converter
            takes one scale for the whole kernel.
        channels_axes, swap_channels: which axes are the output channels, see `WeightQuantizer`.
        stored_axes: the permutation (as for `numpy.transpose`) from Keras' order of axes to TFLite's, for a kernel that
            may be written into the file after the conversion; None for a kernel that the converter must transform.
    """

    attribute: str = "kernel"
    pruned_by_default: bool = True
    per_channel: bool = True
    channels_axes: int = 1
    swap_channels: bool = False
    stored_axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class OpSpec:
    """One row of the operation table.

    Attributes:
        role: how a call of the operation takes part in an int8 graph.
        tflite: the TFLite operations that an int8 call may become; the first is the one that reads the kernel.
        kernels: the operation's kernels; `sums` takes the first.
        linear_part: (layer, kernel, input) -> the convolution or product with that kernel, without bias and activation.
        is_1d: whether the operation works on [N, T, C], which TFLite computes as [N, 1, T, C].
        fuses: roles of a next call that TFLite fuses into this operation, such as a ReLU into a convolution.
        relu_keeps_range: whether a ReLU after the operation is fused and shares its range, as after a pooling.
        fixed_range: (lowest, highest) value of the output range that TFLite prescribes.
        arithmetic: how the output's magnitude follows from the inputs', to find output ranges that are too narrow for
            int8 kernels (see `quantization.scales`); None where no limit is known.
        constants: which argument holds constants that appear in the output.
        table: whether the operation is an elementwise function without an int8 form in TFLite. The file then has a
            lookup table with the int8 result for each of the 256 int8 inputs.
        elementwise: whether the operation is an elementwise function that TFLite has in int8. If the target device
            lacks it, the file has a lookup table too.
        rewritten_to_int8: whether normalisation rewrites the operation to calls that have an int8 form.
        why_float: why the operation stays in float: a sentence with {} for the operation's name.
    """

    role: Role
    tflite: tuple[str, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    linear_part: Callable[[Any, Any, Any], Any] | None = None
    is_1d: bool = False
    fuses: frozenset[Role] = frozenset()
    relu_keeps_range: bool = False
    fixed_range: tuple[float, float] | None = None
    arithmetic: Arithmetic | None = None
    constants: Constants | None = None
    table: bool = False
    elementwise: bool = False
    rewritten_to_int8: bool = False
    why_float: str = "{} is not supported in QAT yet: trained in float, left to the converter"


#: The row for every operation that the table does not list.
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


#: The row of every elementwise function that becomes a lookup table in the file.
TABLE = OpSpec(Role.COMPUTES, ("GATHER", "CAST", "ADD", "ELU"), table=True)


def _fixed(tflite: str, low: float, high: float) -> OpSpec:
    return OpSpec(Role.FIXED_RANGE, (tflite,), fixed_range=(low, high))


_RECURRENT = OpSpec(
    Role.FLOAT,
    kernels=tuple(Kernel(f"cell.{name}", per_channel=False) for name in ("kernel", "recurrent_kernel")),
    why_float="{} stays in float: int8 needs a known number of steps, at most 128, one cell of Keras, and neither "
    "stateful, recurrent_dropout, constraints nor activity_regularizer",
)

_SUM, _PRODUCT = Arithmetic.SUM, Arithmetic.PRODUCT

LAYERS: dict[type, OpSpec] = {
    # With kernels.
    _L.Conv1D: OpSpec(
        Role.CONVOLUTION,
        ("CONV_2D", "RESHAPE", "PAD"),
        (_CONVOLUTION,),
        linear.convolution,
        is_1d=True,
        fuses=_AFFINE_OR_RELU,
    ),
    _L.Conv2D: OpSpec(Role.CONVOLUTION, ("CONV_2D",), (_CONVOLUTION,), linear.convolution, fuses=_AFFINE_OR_RELU),
    _L.Conv2DTranspose: OpSpec(
        # The converter fuses no ReLU into TRANSPOSE_CONV.
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
        is_1d=True,
        fuses=_AFFINE_OR_RELU,
    ),
    _L.DepthwiseConv2D: OpSpec(
        Role.CONVOLUTION, ("DEPTHWISE_CONV_2D",), (_DEPTHWISE,), linear.depthwise, fuses=_AFFINE_OR_RELU
    ),
    _L.Dense: OpSpec(Role.CONVOLUTION, ("FULLY_CONNECTED", "RESHAPE"), (_DENSE,), linear.dense, fuses=_AFFINE_OR_RELU),
    _L.Embedding: OpSpec(Role.GATHER, ("GATHER", "CAST"), (Kernel("embeddings", per_channel=False),)),
    _L.SeparableConv1D: OpSpec(Role.FLOAT, kernels=(_POINTWISE, _DEPTHWISE), rewritten_to_int8=True),
    _L.SeparableConv2D: OpSpec(Role.FLOAT, kernels=(_POINTWISE, _DEPTHWISE), rewritten_to_int8=True),
    _L.Conv1DTranspose: OpSpec(Role.FLOAT, kernels=(_TRANSPOSED,), rewritten_to_int8=True),
    _L.Conv3D: OpSpec(Role.FLOAT, kernels=(Kernel(),), why_float=_FLOAT_ONLY),
    _L.Conv3DTranspose: OpSpec(Role.FLOAT, why_float=_FLOAT_ONLY),
    # For QAT, normalisation replaces a call of these layers by its single steps (`rules.recurrent`).
    _L.LSTM: _RECURRENT,
    _L.GRU: _RECURRENT,
    _L.SimpleRNN: _RECURRENT,
    _L.RNN: OpSpec(Role.FLOAT, why_float=_RECURRENT.why_float),
    _L.Bidirectional: OpSpec(Role.FLOAT, why_float=_RECURRENT.why_float),
    Affine: OpSpec(Role.AFFINE, ("DEPTHWISE_CONV_2D", "RESHAPE"), fuses=_RELU),
    # Pools.
    _L.MaxPooling1D: _pass("MAX_POOL_2D", "RESHAPE"),
    _L.MaxPooling2D: _pass("MAX_POOL_2D", relu_keeps_range=True),
    _L.MaxPooling3D: OpSpec(Role.FLOAT, why_float=_NO_OPERATION, rewritten_to_int8=True),
    _L.AveragePooling1D: _same_scale("AVERAGE_POOL_2D", "RESHAPE"),
    _L.AveragePooling2D: _same_scale("AVERAGE_POOL_2D", relu_keeps_range=True),
    _L.AveragePooling3D: OpSpec(Role.FLOAT, why_float=_NO_OPERATION, rewritten_to_int8=True),
    _L.GlobalMaxPooling1D: _pass("REDUCE_MAX"),
    _L.GlobalMaxPooling2D: _pass("REDUCE_MAX"),
    _L.GlobalMaxPooling3D: _pass("REDUCE_MAX"),
    _L.GlobalAveragePooling1D: _computes("MEAN", arithmetic=_SUM),
    _L.GlobalAveragePooling2D: _computes("MEAN", arithmetic=_SUM),
    _L.GlobalAveragePooling3D: _computes("MEAN"),
    AxisMean: _computes("MEAN"),
    # Several tensors.
    _L.Add: _computes("ADD", fuses=_RELU, arithmetic=_SUM),
    _L.Subtract: _computes("SUB", fuses=_RELU, arithmetic=_SUM),
    _L.Multiply: _computes("MUL", fuses=_RELU, arithmetic=_PRODUCT),
    _L.Dot: _computes("BATCH_MATMUL", "RESHAPE", "TRANSPOSE", arithmetic=_PRODUCT),
    _L.Concatenate: _same_scale("CONCATENATION", constants=Constants.LIST),
    _L.Maximum: _same_scale("MAXIMUM", constants=Constants.OPERANDS),
    _L.Minimum: _same_scale("MINIMUM", constants=Constants.OPERANDS),
    # Element by element.
    _L.LeakyReLU: _computes("LEAKY_RELU", arithmetic=_SUM, elementwise=True),
    _L.PReLU: _computes("PRELU", arithmetic=_SUM),
    HardSwish: _computes("HARD_SWISH", arithmetic=_SUM, elementwise=True),
    Shift: _computes("ADD", arithmetic=_SUM),
    Einsum: _computes("BATCH_MATMUL", "RESHAPE", "TRANSPOSE"),
    MaskedScores: _same_scale("SELECT_V2", "SELECT"),
    LearnedTensor: OpSpec(Role.CONSTANT),
    InverseRoot: _computes("RSQRT", elementwise=True),
    _L.ELU: TABLE,
    _L.ThresholdedReLU: TABLE,
    Pointwise: TABLE,
    Power: TABLE,
    # Shape and position only.
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
    # Identity in inference.
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
    _L.RandomHeight: _pass(),
    _L.RandomWidth: _pass(),
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
    # Several tensors.
    "linalg.matmul": _computes("BATCH_MATMUL", "RESHAPE", "TRANSPOSE", arithmetic=_PRODUCT),
    "einsum": _computes("BATCH_MATMUL", "RESHAPE", "TRANSPOSE"),
    "math.squared_difference": _computes("SQUARED_DIFFERENCE"),
    "concat": _same_scale("CONCATENATION", constants=Constants.LIST),
    "stack": _same_scale("PACK", constants=Constants.LIST),
    "math.maximum": _same_scale("MAXIMUM", constants=Constants.OPERANDS),
    "math.minimum": _same_scale("MINIMUM", constants=Constants.OPERANDS),
    "where": _same_scale("SELECT", "SELECT_V2", constants=Constants.OPERANDS),
    "clip_by_value": _same_scale("MINIMUM", "MAXIMUM", constants=Constants.OPERANDS),
    # For operands that are constants but not per channel, or of another rank; rules rewrite other calls to layers.
    "math.add": _computes("ADD"),
    "__operators__.add": _computes("ADD"),
    "math.multiply": _computes("MUL"),
    "math.subtract": _computes("SUB"),
    "math.abs": _computes("ABS"),
    "math.exp": _computes("EXP"),
    # Shape and position only.
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
    "compat.v1.nn.embedding_lookup": _pass("GATHER"),
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
    # All four become REVERSE_V2, whose input range the converter does not copy to the output.
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
    # Constants, which the converter stores as int8.
    "ones_like": _computes(),
    "zeros_like": _computes(),
    "fill": _computes("FILL"),
}

ACTIVATIONS: dict[str, OpSpec] = {
    "linear": _pass(),
    "relu": OpSpec(Role.RELU, ("RELU",)),
    "relu6": OpSpec(Role.RELU, ("RELU6",)),
    "gelu": _computes("GELU", elementwise=True),
    "exponential": _computes("EXP", elementwise=True),
    "exp": _computes("EXP", elementwise=True),
    "abs": _computes("ABS", elementwise=True),
    "leaky_relu": _computes("LEAKY_RELU", elementwise=True),
    **dict.fromkeys(("elu", "selu", "softplus", "softsign", "mish"), TABLE),
    # TFLite's quantisation specification fixes the scale: 1/256 (sigmoid, softmax), 1/128 (tanh), 1/16 (log_softmax).
    "sigmoid": _fixed("LOGISTIC", 0.0, 255 / 256),
    "softmax": _fixed("SOFTMAX", 0.0, 255 / 256),
    "tanh": _fixed("TANH", -1.0, 127 / 128),
    "log_softmax_v2": _fixed("LOG_SOFTMAX", -255 / 16, 0.0),  # the __name__ of tf.nn.log_softmax
}
