"""The scheme: which calls get which quantisers, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tfmot_ops.contract import LayerReport, Outcome, Quantization
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.new_values import constants
from tfmot_ops.core.graph.operations import ACTIVATIONS, UNKNOWN, Kernel, OpSpec, Role
from tfmot_ops.core.graph.poles import float_calls
from tfmot_ops.core.graph.roles import activation_name, float_reason, kernels, role, spec_of
from tfmot_ops.core.keras.private import QuantizeLayer
from tfmot_ops.core.keras.types import Layer
from tfmot_ops.core.quantization.quantizers import (
    FixedRangeQuantizer,
    LayerQuantizeConfig,
    RangeQuantizer,
    RowsQuantizer,
    WeightQuantizer,
)
from tfmot_ops.recipes.scope import select

#: (call, kernel of its layer) -> fraction of zeros it has to hold.
RequiredSparsity = Callable[[Node, Kernel], float]

#: Activation -> (lowest, highest) value of the output range that TFLite fixes.
_FIXED_RANGES = {name: spec.fixed_range for name, spec in ACTIVATIONS.items() if spec.fixed_range}


@dataclass
class Plan:
    """What to put on each call.

    Attributes:
        configs: layer -> the quantisers a wrapper puts on it; a layer not in it is left as it is.
        tensors: tensor -> quantiser that follows a tensor without a wrapper: a graph input, the result of a call
            that is kept in float, or of a function of TensorFlow.
        reports: one row per layer.
    """

    configs: dict[Layer, LayerQuantizeConfig] = field(default_factory=dict)
    tensors: dict[Tensor, Any] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)


def make_plan(graph: Graph, source: Graph, quantization: Quantization, required: RequiredSparsity | None) -> Plan:
    """Place the quantisers on a normalised graph.

    None between convolution -> affine -> relu, nor merge -> relu, where the tensor has one reader: TFLite
    computes these as one operation. Pass-through calls get one only when several calls read them, as the
    converter otherwise leaves all readers but one in float.

    Args:
        graph: what `normalize_graph` made.
        source: what it was made from; scopes name its layers, and each of them is reported.
        quantization: its scope says the layers to quantise; the others are reported as kept in float.
        required: (call, kernel) -> fraction of zeros it has to hold to the end; None holds no zeros.
    """
    user_layers = {node.path: type(node.layer).__name__ for node in source.nodes}
    excluded = {path for path, chosen in select(quantization.scope, user_layers.items()).items() if chosen is False}
    placer = _Placer(graph, excluded, required, keep_clusters=quantization.keep_clusters)
    plan = Plan(tensors={t: RangeQuantizer() for t in graph.inputs() if t.is_float})
    calls: dict[Layer, list[Node]] = {}
    for node in graph.nodes:
        calls.setdefault(node.layer, []).append(node)
    for key, nodes in calls.items():
        # A shared layer has one wrapper: the call that needs a quantiser decides for all.
        placed = [placer.place(node) for node in nodes]
        for placement in placed:
            plan.tensors |= placement.following
        decides = min(placed, key=lambda each: _PRECEDENCE[type(each.config.output if each.config else None)])
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


#: Of the calls of a shared layer: a range that moves serves all of them.
_PRECEDENCE = {RangeQuantizer: 0, FixedRangeQuantizer: 1, type(None): 2}


class Placement(NamedTuple):
    """The quantisers of one call.

    Attributes:
        report: the row of its layer.
        config: what a wrapper puts on the layer; None for no wrapper.
        following: tensor -> the quantiser behind it, for results without a wrapper.
    """

    report: LayerReport
    config: LayerQuantizeConfig | None = None
    following: Mapping[Tensor, Any] = {}


class _Placer:
    def __init__(
        self, graph: Graph, excluded: set[str], required: RequiredSparsity | None, *, keep_clusters: bool
    ) -> None:
        self.consumers = graph.readers()
        self.results = Counter(tensor for tensor in tensors(graph.outputs))
        self.excluded = excluded
        self.required = required
        self.keep_clusters = keep_clusters
        #: Calls that a function without bound near 0 reads from.
        self.unrounded = float_calls(graph)
        self.roles = {node: self._role(node) for node in graph.nodes}
        #: Tensor -> the range that all of its group have, where TFLite fixes the range of each call they come from.
        self.fixed: dict[Tensor, tuple[float, float]] = {}
        #: Tensor -> functions in its group whose results are requantised, as their fixed range is not the group's.
        self.requantized: dict[Tensor, list[str]] = {}
        #: The table rows that have a range with other tensors.
        self.shared_rows: set[Tensor] = set()
        for group in tied_groups(graph, lambda node: self.roles[node]):
            self._read_group(group)

    def _read_group(self, group: list[Tensor]) -> None:
        """What the calls that a group's values come from mean for all its tensors."""
        origins = [tensor for tensor in group if not self._passes_on(tensor)]
        self._share_fixed_range(group, origins)
        if any(self._kind(tensor) is Role.SAME_SCALE or not self._is_alone(tensor) for tensor in group):
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
            if not _leave(group, *widest):
                self.fixed |= dict.fromkeys(group, widest)
                ranges = {name: limits for name, limits in ranges.items() if limits != widest}
        self.requantized |= dict.fromkeys(group, sorted(ranges))

    def _kind(self, tensor: Tensor) -> Role | None:
        return None if tensor.producer is None else self.roles[tensor.producer]

    def _is_alone(self, tensor: Tensor) -> bool:
        """Whether a tensor has one reader (or is a result), and its call no other result."""
        readers = len(self.consumers.get(tensor, [])) + self.results[tensor]
        return readers == 1 and (tensor.producer is None or len(tensors(tensor.producer.outputs)) == 1)

    def _role(self, node: Node) -> Role:
        # Where a mask decides, the same operation is made of others, which TFLite has in float.
        masked = isinstance(node.kwargs.get("mask"), Tensor)
        is_float = masked or node.origin in self.excluded or node in self.unrounded
        kind = Role.FLOAT if is_float else role(node.layer)
        # What puts a constant among the values has a range for both.
        return Role.SAME_SCALE if kind is Role.PASS and constants(node) else kind

    def place(self, node: Node) -> Placement:
        """The quantisers of one call, and the row of its layer's report."""
        outputs = [tensor for tensor in tensors(node.outputs) if tensor.is_float]
        if not outputs:
            return Placement(_report(node, Outcome.ABSORBED, "computes no floating-point values"))
        if self.roles[node] is Role.FLOAT:
            return self._place_float(node, outputs)
        if len(outputs) > 1 or hasattr(node.layer, "symbol"):
            return self._place_behind(node, outputs)
        return self._place_on_layer(node, outputs[0])

    def _place_float(self, node: Node, outputs: list[Tensor]) -> Placement:
        """A call that stays in float: quantisers stand where its results enter the int8 part again."""
        chosen = node.origin in self.excluded or node in self.unrounded
        has_int8_form = not hasattr(node.layer, "symbol") and role(node.layer) is not Role.FLOAT
        # The mark keeps the converter from quantising a layer that it could quantise by itself.
        config = LayerQuantizeConfig(keep_float=True) if chosen and has_int8_form else None
        return Placement(_report(node, Outcome.KEPT_FLOAT, self._why(node)), config, self._around(outputs))

    def _place_behind(self, node: Node, outputs: list[Tensor]) -> Placement:
        """A call that no wrapper fits, a function or one with several results: quantisers follow its results."""
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
        held = {name: ", its clusters held" if quantizer.keep_clusters else "" for name, quantizer in weights.items()}
        reason = " and ".join([*(f"{name} int8{more}" for name, more in held.items()), reason])
        return Placement(_report(node, Outcome.QUANTIZED, reason), LayerQuantizeConfig(weights, output))

    def _weights(self, node: Node, quantizer: type[WeightQuantizer]) -> dict[str, WeightQuantizer]:
        return {
            kernel.attribute: quantizer(
                per_channel=kernel.per_channel and not self._clustered(kernel),
                keep_sparsity=self.required is not None,
                keep_clusters=self._clustered(kernel),
                required_sparsity=self.required(node, kernel) if self.required else 0.0,
                channels_axes=kernel.channels_axes,
                swap_channels=kernel.swap_channels,
            )
            for kernel in kernels(node.layer)
        }

    def _clustered(self, kernel: Kernel) -> bool:
        """Whether a kernel's clusters are held: where channels on its last axis take what is folded into them."""
        return self.keep_clusters and kernel.channels_axes == 1 and not kernel.swap_channels

    def _why(self, node: Node) -> str:
        if node.origin in self.excluded:
            return "excluded by the recipe's scope"
        if isinstance(node.kwargs.get("mask"), Tensor):
            return "reads a mask, which TFLite does in float"
        if node in self.unrounded:
            return "a function without bound near 0 reads its result, whose small values int8 would round to 0"
        return float_reason(node.layer)

    def _around(self, outputs: list[Tensor]) -> dict[Tensor, Any]:
        """Quantisers where the result of a float call enters the int8 part again."""
        return {
            tensor: RangeQuantizer()
            for tensor in outputs
            if self.results[tensor]
            or any(self.roles[reader] is not Role.FLOAT for reader in self.consumers.get(tensor, []))
        }

    def _output(self, node: Node, tensor: Tensor) -> tuple[Any, str]:
        readers, kind = self.consumers.get(tensor, []), self.roles[node]
        if kind is Role.FIXED_RANGE:
            name = activation_name(node.layer) or ""
            return FixedRangeQuantizer(*_FIXED_RANGES[name]), f"output int8 over the fixed range of {name}"
        # The converter takes no range through a call with several results.
        if kind is Role.PASS and self._is_alone(tensor):
            return None, "passes its input's int8 values on"
        if kind is Role.GATHER:
            shares = tensor in self.shared_rows or not self._is_alone(tensor)
            return RangeQuantizer() if shares else None, "rows of the int8 table"
        if len(readers) + self.results[tensor] == 1 and readers and self._fuses(node, readers[0]):
            return None, f"computed as one with {readers[0].path}"
        requantized = self.requantized.get(tensor) if kind is Role.SAME_SCALE else None
        more = f", to which the fixed range of {' and '.join(requantized)} is requantised" if requantized else ""
        if tensor in self.fixed:
            return FixedRangeQuantizer(*self.fixed[tensor]), f"output int8 over the fixed range of its input{more}"
        return RangeQuantizer(), f"output int8{more}"

    def _fuses(self, node: Node, reader: Node) -> bool:
        fuses, next_kind = self._spec(node).fuses, self.roles[reader]
        if self.roles[node] is Role.AFFINE:
            # Folded into the convolution before it, it takes part in what that one is fused with.
            before = node.inputs()[0].producer
            folds = before is not None and self.roles[before] is Role.CONVOLUTION
            fuses = self._spec(before).fuses if before is not None and folds else fuses
            return next_kind is Role.RELU and next_kind in fuses
        if next_kind is Role.AFFINE:
            # Folded into a kernel with one scale, an affine would take its clusters apart.
            parts = any(self._clustered(kernel) and not kernel.per_channel for kernel in kernels(node.layer))
            return next_kind in fuses and not parts
        return next_kind in fuses

    def _spec(self, node: Node) -> OpSpec:
        """The row of a call; of one that has to stay in float, the row of an unknown operation."""
        return UNKNOWN if self.roles[node] is Role.FLOAT else spec_of(node.layer)


