"""The scheme: which calls get which quantisers, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tfmot_ops.contract import LayerReport, Outcome, Scope
from tfmot_ops.core.affine import Affine
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.kernels import Kernel, kernels
from tfmot_ops.core.legacy_keras import keras
from tfmot_ops.core.quantizers import FixedRangeQuantizer, LayerQuantizeConfig, RangeQuantizer, WeightQuantizer
from tfmot_ops.core.scope import select

_L = keras.layers

#: (call, kernel of its layer) -> fraction of zeros it has to hold.
RequiredSparsity = Callable[[Node, Kernel], float]

#: TFLite fixes the output range of these (tflite/core quantization spec): 1/256 and 1/128 a level.
_FIXED_RANGES = {"sigmoid": (0.0, 255 / 256), "softmax": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
#: Calls whose values are their input's: they share its range and need no quantiser of their own.
_PASS_THROUGH = (
    _L.MaxPooling1D,
    _L.MaxPooling2D,
    _L.GlobalMaxPooling1D,
    _L.GlobalMaxPooling2D,
    _L.ZeroPadding1D,
    _L.ZeroPadding2D,
    _L.Cropping1D,
    _L.Cropping2D,
    _L.UpSampling1D,
    _L.UpSampling2D,
    _L.Reshape,
    _L.Flatten,
    _L.Permute,
    _L.RepeatVector,
    _L.Dropout,
    _L.SpatialDropout1D,
    _L.SpatialDropout2D,
    _L.GaussianNoise,
    _L.GaussianDropout,
    _L.ActivityRegularization,
)
#: Calls that compute, and whose int8 form needs one range for all inputs and the output.
_SAME_SCALE = (_L.Concatenate, _L.Maximum, _L.Minimum, _L.AveragePooling1D, _L.AveragePooling2D)
#: Calls that compute and that TFLite has in int8 with a range of its own for each tensor.
_COMPUTES = (
    _L.Add,
    _L.Subtract,
    _L.Multiply,
    _L.GlobalAveragePooling1D,
    _L.GlobalAveragePooling2D,
    _L.LeakyReLU,
    _L.PReLU,
    Affine,
)
#: Calls into whose kernel the export folds the affine that follows; placement and export agree by this list.
FOLDING = (_L.Conv1D, _L.Conv2D, _L.DepthwiseConv2D, _L.Dense)
CONVOLUTIONS = (*FOLDING, _L.Conv2DTranspose)
_ACTIVATIONS = {"relu", "relu6", "swish", "silu", "hard_swish", "gelu", "elu", "linear", *_FIXED_RANGES}


@dataclass
class Plan:
    """What to put on each call.

    Attributes:
        configs: id(layer) -> the quantisers a wrapper puts on it; a layer not in it is left as it is.
        inputs: id(tensor) -> quantiser of a graph input; integer inputs have none.
        reports: one row a layer.
    """

    configs: dict[int, LayerQuantizeConfig] = field(default_factory=dict)
    inputs: dict[int, Any] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)


def activation_name(layer: Any) -> str | None:
    """Name of the function an activation layer computes, None for any other layer."""
    match layer:
        case _L.ReLU():
            if layer.negative_slope or layer.threshold:
                return None
            bounds = {None: "relu", 6.0: "relu6"}
            return bounds.get(None if layer.max_value is None else float(layer.max_value))
        case _L.Softmax():
            return "softmax"
        case _L.Activation():
            return getattr(layer.activation, "__name__", None)
    return None


def is_affine(layer: Any) -> bool:
    """Whether inference computes one scale and one offset per channel (last axis)."""
    if isinstance(layer, Affine):
        return True
    if not isinstance(layer, _L.BatchNormalization):
        return False
    axis = layer.axis if isinstance(layer.axis, int) else next(iter(layer.axis))
    return axis == -1 or (layer.input_spec is not None and axis == layer.input_spec.ndim - 1)


def make_plan(graph: Graph, source: Graph, scope: Scope, required: RequiredSparsity | None) -> Plan:
    """Place the quantisers on a normalised graph.

    None between convolution -> affine -> relu, nor merge -> relu, where the tensor has one reader: TFLite
    computes these as one operation. Pass-through calls get one only when several calls read them, as the
    converter otherwise leaves all readers but one in float.

    Args:
        graph: what `normalize_graph` made.
        source: what it was made from; scopes name its layers, and each of them is reported.
        scope: layers to quantise; the others are reported as kept in float.
        required: (call, kernel) -> fraction of zeros it has to hold to the end; None holds no zeros.
    """
    user_layers = {node.path: type(node.layer).__name__ for node in source.nodes}
    excluded = {path for path, chosen in select(scope, user_layers.items()).items() if chosen is False}
    placer = _Placer(graph, excluded, required)
    plan = Plan(inputs={id(t): RangeQuantizer() for t in graph.inputs() if t.is_float})
    calls: dict[int, list[Node]] = {}
    for node in graph.nodes:
        calls.setdefault(id(node.layer), []).append(node)
    for key, nodes in calls.items():
        # A shared layer has one wrapper: the call that needs a quantiser decides for all.
        placed = [placer.place(node) for node in nodes]
        config, report = next((one for one in placed if one[0] is not None and one[0].output is not None), placed[0])
        plan.reports.append(report)
        if config is not None:
            plan.configs[key] = config
    computed = {node.origin for node in graph.nodes}
    plan.reports += [
        LayerReport(path=path, class_name=name, outcome=Outcome.ABSORBED, reason="composed into the layers around it")
        for path, name in user_layers.items()
        if path not in computed
    ]
    return plan


class _Placer:
    def __init__(self, graph: Graph, excluded: set[str], required: RequiredSparsity | None) -> None:
        self.consumers = graph.consumers()
        self.results = Counter(id(tensor) for tensor in tensors(graph.outputs))
        self.excluded = excluded
        self.required = required

    def place(self, node: Node) -> tuple[LayerQuantizeConfig | None, LayerReport]:
        layer = node.layer
        outputs = tensors(node.outputs)
        if node.origin in self.excluded:
            return None, _report(node, Outcome.KEPT_FLOAT, "excluded by the recipe's scope")
        if len(outputs) != 1 or not outputs[0].is_float:
            return None, _report(node, Outcome.KEPT_FLOAT, "no single floating-point output")
        if not self._is_known(layer):
            return None, _report(node, Outcome.KEPT_FLOAT, f"TFLite has no int8 form of {type(layer).__name__} here")
        weights = {
            kernel.attribute: WeightQuantizer(
                per_channel=kernel.per_channel,
                keep_sparsity=self.required is not None,
                required_sparsity=self.required(node, kernel) if self.required else 0.0,
                channels_axes=kernel.channels_axes,
                swap_channels=kernel.swap_channels,
            )
            for kernel in kernels(layer)
        }
        output, reason = self._output(node, outputs[0])
        if not weights and output is None:
            return None, _report(node, Outcome.ABSORBED, reason)
        return LayerQuantizeConfig(weights, output), _report(
            node, Outcome.QUANTIZED, " and ".join([*(f"{name} int8" for name in weights), reason])
        )

    def _is_known(self, layer: Any) -> bool:
        return (
            is_affine(layer)
            or activation_name(layer) in _ACTIVATIONS
            or type(layer) in (*_PASS_THROUGH, *_SAME_SCALE, *_COMPUTES, *CONVOLUTIONS)
        )

    def _output(self, node: Node, tensor: Tensor) -> tuple[Any, str]:
        readers = self.consumers.get(id(tensor), [])
        name = activation_name(node.layer)
        if name in _FIXED_RANGES:
            return FixedRangeQuantizer(*_FIXED_RANGES[name]), f"output int8 over the fixed range of {name}"
        if (type(node.layer) in _PASS_THROUGH or name == "linear") and len(readers) + self.results[id(tensor)] == 1:
            return None, "passes its input's int8 values on"
        if len(readers) == 1 and not self.results[id(tensor)] and self._fuses(node.layer, readers[0].layer):
            return None, f"computed as one with {readers[0].path}"
        return RangeQuantizer(), "output int8"

    @staticmethod
    def _fuses(layer: Any, reader: Any) -> bool:
        relu = activation_name(reader) in {"relu", "relu6"}
        if type(layer) in CONVOLUTIONS:
            return relu or (type(layer) in FOLDING and is_affine(reader))
        return relu and (is_affine(layer) or type(layer) in {_L.Add, _L.Subtract, _L.Multiply})


def _report(node: Node, outcome: Outcome, reason: str) -> LayerReport:
    return LayerReport(path=node.path, class_name=type(node.layer).__name__, outcome=outcome, reason=reason)


def tied_groups(graph: Graph) -> list[list[Tensor]]:
    """Groups of tensors that TFLite needs on one range, or it inserts requantising operations.

    A call that passes values on ties its input to its output; so do concatenation, average pooling,
    maximum and minimum.
    """
    leader: dict[int, int] = {}
    members: dict[int, list[Tensor]] = {}

    def find(tensor: Tensor) -> int:
        key = id(tensor)
        leader.setdefault(key, key)
        members.setdefault(key, [tensor])
        while leader[key] != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for node in graph.nodes:
        layer = getattr(node.layer, "layer", node.layer)
        if type(layer) in (*_PASS_THROUGH, *_SAME_SCALE) or activation_name(layer) == "linear":
            output = node.output()
            for tensor in node.inputs():
                first, second = find(output), find(tensor)
                if first != second:
                    leader[second] = first
                    members[first] += members.pop(second)
    return [group for group in members.values() if len(group) > 1]
