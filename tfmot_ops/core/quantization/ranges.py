"""The ranges of a QAT model's tensors: where they are kept, which are one, and with which the file is written."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.operations import Arithmetic, Role
from tfmot_ops.core.graph.roles import role, spec_of
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.private import QuantizeLayer, QuantizeWrapper
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.quantization.quantizers import FixedRangeQuantizer, RangeQuantizer
from tfmot_ops.core.quantization.scales import LEVELS, Range, Sums, computable
from tfmot_ops.core.quantization.scheme import output_quantizer, tied_groups


def range_variables(layer: Layer) -> tuple[Any, Any] | None:
    """(min, max) variables of the range that follows a layer's output, None when there is none."""
    variables = None
    if isinstance(layer, QuantizeWrapper):
        variables = private.output_range_variables(layer)
    elif isinstance(layer, QuantizeLayer) and isinstance(layer.quantizer, RangeQuantizer):
        variables = layer.quantizer_vars
    return (variables["min_var"], variables["max_var"]) if variables else None


class Ranges:
    """The ranges of a QAT graph, tied and wide enough to compute with; none of a float graph.

    Tensors that TFLite needs on one range have the widest of theirs: training moves each on its own. Fixed ranges stay.

    Args:
        graph: quantised or float.
        largest_weight: gives the largest magnitude of the weights of a call of the role CONVOLUTION or AFFINE, with
            what is folded into them; None leaves an output's range as it is next to those of the call's inputs.

    Attributes:
        of_layer: layer -> the range that follows its calls, 0 included.
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
            seen[key] = min(float(variables[0]), low), max(float(variables[1]), high)
        outside = {self._key(node.output()): fixed[node.layer] for node in graph.nodes if node.layer in fixed}
        sums = [] if largest_weight is None or not seen else list(self._sums(graph, {*seen, *outside}, largest_weight))
        found = computable(seen, sums, outside)
        self.of_layer = {layer: found[key] for layer, key in follows.items()} | fixed
        self._found = outside | found

    def scale(self, tensor: Tensor) -> float | None:
        """Size of a level of a tensor; None where it has no range, as the rows of an int8 table have none."""
        found = self._found.get(self._key(tensor))
        return None if found is None else (found[1] - found[0]) / LEVELS

    def _key(self, tensor: Tensor) -> Hashable:
        """The group of a tensor, or the tensor where it is tied to none."""
        return ("group", self._groups[tensor]) if tensor in self._groups else tensor

    def _sums(
        self, graph: Graph, known: AbstractSet[Hashable], largest_weight: Callable[[Node], float]
    ) -> Iterator[Sums]:
        """What each range is computed from; calls that are computed as one are one."""
        before: dict[Tensor, Sums] = {}
        for node in graph.nodes:
            floats = [tensor for tensor in node.inputs() if tensor.is_float]
            outputs = tensors(node.outputs)
            if not floats or len(outputs) != 1:
                continue
            kind = role(getattr(node.layer, "layer", node.layer))
            sums = before.get(floats[0]) if kind in {Role.AFFINE, Role.RELU} else None
            sums = sums or self._computed(node, floats, largest_weight)
            if sums is None:
                continue
            key = self._key(outputs[0])
            if key in known:
                yield replace(sums, output=key)
            else:
                before[outputs[0]] = sums

    def _computed(self, node: Node, inputs: list[Tensor], largest_weight: Callable[[Node], float]) -> Sums | None:
        spec = spec_of(getattr(node.layer, "layer", node.layer))
        keys = tuple(map(self._key, inputs))
        if spec.role in {Role.CONVOLUTION, Role.AFFINE}:
            return Sums(keys, largest_weight=largest_weight(node))
        if spec.arithmetic is Arithmetic.PRODUCT:
            return Sums(keys, multiplied=True)
        return Sums(keys) if spec.role is Role.RELU or spec.arithmetic is Arithmetic.SUM else None


def tied_ranges(graph: Graph) -> dict[Layer, Range]:
    """Each layer of a QAT graph that a range follows, with its (low, high); see `Ranges`."""
    return Ranges(graph).of_layer