def _leave(group: list[Tensor], low: float, high: float) -> bool:
    """Whether constants that calls put among the values of a group are a step or more outside of a range."""
    step = (high - low) / 255
    calls = [tensor.producer for tensor in group if tensor.producer is not None]
    return any(array.min() < low - step or array.max() > high + step for node in calls for array in constants(node))


def _report(node: Node, outcome: Outcome, reason: str) -> LayerReport:
    return LayerReport(path=node.path, class_name=type(node.layer).__name__, outcome=outcome, reason=reason)


def tied_groups(graph: Graph, role_of: Callable[[Node], Role] | None = None) -> list[list[Tensor]]:
    """Groups of tensors that TFLite needs on one range, or it inserts requantising operations.

    A call that passes values on ties its input to its output; so do concatenation, average pooling,
    maximum and minimum. The calls of a layer with a quantiser have one range.

    Args:
        graph: normalised or quantised.
        role_of: the role of a call; None takes that of its layer.
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

    for node in graph.nodes:
        floats = [tensor for tensor in (*tensors(node.outputs), *node.inputs()) if tensor.is_float]
        if not floats:
            continue
        layer = getattr(node.layer, "layer", node.layer)
        # A quantiser on a tensor of its own gives the tensor before it its range.
        if isinstance(layer, QuantizeLayer) or _keeps_range(node, role_of(node) if role_of else role(layer)):
            tie(floats[0], floats[1:])
        if output_quantizer(node.layer) is not None:
            tie(quantized.setdefault(node.layer, floats[0]), floats[:1])
    return [group for group in members.values() if len(group) > 1]


def _keeps_range(node: Node | None, kind: Role) -> bool:
    """Whether the output of a call of this role has the range of its inputs."""
    return kind in {Role.PASS, Role.SAME_SCALE} or (kind is Role.RELU and node is not None and _clips_pool(node))


def _clips_pool(relu: Node) -> bool:
    before = relu.inputs()[0].producer
    while before is not None and isinstance(before.layer, QuantizeLayer):
        before = before.inputs()[0].producer
    return before is not None and spec_of(getattr(before.layer, "layer", before.layer)).relu_keeps_range


def output_quantizer(layer: Any) -> Any:
    """The quantiser of a quantised model's layer that its output goes through, None for none."""
    if isinstance(layer, QuantizeLayer):
        return layer.quantizer
    return getattr(getattr(layer, "quantize_config", None), "output", None)
