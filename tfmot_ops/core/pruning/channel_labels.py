"""Which channels of a graph's tensors can only be removed together: the labels that channel pruning removes.

A label stands for one filter of a layer, and for all channels that it reaches: through BatchNormalization, activations
and pooling, through depthwise convolutions, concatenations and the pixels of a Flatten. An addition or product of two
tensors makes the labels of a channel one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.pointwise import ELEMENTWISE_FUNCTIONS
from tfmot_ops.core.graph.rules.arithmetic import symbol_of
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer

_L = keras.layers
Labels = npt.NDArray[np.int64]
#: (call, its float inputs) -> the labels of its result; None if the call does something else with channels.
_Rule = Callable[[Node, list[Tensor]], Labels | None]

#: Layers with a kernel whose filters can be removed; `filters` or `units` is their number.
DENSE, CONVOLUTIONS = {_L.Dense}, {_L.Conv1D, _L.Conv2D, _L.Conv3D}
TRANSPOSED = {_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose}
SEPARABLE, DEPTHWISE = {_L.SeparableConv1D, _L.SeparableConv2D}, {_L.DepthwiseConv1D, _L.DepthwiseConv2D}
WITH_FILTERS = DENSE | CONVOLUTIONS | TRANSPOSED | SEPARABLE
#: Layers that compute each channel from the same channel, without weights.
_BY_CHANNEL = {
    *(_L.ReLU, _L.LeakyReLU, _L.ELU, _L.ThresholdedReLU, _L.Activation, _L.Identity, _L.Dropout, _L.GaussianNoise),
    *(_L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D, _L.GaussianDropout, _L.AlphaDropout),
    *(_L.ZeroPadding1D, _L.ZeroPadding2D, _L.ZeroPadding3D, _L.Cropping1D, _L.Cropping2D, _L.Cropping3D),
    *(_L.UpSampling1D, _L.UpSampling2D, _L.UpSampling3D, _L.ActivityRegularization),
    *(_L.MaxPooling1D, _L.MaxPooling2D, _L.MaxPooling3D, _L.AveragePooling1D, _L.AveragePooling2D),
    *(_L.AveragePooling3D, _L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D, _L.GlobalAveragePooling3D),
    *(_L.GlobalMaxPooling1D, _L.GlobalMaxPooling2D, _L.GlobalMaxPooling3D),
}
#: Layers that compute each channel from the same channel, with weights for each channel.
WITH_CHANNEL_WEIGHTS = {_L.BatchNormalization, _L.PReLU}
_MERGES = {_L.Add, _L.Subtract, _L.Multiply, _L.Average, _L.Maximum, _L.Minimum}
_MERGING_FUNCTIONS = {"math.add", "__operators__.add", "math.subtract", "math.multiply", "math.maximum", "math.minimum"}
#: Activations that compute an element from several channels.
_ACROSS_CHANNELS = {"softmax", "log_softmax"}


class ChannelLabels:
    """The labels of the channels of each tensor.

    Args:
        graph: the layer graph.

    Attributes:
        of: tensor -> labels [channels] of its last axis; those that belong together are not made equal yet, see `root`.
        need_all: classes of the layers, or names of the functions, that need all channels of their inputs.
    """

    def __init__(self, graph: Graph) -> None:
        self._parents: list[int] = []
        self._fixed: set[int] = set()
        self._filters: dict[Layer, Labels] = {}
        self._reads: dict[Layer, Labels] = {}
        self.of: dict[Tensor, Labels] = {}
        self.need_all: Counter[str] = Counter()
        for tensor in graph.inputs():
            self.of[tensor] = self._fixed_labels(tensor)
        for node in graph.nodes:
            self._label(node)
        for tensor in tensors(graph.outputs):
            self._fix(self.of[tensor])
        self._roots = np.array([self.root(label) for label in range(len(self._parents))], np.int64)
        self._is_fixed = np.zeros(len(self._parents), bool)
        self._is_fixed[[self.root(label) for label in self._fixed]] = True

    def root(self, label: int) -> int:
        """The label that stands for all labels that are removed with this one."""
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def roots(self, tensor: Tensor) -> Labels:
        """The labels [channels] of a tensor, those that belong together made equal."""
        return self._roots[self.of[tensor]] if self.of[tensor].size else self.of[tensor]

    def removable(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Whether the channels of some labels may be removed."""
        return ~self._is_fixed[labels] if labels.size else np.zeros(0, bool)

    def _new(self, count: int) -> Labels:
        """New removable labels, each for one channel."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count)

    def _fixed_labels(self, tensor: Tensor) -> Labels:
        labels = self._new(tensor.channels or 0)
        self._fix(labels)
        return labels

    def _fix(self, labels: Iterable[int]) -> None:
        """Mark labels as not removable."""
        self._fixed.update(int(label) for label in labels)

    def _tie(self, first: Labels, second: Labels) -> None:
        """Make each label of `first` one with the label of `second` at the same place: both are removed, or none."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self._parents[self.root(other)] = self.root(one)

    def _label(self, node: Node) -> None:
        """Give the results of a call their labels."""
        inputs, outputs = [t for t in node.inputs() if t.is_float], tensors(node.outputs)
        rule = self._rule(node, inputs)
        labels = rule(node, inputs) if rule is not None and len(outputs) == 1 else None
        if labels is not None and len(labels) == outputs[0].channels:
            self.of[outputs[0]] = labels
            return
        # It is not known what the call does with channels, so all channels of its inputs and results stay.
        self.need_all[symbol_of(node) or type(node.layer).__name__] += bool(inputs)
        for tensor in node.inputs():
            self._fix(self.of[tensor])
        for tensor in outputs:
            self.of[tensor] = self._fixed_labels(tensor)

    def _rule(self, node: Node, inputs: list[Tensor]) -> _Rule | None:
        """The function that labels the result of a call; None if it is not known what the call does with channels."""
        kind, layer = type(node.layer), node.layer
        has_layer_inside = isinstance(getattr(layer, "activation", None), keras.layers.Layer)
        is_grouped = kind in WITH_FILTERS and getattr(layer, "groups", 1) != 1
        is_first = getattr(layer, "data_format", None) == "channels_first"
        is_across = kind is _L.Activation and getattr(layer.activation, "__name__", "") in _ACROSS_CHANNELS
        if not inputs or has_layer_inside or is_grouped or is_first or is_across:
            return None
        rules: dict[Any, _Rule] = {
            **dict.fromkeys(WITH_FILTERS, self._of_filters),
            **dict.fromkeys(_BY_CHANNEL, self._of_input),
            **dict.fromkeys(WITH_CHANNEL_WEIGHTS, self._of_channel_weights),
            **dict.fromkeys(DEPTHWISE, self._of_depthwise),
            **dict.fromkeys(_MERGES, self._of_merge),
            _L.Concatenate: self._of_concatenate,
            _L.Flatten: self._of_flatten,
            _L.Reshape: self._of_input,  # `_label` takes the labels only if the number of channels stays
        }
        return rules.get(kind) or self._rule_of_function(node, inputs)

    def _rule_of_function(self, node: Node, inputs: list[Tensor]) -> _Rule | None:
        symbol = symbol_of(node)
        if symbol in _MERGING_FUNCTIONS and len(inputs) > 1:
            return self._of_merge
        is_by_element = symbol in ELEMENTWISE_FUNCTIONS and len(inputs) == 1 and _other_arguments_are_numbers(node)
        return self._of_input if is_by_element else None

    def _of_filters(self, node: Node, inputs: list[Tensor]) -> Labels | None:
        """New labels; a shared layer has the same filters in each call, and reads the same channels."""
        (tensor,) = inputs
        self._tie(self._reads.setdefault(node.layer, self.of[tensor]), self.of[tensor])
        if node.layer not in self._filters:
            self._filters[node.layer] = self._new(node.output().channels or 0)
        if getattr(getattr(node.layer, "activation", None), "__name__", "") in _ACROSS_CHANNELS:
            self._fix(self._filters[node.layer])
        return self._filters[node.layer]

    def _of_input(self, _node: Node, inputs: list[Tensor]) -> Labels:
        return self.of[inputs[0]]

    def _of_channel_weights(self, node: Node, inputs: list[Tensor]) -> Labels | None:
        rank, axis = len(inputs[0].shape), getattr(node.layer, "axis", None)
        axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
        if type(node.layer) is _L.BatchNormalization and axis not in {-1, rank - 1}:
            return None
        self._tie(self._reads.setdefault(node.layer, self.of[inputs[0]]), self.of[inputs[0]])
        return self.of[inputs[0]]

    def _of_depthwise(self, node: Node, inputs: list[Tensor]) -> Labels:
        self._tie(self._reads.setdefault(node.layer, self.of[inputs[0]]), self.of[inputs[0]])
        return np.repeat(self.of[inputs[0]], node.layer.depth_multiplier)

    def _of_merge(self, node: Node, inputs: list[Tensor]) -> Labels | None:
        """Labels of an elementwise sum or product: channels at the same place of its inputs are removed together."""
        channels = node.output().channels
        wide = [tensor for tensor in inputs if tensor.channels == channels]
        ranks = {len(tensor.shape) for tensor in inputs}
        if not wide or len(ranks) > 1 or any(tensor.channels not in {channels, 1} for tensor in inputs):
            return None
        for tensor in inputs:
            if tensor not in wide:
                self._fix(self.of[tensor])  # a single channel for all others stays
        for tensor in wide[1:]:
            self._tie(self.of[wide[0]], self.of[tensor])
        return self.of[wide[0]]

    def _of_concatenate(self, node: Node, inputs: list[Tensor]) -> Labels | None:
        if node.layer.axis in {-1, len(inputs[0].shape) - 1}:
            return np.concatenate([self.of[tensor] for tensor in inputs])
        return self._of_merge(node, inputs)

    def _of_flatten(self, _node: Node, inputs: list[Tensor]) -> Labels | None:
        sizes = inputs[0].shape[1:-1]
        return None if None in sizes else np.tile(self.of[inputs[0]], math.prod(size or 1 for size in sizes))


def _other_arguments_are_numbers(node: Node) -> bool:
    others = [value for value in (*node.args, *node.kwargs.values()) if not isinstance(value, Tensor)]
    return all(value is None or isinstance(value, str | bool | int | float) or np.ndim(value) == 0 for value in others)
