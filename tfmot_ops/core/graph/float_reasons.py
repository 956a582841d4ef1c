"""Why a layer or function stays in float: a limit of TFLite, or of int8 values.

The reasons appear in the report of `core.quantize` and in docs/layers.md. Which calls stay in float is decided by the
operation table and by `quantization.scheme`, not here.
"""

from __future__ import annotations

from typing import Any

from tfmot_ops.core.graph.operations import LAYERS, UNKNOWN
from tfmot_ops.core.graph.roles import describe
from tfmot_ops.core.graph.steepness import MIN_ELEMENTS
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer

_L = keras.layers
_STEEP = "{} is too steep near 0 for a table of 256 int8 values"
_DIVIDES = "TFLite divides in float only, and a table of 256 inverses would be too coarse for this divisor"
_REDUCES = "{} is int8 over axes of known size other than the batch axis only"
_POWER = "{} is int8 for a tensor that is never negative and an exponent that is not too close to 0 only"
_RECURRENT_CONVOLUTION = "{} is a loop of convolutions, which the TFLite converter leaves in float"
_LOCAL = "{} has a kernel for each position, for which TFLite has no operation"
_LAYERS: dict[type, str] = {
    **dict.fromkeys((_L.ConvLSTM1D, _L.ConvLSTM2D, _L.ConvLSTM3D), _RECURRENT_CONVOLUTION),
    **dict.fromkeys((_L.LocallyConnected1D, _L.LocallyConnected2D), _LOCAL),
    _L.Masking: "{} compares its input with mask_value, which other values would be equal to after rounding to int8",
    _L.CategoryEncoding: "{} counts integers, which TFLite does in float",
    _L.DenseFeatures: "{} reads columns of features by name, which TFLite computes in float",
    **dict.fromkeys(
        (_L.LayerNormalization, _L.GroupNormalization),
        f"{{}} is int8 over {MIN_ELEMENTS} or more elements of known number, without the batch axis, only",
    ),
}
_FUNCTIONS: dict[str, str] = {
    **dict.fromkeys(("math.truediv", "math.divide", "math.divide_no_nan"), _DIVIDES),
    **dict.fromkeys(("math.log", "math.log1p", "math.reciprocal", "math.reciprocal_no_nan"), _STEEP),
    **dict.fromkeys(("math.xlogy", "math.xdivy", "math.lgamma", "math.digamma"), _STEEP),
    **dict.fromkeys(("math.sqrt", "math.rsqrt", "math.pow"), _POWER),
    **dict.fromkeys(("math.reduce_std", "math.reduce_variance", "math.reduce_euclidean_norm"), _REDUCES),
    **dict.fromkeys(("norm", "linalg.norm", "compat.v1.norm", "math.reduce_logsumexp", "math.cumsum"), _REDUCES),
    **dict.fromkeys(("math.l2_normalize", "linalg.normalize"), _REDUCES),
}


def float_reason(layer: Layer) -> str:
    """Why a layer of the role FLOAT stays in float, a sentence."""
    symbol: Any = getattr(layer, "symbol", None)
    known = _FUNCTIONS.get(symbol) or _LAYERS.get(type(layer)) or LAYERS.get(type(layer), UNKNOWN).why_float
    return known.format(describe(layer))
