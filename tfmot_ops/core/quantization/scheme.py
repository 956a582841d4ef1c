"""The quantisation scheme: which calls of a graph get which quantisers, with a reason for each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tfmot_ops.contract import LayerReport, Outcome, Quantization, WeightScales
from tfmot_ops.core.graph.divergence import calls_before_divergence
from tfmot_ops.core.graph.float_reasons import float_reason
from tfmot_ops.core.graph.integer_inputs import INTEGER_VALUES_REASON, integer_valued_tensors, uses_integer_values
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.layers import MaskedScores, Power
from tfmot_ops.core.graph.new_values import output_constants
from tfmot_ops.core.graph.operations import ACTIVATIONS, UNKNOWN, Kernel, OpSpec, Role
from tfmot_ops.core.graph.roles import activation_name, kernels, role, spec_of
from tfmot_ops.core.graph.weight_only import weight_only_calls
from tfmot_ops.core.keras.private import QuantizeLayer
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.quantization.quantizers import (
    ConstantQuantizer,
    LayerQuantizeConfig,
    RowsQuantizer,
    WeightQuantizer,
)
from tfmot_ops.core.quantization.range_quantizers import FixedRangeQuantizer, MaskedRangeQuantizer, RangeQuantizer
from tfmot_ops.recipes.scope import select

#: (call, kernel of its layer) -> fraction of zeros that the kernel must have.
RequiredSparsity = Callable[[Node, Kernel], float]

#: Activation -> (lowest, highest) value of the output range that TFLite prescribes.
_FIXED_RANGES = {name: spec.fixed_range for name, spec in ACTIVATIONS.items() if spec.fixed_range}


@dataclass
class Plan:
    """The quantisers of a graph.

    Attributes:
        configs: layer -> quantisers for its wrapper; a layer that is not listed gets no wrapper.
        tensors: tensor -> quantiser, which becomes a layer of its own. Used for graph inputs, results of float calls
            and results of TensorFlow functions, none of which has a wrapper.
        reports: one report per layer.
    """

    configs: dict[Layer, LayerQuantizeConfig] = field(default_factory=dict)
    tensors: dict[Tensor, Any] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)


def make_plan(graph: Graph, source: Graph, quantization: Quantization, required: RequiredSparsity | None) -> Plan:
    """Place the quantisers on a normalised graph.

    There is no quantiser inside convolution -> affine -> ReLU and merge -> ReLU if the inner tensor has one reader:
    TFLite computes these calls as one operation. A call that passes values on (reshape, max pooling) gets a quantiser
    only if several calls read its result, as the converter would otherwise leave all readers but one in float.

    Args:
        graph: from `normalize_graph`.
        source: graph of the user's model before normalisation; scopes refer to its layers, and each gets a report.
        quantization: layers outside its scope are reported as kept in float.
        required: (call, kernel) -> fraction of zeros that the kernel must have after QAT; None keeps no zeros.

    Raises:
        ScopeError: a selector of the scope matches no layer.
    """
    user_layers = {node.path: type(node.layer).__name__ for node in source.nodes}
    excluded = {path for path, chosen in select(quantization.scope, user_layers.items()).items() if chosen is False}
    placer = _Placer(graph, excluded, required, quantization)
    rounded = (tensor for tensor in graph.inputs() if tensor.is_float and tensor not in placer.exact)
    plan = Plan(tensors={tensor: RangeQuantizer() for tensor in rounded})
    calls: dict[Layer, list[Node]] = {}
    for node in graph.nodes:
        calls.setdefault(node.layer, []).append(node)
    for key, nodes in calls.items():
        # A shared layer has one wrapper: if any of its calls needs an output quantiser, all calls get it.
        placed = [placer.place(node) for node in nodes]
        for placement in placed:
            plan.tensors |= placement.following
        decides = min(placed, key=lambda call: _PRECEDENCE[type(call.config.output if call.config else None)])
        plan.reports.append(decides.report)
        if decides.config is not None:
            plan.configs[key] = decides.config
    computed = {node.origin for node in graph.nodes}
    plan.reports += [
        LayerReport(path=path, class_name=name, outcome=Outcome.ABSORBED, reason="composed into the layers around it")
        for path, name in user_layers.items()
        if path not in computed
    ]
    return plan


#: Which output quantiser a shared layer gets if its calls need different ones; a trained range fits every call.
_PRECEDENCE = {MaskedRangeQuantizer: 0, RangeQuantizer: 0, FixedRangeQuantizer: 1, type(None): 2}


class Placement(NamedTuple):
    """The quantisers of one call.

    Attributes:
        report: the row of its layer.
        config: what a wrapper puts on the layer; None for no wrapper.
        following: tensor -> the quantiser layer that follows it, for results without a wrapper.
    """

    report: LayerReport
    config: LayerQuantizeConfig | None = None
    following: Mapping[Tensor, Any] = {}


class _Placer:
    """Finds the role of each call of a graph and the ranges that tensors share, and places the quantisers of a call."""

    def __init__(
        self, graph: Graph, excluded: set[str], required: RequiredSparsity | None, quantization: Quantization
    ) -> None:
        self.consumers = graph.readers()
        self.results = Counter(tensor for tensor in tensors(graph.outputs))
        self.excluded = excluded
        self.required = required
        self.keep_clusters = quantization.keep_clusters
        self.per_channel = quantization.weight_scales is WeightScales.PER_CHANNEL
        #: Calls that prepare the operand of a function that diverges at 0; they stay in float.
        self.float_calls = calls_before_divergence(graph)
        #: Tensors that are used as integers, which no quantiser may change.
        self.exact = integer_valued_tensors(graph)
        #: Calls that depend on weights alone: only those of their results that int8 calls read get a quantiser.
        self.constant = weight_only_calls(graph)
        self.roles = {node: self._role(node) for node in graph.nodes}
        #: Tensor -> fixed range of its group, if all values of the group come from functions with a fixed range.
        self.fixed: dict[Tensor, tuple[float, float]] = {}
        #: Tensor -> functions in its group whose fixed range differs from the group's, so TFLite requantises them.
        self.requantized: dict[Tensor, list[str]] = {}
        #: Looked-up embedding rows that share their range with other tensors.
        self.shared_rows: set[Tensor] = set()
        for group in tied_groups(graph, lambda node: self.roles[node]):
            self._read_group(group)

    def _read_group(self, group: list[Tensor]) -> None:
        """Fill `fixed`, `requantized` and `shared_rows` for the tensors of a tied group.

        Example: the concatenation of a sigmoid and a tanh gets tanh's range, the wider one; the sigmoid is requantised.
        """
        origins = [tensor for tensor in group if not self._passes_on(tensor)]
        self._share_fixed_range(group, origins)
        if any(self._kind(tensor) is Role.SAME_SCALE or not self._is_used_once(tensor) for tensor in group):
            self.shared_rows |= {tensor for tensor in origins if self._kind(tensor) is Role.GATHER}

    def _passes_on(self, tensor: Tensor) -> bool:
        """Whether a tensor holds values of another tensor of its group."""
        kind = self._kind(tensor)
        return kind is not None and _keeps_range(tensor.producer, kind)

    def _share_fixed_range(self, group: list[Tensor], origins: list[Tensor]) -> None:
        """Give a group the widest fixed range of its origins, where all of them have one and no constant leaves it."""
        fixed = [tensor.producer for tensor in origins if tensor.producer and self._kind(tensor) is Role.FIXED_RANGE]
        ranges = {name: _FIXED_RANGES[name] for name in {activation_name(node.layer) or "" for node in fixed}}
        if fixed and len(fixed) == len(origins):
            widest = max(ranges.values(), key=lambda limits: limits[1] - limits[0])
            if not _has_constants_outside(group, *widest):
                self.fixed |= dict.fromkeys(group, widest)
                ranges = {name: limits for name, limits in ranges.items() if limits != widest}
        self.requantized |= dict.fromkeys(group, sorted(ranges))

    def _kind(self, tensor: Tensor) -> Role | None:
        return None if tensor.producer is None else self.roles[tensor.producer]

    def _is_used_once(self, tensor: Tensor) -> bool:
        """Whether a tensor is used once (by a call, or as an output), and is the only result of its call."""
        readers = len(self.consumers.get(tensor, [])) + self.results[tensor]
        return readers == 1 and (tensor.producer is None or len(tensors(tensor.producer.outputs)) == 1)

    def _role(self, node: Node) -> Role:
        if node in self.constant:
            return Role.CONSTANT
        masked = isinstance(node.kwargs.get("mask"), Tensor)
        is_chosen = node.origin in self.excluded or node in self.float_calls
        is_float = masked or is_chosen or uses_integer_values(node, self.exact)
        varying = sum(tensor.producer not in self.constant for tensor in node.inputs())
        kind = Role.FLOAT if is_float or (spec_of(node.layer).table and varying > 1) else role(node.layer)
        # The range of a call with a constant in its output (tf.pad) must contain input and constant.
        return Role.SAME_SCALE if kind is Role.PASS and output_constants(node) else kind

    def place(self, node: Node) -> Placement:
        """The quantisers of one call, and the row of its layer's report."""
        outputs = [tensor for tensor in tensors(node.outputs) if tensor.is_float]
        if not outputs:
            return Placement(_report(node, Outcome.ABSORBED, "computes no floating-point values"))
        if self.roles[node] is Role.FLOAT:
            return self._place_float(node, outputs)
        if self.roles[node] is Role.CONSTANT:
            return self._place_constant(node, outputs)
        if len(outputs) > 1 or hasattr(node.layer, "symbol"):
            return self._place_after_call(node, outputs)
        return self._place_on_layer(node, outputs[0])

    def _place_float(self, node: Node, outputs: list[Tensor]) -> Placement:
        """A call that stays in float: quantisers stand where its results enter the int8 part again."""
        chosen = node.origin in self.excluded or node in self.float_calls
        has_int8_form = not hasattr(node.layer, "symbol") and role(node.layer) is not Role.FLOAT
        config = LayerQuantizeConfig(keep_float=True) if chosen and has_int8_form else None
        return Placement(
            _report(node, Outcome.KEPT_FLOAT, self._why_float(node)), config, self._quantizers_after_float(outputs)
        )

    def _place_constant(self, node: Node, outputs: list[Tensor]) -> Placement:
        """A weight, or a function of weights: the converter computes it, and rounds what int8 calls read of it."""
        following = {
            tensor: ConstantQuantizer() if self._is_kernel(tensor) else quantizer
            for tensor, quantizer in self._quantizers_after_float(outputs).items()
        }
        outcome = Outcome.QUANTIZED if following else Outcome.ABSORBED
        reason = "a constant, int8 in the file" if following else "a part of a constant of the file"
        return Placement(_report(node, outcome, reason), following=following)

    def _is_kernel(self, tensor: Tensor) -> bool:
        """Whether a matrix product reads a constant, and no call that ties the constant's range to another tensor's."""
        readers = self.consumers.get(tensor, [])
        tied = any(self.roles[reader] in {Role.PASS, Role.SAME_SCALE} for reader in readers)
        return not tied and any("BATCH_MATMUL" in self._spec(reader).tflite for reader in readers)

    def _place_after_call(self, node: Node, outputs: list[Tensor]) -> Placement:
        """A call that cannot have a wrapper (a function, several results): quantiser layers follow its results."""
        placed = {tensor: self._output(node, tensor) for tensor in outputs}
        reason = next((reason for output, reason in placed.values() if output), "passes its input's int8 values on")
        following = {tensor: output for tensor, (output, _) in placed.items() if output}
        outcome = Outcome.QUANTIZED if following else Outcome.ABSORBED
        return Placement(_report(node, outcome, reason), following=following)

    def _place_on_layer(self, node: Node, tensor: Tensor) -> Placement:
        """A call of a layer with one result: a wrapper holds the quantisers of its weights and its output."""
        output, reason = self._output(node, tensor)
        shares = self.roles[node] is Role.GATHER and output is not None
        weights = self._weights(node, RowsQuantizer if shares else WeightQuantizer)
        if not weights and output is None:
            return Placement(_report(node, Outcome.ABSORBED, reason))
        held = {name: ", clusters kept" if quantizer.keep_clusters else "" for name, quantizer in weights.items()}
        reason = " and ".join([*(f"{name} int8{more}" for name, more in held.items()), reason])
        return Placement(_report(node, Outcome.QUANTIZED, reason), LayerQuantizeConfig(weights, output))

    def _weights(self, node: Node, quantizer: type[WeightQuantizer]) -> dict[str, WeightQuantizer]:
        return {
            kernel.attribute: quantizer(
                per_channel=kernel.per_channel and self.per_channel and not self._keeps_clusters(kernel),
                keep_sparsity=self.required is not None,
                keep_clusters=self._keeps_clusters(kernel),
                required_sparsity=self.required(node, kernel) if self.required else 0.0,
                channels_axes=kernel.channels_axes,
                swap_channels=kernel.swap_channels,
            )
            for kernel in kernels(node.layer)
        }

    def _keeps_clusters(self, kernel: Kernel) -> bool:
        """Whether a kernel's clusters are kept; only for kernels [..., C_out], whose scales export can fold."""
        return self.keep_clusters and kernel.channels_axes == 1 and not kernel.swap_channels

    def _why_float(self, node: Node) -> str:
        if node.origin in self.excluded:
            return "excluded by the recipe's scope"
        if isinstance(node.kwargs.get("mask"), Tensor) and not kernels(node.layer):
            return "uses a mask, which TFLite computes in float only"
        if uses_integer_values(node, self.exact):
            return INTEGER_VALUES_REASON
        if node in self.float_calls:
            return "a function that diverges at 0 (log, division) reads its result, which int8 could round to 0"
        return float_reason(node.layer)

    def _quantizers_after_float(self, outputs: list[Tensor]) -> dict[Tensor, Any]:
        """Quantisers for the results of a float call that an int8 call reads or that are outputs of the model."""
        return {
            tensor: RangeQuantizer()
            for tensor in outputs
            if tensor not in self.exact
            and (self.results[tensor] or any(self._reads_int8(reader, tensor) for reader in self.consumers[tensor]))
        }

    def _reads_int8(self, reader: Node, tensor: Tensor) -> bool:
        """Whether a call is int8 and reads a tensor at run time; the exponent of a `Power` is a part of its table."""
        is_exponent = isinstance(reader.layer, Power) and tensor is reader.inputs()[1]
        return self.roles[reader] not in {Role.FLOAT, Role.CONSTANT} and not is_exponent

    def _output(self, node: Node, tensor: Tensor) -> tuple[Any, str]:
        readers, kind = self.consumers.get(tensor, []), self.roles[node]
        if kind is Role.FIXED_RANGE:
            name = activation_name(node.layer) or ""
            return FixedRangeQuantizer(*_FIXED_RANGES[name]), f"output int8 over the fixed range of {name}"
        # The converter does not copy a range through a call with several results, so those get quantisers.
        if kind is Role.PASS and self._is_used_once(tensor):
            return None, "passes its input's int8 values on"
        if kind is Role.GATHER:
            shares = tensor in self.shared_rows or not self._is_used_once(tensor)
            return RangeQuantizer() if shares else None, "rows of the int8 table"
        if len(readers) + self.results[tensor] == 1 and readers and self._fuses(node, readers[0]):
            return None, f"computed as one with {readers[0].path}"
        requantized = self.requantized.get(tensor) if kind is Role.SAME_SCALE else None
        more = f", to which the fixed range of {' and '.join(requantized)} is requantised" if requantized else ""
        if tensor in self.fixed:
            return FixedRangeQuantizer(*self.fixed[tensor]), f"output int8 over the fixed range of its input{more}"
        more = ", computed by a table of 256 entries" if self._spec(node).table else more
        quantizer = MaskedRangeQuantizer if isinstance(node.layer, MaskedScores) else RangeQuantizer
        return quantizer(), f"output int8{more}"

    def _fuses(self, node: Node, reader: Node) -> bool:
        fuses, next_kind = self._spec(node).fuses, self.roles[reader]
        if self.roles[node] is Role.AFFINE:
            # An affine is folded into the convolution before it, so the ReLU is fused into that convolution.
            before = node.inputs()[0].producer
            folds = before is not None and self.roles[before] is Role.CONVOLUTION
            fuses = self._spec(before).fuses if before is not None and folds else fuses
            return next_kind is Role.RELU and next_kind in fuses
        if next_kind is Role.AFFINE:
            # A clustered kernel with one scale: folding a scale per channel would split its clusters.
            parts = any(self._keeps_clusters(kernel) and not kernel.per_channel for kernel in kernels(node.layer))
            return next_kind in fuses and not parts
        return next_kind in fuses

    def _spec(self, node: Node) -> OpSpec:
        """The operation table's row for a call; UNKNOWN for a call that has to stay in float."""
        return UNKNOWN if self.roles[node] is Role.FLOAT else spec_of(node.layer)


