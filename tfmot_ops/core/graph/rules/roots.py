"""Divisions by a root, as in a layer normalisation of TensorFlow functions, in a form that TFLite has in int8.

Example: (x - mean) / sqrt(mean((x - mean) ** 2) + 1e-3) -> a product with `InverseRoot`. By itself a division is a
float operation, and a root has to stay in float, as int8 may round its operand to 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Node, Tensor
from tfmot_ops.core.graph.layers import AxisMean, InverseRoot, Power, Shift
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.graph.rewrite import Rewriter
from tfmot_ops.core.graph.rules.arithmetic import arguments_of, symbol_of, without_addend
from tfmot_ops.core.graph.signs import is_never_negative
from tfmot_ops.core.graph.steepness import is_accurate_on_rounded_inputs
from tfmot_ops.core.graph.weight_only import weight_only_value
from tfmot_ops.core.keras.pinned import keras

_L = keras.layers
#: Operands at which a function is compared with a root, from the smallest to the largest usual variance.
_GRID = np.concatenate([[0.0], np.geomspace(1e-6, 1e3, 64)]).astype(np.float32)


def inverse_root(node: Node, out: Rewriter) -> Any:
    """rsqrt(v + c), of a v that is never negative and a constant c > 0 -> Shift, InverseRoot."""
    found = _root(node, out, tf.math.rsqrt)
    return None if found is None else _emit(out, *found, path=node.path)


def division_by_root(node: Node, out: Rewriter) -> Any:
    """Division x / sqrt(v + c), of a v that is never negative and a constant c > 0 -> x * InverseRoot(v + c)."""
    if symbol_of(node) not in {"math.truediv", "math.divide"}:
        return None
    arguments = arguments_of(node) or {}
    numerator, root = arguments.get("x"), arguments.get("y")
    if not isinstance(numerator, Tensor) or not isinstance(root, Tensor) or root.producer is None:
        return None
    found = _root(root.producer, out, tf.math.sqrt)
    if found is None or len(numerator.shape) != len(root.shape) or not numerator.is_float:
        return None
    inverse = _emit(out, *found, path=f"{node.path}_inverse")
    return out.call(_L.Multiply(name=node.layer.name), node.path, [numerator, inverse], shape=node.output().shape)


def learned_power(node: Node, out: Rewriter) -> Any:
    """A power x ** p with a learned p, of an x that is never negative -> Power, a table for the p at the export."""
    operands: Any = node.args if symbol_of(node) == "math.pow" and len(node.args) == 2 else ()  # noqa: PLR2004 - x and p
    if not all(isinstance(operand, Tensor) for operand in operands) or len(operands) == 0:
        return None
    tensor, exponent = operands
    is_number = exponent.producer in out.weight_only and exponent.shape == ()
    if not is_number or not tensor.is_float or not is_never_negative(tensor):
        return None
    value = float(weight_only_value(exponent, out.graph))
    steps = [{"function": "math.pow", "args": [{"value": 0}, value], "kwargs": {}}]
    if not is_accurate_on_rounded_inputs(steps, lowest=0.0):
        return None
    return out.call(Power(name=node.layer.name), node.path, [tensor, exponent], shape=tensor.shape)


def variance(node: Node, out: Rewriter) -> Any:
    """`tf.math.reduce_variance(x, axis, keepdims=True)` -> AxisMean, Subtract, Multiply, AxisMean."""
    arguments = arguments_of(node) if symbol_of(node) == "math.reduce_variance" else None
    if arguments is None or arguments.get("axis") is None or not arguments.get("keepdims"):
        return None
    (tensor,) = node.inputs()
    axes = [int(axis) % len(tensor.shape) for axis in np.ravel(arguments["axis"])]
    if 0 in axes or not tensor.is_float:
        return None
    name, sizes = node.layer.name, node.output().shape
    mean = out.call(AxisMean(axes, name=f"{name}_mean"), f"{node.path}_mean", tensor, shape=sizes)
    centred = out.call(_L.Subtract(name=f"{name}_centred"), f"{node.path}_centred", [tensor, mean])
    squared = out.call(_L.Multiply(name=f"{name}_squared"), f"{node.path}_squared", [centred, centred])
    return out.call(AxisMean(axes, name=name), node.path, squared, shape=sizes)


def _emit(out: Rewriter, operand: Tensor, addend: float, *, path: str) -> Tensor:
    name = path.rsplit("/", 1)[-1]
    shifted = out.call(Shift(addend, name=f"{name}_shifted"), f"{path}_shifted", operand)
    return out.call(InverseRoot(name=name), path, shifted)


def _root(node: Node, out: Rewriter, function: Any) -> tuple[Tensor, float] | None:
    """(v, c) of a call that computes function(v + c), where v is never negative; `function` is a root, or 1 / root."""
    inputs = node.inputs()
    if len(inputs) != 1 or not isinstance(node.outputs, Tensor):
        return None
    operand, addend = inputs[0], None
    if type(node.layer) is Pointwise:
        addend = _addend(node.layer, function)
    elif symbol_of(node) == {tf.math.sqrt: "math.sqrt", tf.math.rsqrt: "math.rsqrt"}[function]:
        operand, addends = without_addend(operand, out)
        addend = float(addends[0]) if np.ptp(addends) == 0.0 else None
    return (operand, addend) if addend and is_never_negative(operand) else None


def _addend(layer: Pointwise, function: Any) -> float | None:
    """The c > 0 for which a layer computes function(x + c) for all x >= 0; None if there is none."""
    with tf.init_scope():
        values = np.asarray(layer(tf.constant(_GRID)), np.float64)
        at_zero = abs(float(values[0]))
        if not np.isfinite(values).all() or at_zero == 0.0:
            return None
        addend = at_zero**2 if function is tf.math.sqrt else at_zero**-2
        expected = np.asarray(function(tf.constant(_GRID, tf.float64) + addend))
    return addend if np.allclose(values, expected, rtol=1e-3) else None
