"""The layer `Pointwise`: an elementwise function that consists of several TensorFlow calls, as one layer.

TFLite has few elementwise functions in int8. Any other one can be a lookup table: an int8 input has 256 possible
values, and the table has the result for each. The table adds no error of its own, and one table for
`x * tanh(softplus(x))` rounds once where three operations round three times. `clusters` makes the layers, and
`tflite.tables` writes the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Tensor
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import get_symbol_from_name
from tfmot_ops.errors import UnsupportedModelError

#: Functions (by Keras' names) that become int8 operations, by a rule of normalisation or by the converter.
INT8 = {
    *("math.add", "__operators__.add", "math.subtract", "math.multiply", "math.negative", "math.square", "math.abs"),
    *("math.maximum", "math.minimum", "math.squared_difference", "clip_by_value", "where", "math.exp"),
    *("nn.relu", "nn.relu6", "nn.leaky_relu", "math.sigmoid", "nn.sigmoid", "math.tanh", "nn.tanh"),
    *("identity", "stop_gradient", "zeros_like", "ones_like", "math.add_n"),
    *("math.greater", "math.greater_equal", "math.less", "math.less_equal", "__operators__.eq", "__operators__.ne"),
}
#: Functions that are int8 with their default arguments only.
INT8_BY_DEFAULT = {"nn.silu", "nn.swish", "nn.gelu"}
DIVISIONS = {"math.truediv", "math.divide"}
#: Functions whose value or slope is infinite somewhere: a cluster with one of them becomes a table only if
#: `PointwiseClusters.fits_table` finds the table accurate.
_DIVERGES = {
    *("math.log", "math.log1p", "math.sqrt", "math.rsqrt", "math.reciprocal", "math.reciprocal_no_nan", "math.pow"),
    *("math.divide_no_nan", "math.xdivy", "math.xlogy", "math.tan", "math.acos", "math.asin", "math.acosh"),
    *("math.atanh", "math.atan2", "math.lgamma", "math.digamma", "math.floormod", "compat.v1.floor_div"),
}
#: All functions that a `Pointwise` layer may call: each element of the result depends on the same element only.
ELEMENTWISE_FUNCTIONS = frozenset(
    {
        *(INT8 | INT8_BY_DEFAULT | DIVISIONS | _DIVERGES),
        *("math.erf", "math.erfc", "math.sin", "math.cos", "math.atan", "math.sinh", "math.cosh", "math.asinh"),
        *("math.sign", "math.floor", "math.ceil", "math.round", "math.rint", "math.expm1", "math.log_sigmoid"),
        *("math.softplus", "nn.softplus", "nn.softsign", "math.softsign", "nn.elu", "nn.selu", "cast"),
        *("math.multiply_no_nan", "math.equal", "math.not_equal", "compat.v1.where", "compat.v1.floor_div"),
        *("math.logical_and", "math.logical_or", "math.logical_not", "math.logical_xor", "math.is_nan"),
        *("math.is_finite", "math.is_inf", "math.bessel_i0", "math.bessel_i0e", "math.bessel_i1", "math.bessel_i1e"),
    }
)


@keras.saving.register_keras_serializable("tfmot_ops")
class Pointwise(keras.layers.Layer):
    """TensorFlow functions applied one after another, such that each output element depends on one input element.

    Args:
        steps: the calls. Each is a dict with the `function` by Keras' name (`math.add`), `args` and `kwargs`, in which
            `{"value": 0}` stands for the layer's input, `{"value": n}` for the result of the n-th step,
            `{"dtype": "int32"}` for a type and `{"number": 1.0, "dtype": "float32"}` for a scalar tensor.

    Raises:
        UnsupportedModelError: a function is not in `ELEMENTWISE_FUNCTIONS`.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.steps = [dict(step) for step in steps]
        names = [step["function"] for step in self.steps]
        refused = [name for name in names if name not in ELEMENTWISE_FUNCTIONS]
        if refused:
            raise UnsupportedModelError(
                f"layer {self.name!r} calls {refused[0]!r}",
                required="elementwise TensorFlow functions",
                received=", ".join(map(str, refused)),
                remedy="make the layer by core.normalize or core.quantize",
            )
        self._functions = [get_symbol_from_name(name) for name in names]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Inputs of any shape to outputs of the same shape."""
        values: list[Any] = [inputs]
        for function, step in zip(self._functions, self.steps, strict=True):
            args = [_decoded(arg, values) for arg in step["args"]]
            kwargs = {name: _decoded(arg, values) for name, arg in step["kwargs"].items()}
            values.append(function(*args, **kwargs))
        return values[-1]

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Any:
        """Same as the input's."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "steps": self.steps}

    @property
    def diverges(self) -> bool:
        """Whether a step, or its slope, may be infinite, as in a logarithm, a root or a division."""
        return any(may_diverge(step["function"], step["args"]) for step in self.steps)


def _decoded(argument: Any, values: list[Any]) -> Any:
    if isinstance(argument, dict):
        if "value" in argument:
            return values[argument["value"]]
        dtype = tf.as_dtype(argument["dtype"])
        return tf.constant(argument["number"], dtype) if "number" in argument else dtype
    if isinstance(argument, list | tuple):
        return [_decoded(part, values) for part in argument]
    return argument


def may_diverge(function: str, args: Sequence[object]) -> bool:
    """Whether a call of a function, or its slope, may be infinite somewhere; `args` as recorded, or as in a step."""
    if len(args) > 1 and function in {*DIVISIONS, "math.pow"}:
        first, second = (_number(arg) for arg in args[:2])
        if function == "math.pow":
            is_polynomial = second is not None and second >= 1 and second == int(second)
            return not is_polynomial and not (first is not None and first > 0)
        return second is None
    return function in _DIVERGES


def _number(argument: Any) -> float | None:
    """The value of a constant argument of a recorded call or of a step of a `Pointwise` layer; None for a tensor."""
    if isinstance(argument, Tensor):
        return None
    if isinstance(argument, dict):
        return argument.get("number")
    return float(argument)