def _has_constants_outside(group: list[Tensor], low: float, high: float) -> bool:
    """Whether a constant in the outputs of the group's calls is more than one int8 step outside the range."""
    step = (high - low) / 255
    calls = [tensor.producer for tensor in group if tensor.producer is not None]
    arrays = [array for node in calls for array in output_constants(node)]
    return any(array.min() < low - step or array.max() > high + step for array in arrays)


def _report(node: Node, outcome: Outcome, reason: str) -> LayerReport:
    return LayerReport(path=node.path, class_name=type(node.layer).__name__, outcome=outcome, reason=reason)


def tied_groups(graph: Graph, role_of: Callable[[Node], Role] | None = None) -> list[list[Tensor]]:
    """Groups of tensors that must share one range; otherwise TFLite inserts operations that requantise.

    Input and output are tied by calls that pass values on (reshape, max pooling), and by concatenation, average
    pooling, maximum and minimum. The outputs of all calls of a shared layer with a quantiser are tied too.

    Args:
        graph: normalised or quantised.
        role_of: (call) -> role; None uses the role of the call's layer.

    Returns:
        The groups of two or more tensors.
    """
    leader: dict[Tensor, Tensor] = {}
    members: dict[Tensor, list[Tensor]] = {}
    quantized: dict[Layer, Tensor] = {}

    def find(tensor: Tensor) -> Tensor:
        leader.setdefault(tensor, tensor)
        members.setdefault(tensor, [tensor])
        while leader[tensor] is not tensor:
            leader[tensor] = leader[leader[tensor]]
            tensor = leader[tensor]
        return tensor

    def tie(first: Tensor, others: list[Tensor]) -> None:
        for tensor in others:
            a, b = find(first), find(tensor)
            if a != b:
                leader[b] = a
                members[a] += members.pop(b)

    constant = weight_only_calls(graph)
    for node in graph.nodes:
        floats = [tensor for tensor in (*tensors(node.outputs), *node.inputs()) if tensor.is_float]
        if not floats or node in constant:
            continue
        layer = getattr(node.layer, "layer", node.layer)
        # A QuantizeLayer quantises its input, so input and output have one range.
        if isinstance(layer, QuantizeLayer) or _keeps_range(node, role_of(node) if role_of else role(layer)):
            tie(floats[0], floats[1:])
        if output_quantizer(node.layer) is not None:
            tie(quantized.setdefault(node.layer, floats[0]), floats[:1])
    return [group for group in members.values() if len(group) > 1]


def _keeps_range(node: Node | None, kind: Role) -> bool:
    """Whether the output of a call of this role shares the range of its inputs."""
    return kind in {Role.PASS, Role.SAME_SCALE} or (kind is Role.RELU and node is not None and _clips_pool(node))


def _clips_pool(relu: Node) -> bool:
    before = relu.inputs()[0].producer
    while before is not None and isinstance(before.layer, QuantizeLayer):
        before = before.inputs()[0].producer
    return before is not None and spec_of(getattr(before.layer, "layer", before.layer)).relu_keeps_range


def output_quantizer(layer: Any) -> Any:
    """The quantiser of a layer's output in a QAT model; None if the output is not quantised."""
    if isinstance(layer, QuantizeLayer):
        return layer.quantizer
    return getattr(getattr(layer, "quantize_config", None), "output", None)
