"""The activation ranges of a QAT model: their variables, which of them TFLite ties, and the ranges for the file.

`qat.calibrate` sets the variables, and training moves them. `tflite.emit` exports a model with the ranges of `Ranges`.
The ranges of PTQ are in `tflite.file_ranges`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.operations import Arithmetic, Role
from tfmot_ops.core.graph.roles import role, spec_of
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.private import QuantizeLayer, QuantizeWrapper
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.keras.values import value_of
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.quantization.range_quantizers import INITIAL_RANGE, FixedRangeQuantizer, RangeQuantizer
from tfmot_ops.core.quantization.scales import LEVELS, Accumulation, Range, widened_for_accumulation
from tfmot_ops.core.quantization.scheme import output_quantizer, tied_groups

#: How close the level of 0 may be to the middle between two levels, in levels; float32 is off by less.
_TIE_MARGIN = 1e-3


def range_variables(layer: Layer) -> tuple[Any, Any] | None:
    """(min, max) variables of the range of a layer's output; None if the output has no trained range."""
    variables = None
    if isinstance(layer, QuantizeWrapper):
        variables = private.output_range_variables(layer)
    elif isinstance(layer, QuantizeLayer) and isinstance(layer.quantizer, RangeQuantizer):
        variables = layer.quantizer_vars
    return (variables["min_var"], variables["max_var"]) if variables else None


def layers_with_initial_range(graph: Graph) -> list[str]:
    """Names of the layers with a trained output range, if all these ranges still are the initial one; otherwise [].

    Calibration and each training step change all ranges. So where only some ranges are -6 to 6, these were measured:
    a layer may clip its values there.

    Args:
        graph: of a QAT model.
    """
    layers = dict.fromkeys(node.layer for node in graph.nodes)
    initial = {layer: variables for layer in layers if (variables := range_variables(layer)) is not None}
    if any((float(value_of(low)), float(value_of(high))) != INITIAL_RANGE for low, high in initial.values()):
        return []
    return [inner_layer(layer).name for layer in initial]


class Ranges:
    """The ranges with which a QAT graph is exported; empty for a float graph.

    Training moves each range separately; tensors that TFLite ties get the union of their ranges. Ranges that are too
    narrow for int8 kernels are widened (`scales.widened_for_accumulation`). Fixed ranges (sigmoid) stay.

    Args:
        graph: quantised or float.
        largest_weight: (call) -> largest weight magnitude of a call of the role CONVOLUTION or AFFINE, after folding.
            None does not widen ranges by the inputs that they are computed from.

    Attributes:
        of_layer: layer -> (low, high) of its output; 0 is in every range.
    """

    def __init__(self, graph: Graph, largest_weight: Callable[[Node], float] | None = None) -> None:
        self._groups = {tensor: number for number, group in enumerate(tied_groups(graph)) for tensor in group}
        fixed: dict[Layer, Range] = {}
        follows: dict[Layer, Hashable] = {}
        seen: dict[Hashable, Range] = {}
        for node in graph.nodes:
            quantizer, variables = output_quantizer(node.layer), range_variables(node.layer)
            if isinstance(quantizer, FixedRangeQuantizer):
                fixed[node.layer] = quantizer.low, quantizer.high
                continue
            if variables is None:
                continue
            key = follows[node.layer] = self._key(tensors(node.outputs)[0])
            low, high = seen.get(key, (0.0, 0.0))
            lowest, highest = (float(value_of(variable)) for variable in variables)
            seen[key] = min(lowest, low), max(highest, high)
        outside = {self._key(node.output()): fixed[node.layer] for node in graph.nodes if node.layer in fixed}
        accumulations: list[Accumulation] = []
        if largest_weight is not None and seen:
            accumulations = list(self._accumulations(graph, {*seen, *outside}, largest_weight))
        found = widened_for_accumulation(seen, accumulations, outside)
        self.of_layer = {layer: found[key] for layer, key in follows.items()} | fixed
        self._found = outside | found

    def scale(self, tensor: Tensor) -> float | None:
        """Scale (width of one int8 level) of a tensor; None without a range, as for rows of an int8 table."""
        found = self.range(tensor)
        return None if found is None else (found[1] - found[0]) / LEVELS

    def range(self, tensor: Tensor) -> Range | None:
        """(low, high) of a tensor; None without a range, as for rows of an int8 table."""
        return self._found.get(self._key(tensor))

    def _key(self, tensor: Tensor) -> Hashable:
        """The key of a tensor's range: its group, or the tensor itself if it is not tied to others."""
        return ("group", self._groups[tensor]) if tensor in self._groups else tensor

    def _accumulations(
        self, graph: Graph, known: AbstractSet[Hashable], largest_weight: Callable[[Node], float]
    ) -> Iterator[Accumulation]:
        """Yield, for each range, the sum or product that computes it; fused calls (convolution, ReLU) count as one."""
        before: dict[Tensor, Accumulation] = {}
        for node in graph.nodes:
            floats = [tensor for tensor in node.inputs() if tensor.is_float]
            outputs = tensors(node.outputs)
            if not floats or len(outputs) != 1:
                continue
            kind = role(getattr(node.layer, "layer", node.layer))
            sums = before.get(floats[0]) if kind in {Role.AFFINE, Role.RELU} else None
            sums = sums or self._accumulation_of(node, floats, largest_weight)
            if sums is None:
                continue
            key = self._key(outputs[0])
            if key in known:
                yield replace(sums, output=key)
            else:
                before[outputs[0]] = sums

    def _accumulation_of(
        self, node: Node, inputs: list[Tensor], largest_weight: Callable[[Node], float]
    ) -> Accumulation | None:
        spec = spec_of(getattr(node.layer, "layer", node.layer))
        keys = tuple(map(self._key, inputs))
        if spec.role in {Role.CONVOLUTION, Role.AFFINE}:
            return Accumulation(keys, largest_weight=largest_weight(node))
        if spec.arithmetic is Arithmetic.PRODUCT:
            return Accumulation(keys, multiplied=True)
        return Accumulation(keys) if spec.role is Role.RELU or spec.arithmetic is Arithmetic.SUM else None


def with_unambiguous_zero(low: float, high: float) -> Range:
    """A range whose zero is not halfway between two levels; any other range as it is.

    The level of 0 is an integer. In a range from -1 to 1 it would be 127.5, which TensorFlow's fake-quant operation
    may round down and the converter up; then 1.0 is 1.0039 in the QAT model and 0.9961 in the file.
    """
    zero = -low / (high - low) * LEVELS
    if abs(zero % 1.0 - 0.5) > _TIE_MARGIN:
        return low, high
    with tf.init_scope():
        outside = tf.constant([2.0 * low - high, 2.0 * high - low], tf.float32)
        ends = tf.quantization.fake_quant_with_min_max_vars(outside, low, high, num_bits=8).numpy()
    return float(ends[0]), float(ends[1])


def tied_ranges(graph: Graph) -> dict[Layer, Range]:
    """Layer -> (low, high) of its output, for the layers of a QAT graph whose output is quantised; see `Ranges`."""
    return Ranges(graph).of_layer
