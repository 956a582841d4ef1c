"""Channel pruning: removes whole filters of a model, which leaves a smaller plain Keras model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_ops.contract import LayerReport, Outcome, Recipe
from tfmot_ops.core.graph.finite import require_finite_weights
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, tensors
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import copy_layer, rebuild
from tfmot_ops.core.keras.compiling import compile_like
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.policies import new_layers_with_policy
from tfmot_ops.core.keras.types import Array, Layer
from tfmot_ops.core.pruning.channel_labels import (
    DENSE,
    DEPTHWISE,
    SEPARABLE,
    TRANSPOSED,
    WITH_CHANNEL_WEIGHTS,
    WITH_FILTERS,
    ChannelLabels,
    Labels,
)
from tfmot_ops.core.pruning.opened import with_inlined_layers
from tfmot_ops.errors import RecipeError
from tfmot_ops.recipes.scope import select

#: Least share of a layer's filters that stays, so that no layer becomes the bottleneck of the network.
_LEAST_SHARE = 0.1
#: Classes of layers that an error names.
_NAMES_SHOWN = 3

Mask = npt.NDArray[np.bool_]


def prune_channels(model: keras.Model, recipe: Recipe) -> tuple[keras.Model, list[LayerReport]]:
    """Remove the least important filters, until a share of the multiplications (MACs) is left.

    Filters that meet in an addition or a product are removed together. The importance of a filter is the L2 norm of its
    weights after BatchNormalization, divided by the mean of its layer, so that layers of different size can be
    compared. The least important filters of the whole model are removed first; a tenth of each layer always stays. All
    channels stay in the model's outputs, and in the inputs of layers for which it is not known what they do with
    channels.

    Args:
        model: float model; it is not changed. Custom layers are replaced by their inner layers, see `prune`.
        recipe: a recipe with `channels`.

    Returns:
        A smaller functional model without wrappers, compiled like the original, and one report for each layer with
        filters. Its accuracy has to be trained back.

    Raises:
        RecipeError: the recipe has no `channels`, or so few MACs cannot be reached.
        ScopeError: a selector of the scope matches no layer.
        NotFiniteError: a weight is NaN or infinite; names the layer.
    """
    if recipe.channels is None:
        raise RecipeError(
            "no channels to prune",
            required="a recipe with channels",
            received=f"recipe {recipe.name!r} without channels",
            remedy="leave the call out, or add `channels: {macs: 0.5}` to the recipe",
        )
    with new_layers_with_policy(model.dtype_policy):
        inlined = with_inlined_layers(model)
        require_finite_weights(inlined)
        pruner = _ChannelPruner(read_graph(inlined))
        layers = {node.path: type(node.layer).__name__ for node in pruner.graph.nodes}
        chosen = select(recipe.channels.scope, layers.items())
        kept = pruner.choose(recipe.channels.macs, {path for path, taken in chosen.items() if taken is False})
        reports = pruner.reports(kept, chosen)
        smaller = rebuild(pruner.without(kept))
    compile_like(smaller, inlined)
    return smaller, reports


@dataclass(frozen=True)
class _Filters:
    """The filters of one layer.

    Attributes:
        node: its first call.
        labels: [filters], see `ChannelLabels.roots`.
    """

    node: Node
    labels: Labels


class _ChannelPruner:
    """Chooses the labels to remove from a graph, and removes them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.channels = ChannelLabels(graph)
        first_calls: dict[Layer, Node] = {}
        for node in graph.nodes:
            if type(node.layer) in WITH_FILTERS:
                first_calls.setdefault(node.layer, node)
        self.filters = [_Filters(node, self.channels.roots(node.output())) for node in first_calls.values()]

    def choose(self, macs: float, excluded: set[str]) -> Mask:
        """Mask [labels] of the labels that stay, for at most a share of the MACs.

        Args:
            macs: largest share, from 0 to 1.
            excluded: paths of the layers that keep all filters.
        """
        count = max((int(filters.labels.max(initial=-1)) for filters in self.filters), default=-1) + 1
        all_kept = np.ones(count, bool)
        order = self._order(excluded)
        largest = macs * self._macs(all_kept)
        low, high = 0, len(order)
        while low < high:  # the smallest number of removed labels with which the MACs fit
            middle = (low + high) // 2
            if self._macs(_without(all_kept, order[:middle])) <= largest:
                high = middle
            else:
                low = middle + 1
        kept = _without(all_kept, order[:low])
        if self._macs(kept) > largest:
            raise RecipeError(
                f"channels.macs: the model cannot be reduced to {macs:.0%} of its multiplications",
                required=f"at most {macs:.0%} of {self._macs(all_kept):,.0f} multiplications",
                received=f"{self._macs(kept) / self._macs(all_kept):.0%} when every removable filter is removed; "
                f"{self._named(self.channels.need_all) or 'no layer'} need all channels of their inputs",
                remedy="raise channels.macs, or exclude fewer layers by channels.scope",
            )
        return kept

    @staticmethod
    def _named(layers: Counter[str]) -> str:
        return ", ".join(f"{name} ({count} calls)" for name, count in layers.most_common(_NAMES_SHOWN) if count)

    def _order(self, excluded: set[str]) -> Labels:
        """The labels that may be removed, the least important first, as far as each layer keeps enough filters."""
        #: Label -> its importance in each layer that has it, and the indices of these layers.
        scores, layers = defaultdict(list), defaultdict(list)
        excluded_filters = (filters for filters in self.filters if filters.node.path in excluded)
        stays = {label for filters in excluded_filters for label in filters.labels.tolist()}
        #: For each layer, how many more filters may be removed.
        removable = []
        for index, filters in enumerate(self.filters):
            count = len(filters.labels)
            removable.append(count - max(1, math.ceil(_LEAST_SHARE * count)))
            free = self.channels.removable(filters.labels)
            for label, score, is_free in zip(filters.labels.tolist(), self._scores(filters), free, strict=True):
                if is_free and label not in stays:
                    scores[label].append(score)
                    layers[label].append(index)
        order = []
        for label in sorted(scores, key=lambda label: (np.mean(scores[label]), label)):
            if all(removable[index] > 0 for index in layers[label]):
                order.append(label)
                for index in layers[label]:
                    removable[index] -= 1
        return np.array(order, np.int64)

    def _scores(self, filters: _Filters) -> npt.NDArray[np.float64]:
        """Importance [filters] of a layer's filters; 1 is the mean of the layer."""
        layer = filters.node.layer
        kernel = np.asarray(self.graph.weights_of(layer)[1 if type(layer) in SEPARABLE else 0], np.float64)
        if type(layer) in TRANSPOSED:
            kernel = np.swapaxes(kernel, -1, -2)
        norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0) * self._factor(filters.node)
        mean = float(np.mean(norms))
        scores: npt.NDArray[np.float64] = norms / mean if mean > 0.0 else norms
        return scores

    def _factor(self, node: Node) -> Any:
        """The factor [channels] of the BatchNormalization after a call, if nothing else reads the result; else 1."""
        readers = self.graph.readers().get(node.output(), [])
        if len(readers) != 1 or type(readers[0].layer) is not keras.layers.BatchNormalization:
            return 1.0
        layer = readers[0].layer
        weights = self.graph.weights_of(layer)
        factor = 1.0 / np.sqrt(np.asarray(weights[-1], np.float64) + layer.epsilon)
        return np.abs(factor * weights[0]) if layer.scale else factor

    def _macs(self, kept: Mask) -> float:
        """Number of multiplications of the graph for one sample; a size that the model leaves open counts as 1."""
        return sum(self._macs_of(node, kept) for node in self.graph.nodes)

    def _macs_of(self, node: Node, kept: Mask) -> float:
        """Multiplications of one call, with the channels that are kept; 0 for a call without a kernel."""
        kind, layer = type(node.layer), node.layer
        if kind not in WITH_FILTERS | DEPTHWISE:
            return 0.0
        kept_inputs, kept_outputs = (
            int(self._kept_channels(tensor, kept).sum()) for tensor in (node.inputs()[0], node.output())
        )
        kernel_positions = math.prod(getattr(layer, "kernel_size", (1,)))
        output_positions = math.prod(
            size or 1 for size in (node.inputs()[0] if kind in TRANSPOSED else node.output()).shape[1:-1]
        )
        if kind in DEPTHWISE:
            return float(output_positions * kernel_positions * kept_outputs)
        if kind in SEPARABLE:
            between = kept_inputs * layer.depth_multiplier
            return float(output_positions * (kernel_positions * between + between * kept_outputs))
        return float(output_positions * kernel_positions * kept_inputs * kept_outputs)

    def _kept_channels(self, tensor: Tensor, kept: Mask) -> Mask:
        """Mask [channels] of a tensor's channels that stay."""
        labels = self.channels.roots(tensor)
        inside = labels < len(kept)
        return np.where(inside, kept[np.where(inside, labels, 0)], True) if len(kept) else np.ones(len(labels), bool)

    def reports(self, kept: Mask, chosen: dict[str, bool | None]) -> list[LayerReport]:
        """One row for each layer with filters."""
        rows = []
        for filters in self.filters:
            stay, count = int(kept[filters.labels].sum()), len(filters.labels)
            outcome = Outcome.PRUNED if stay < count else Outcome.NOT_PRUNED
            if stay < count:
                reason = f"{stay} of {count} filters stay"
            elif chosen[filters.node.path] is False:
                reason = "excluded by the recipe's scope"
            elif not self.channels.removable(filters.labels).any():
                reason = "its channels reach an output of the model, or a layer that needs all of them"
            else:
                reason = "all filters are among the more important ones"
            path, name = filters.node.path, type(filters.node.layer).__name__
            rows.append(LayerReport(path=path, class_name=name, outcome=outcome, reason=reason))
        return rows

    def without(self, kept: Mask) -> Graph:
        """Remove the channels of the removed labels from the graph, in place. To be called once, at the end."""
        smaller: dict[Layer, Layer] = {}
        for node in self.graph.nodes:
            if node.layer not in smaller:
                smaller[node.layer] = self._smaller(node, kept)
        masks = {
            tensor: self._kept_channels(tensor, kept) for node in self.graph.nodes for tensor in tensors(node.outputs)
        }
        for node in self.graph.nodes:
            node.layer = smaller[node.layer]
        for tensor, mask in masks.items():
            if tensor.shape and not mask.all():
                tensor.shape = (*tensor.shape[:-1], int(mask.sum()))
        return self.graph

    def _smaller(self, node: Node, kept: Mask) -> Any:
        """A layer with the channels that stay; the layer itself where all do."""
        layer, kind, floats = node.layer, type(node.layer), [tensor for tensor in node.inputs() if tensor.is_float]
        if not floats or kind not in _SLICES:
            return layer
        kept_inputs, kept_outputs = self._kept_channels(floats[0], kept), self._kept_channels(node.output(), kept)
        if kept_inputs.all() and kept_outputs.all():
            return layer
        copy = copy_layer(layer, layer.name, **_arguments(layer, kept_outputs))
        weights = self.graph.weights_of(layer)
        if weights:
            self.graph.weights[copy] = _SLICES[kind](layer, weights, kept_inputs, kept_outputs)
        return copy


def _without(all_kept: Mask, removed: Labels) -> Mask:
    kept = all_kept.copy()
    kept[removed] = False
    return kept


def _arguments(layer: Layer, kept_outputs: Mask) -> dict[str, Any]:
    """Constructor arguments with the number of channels that stay."""
    count = int(kept_outputs.sum())
    if type(layer) in DENSE:
        return {"units": count}
    if type(layer) is keras.layers.Reshape:
        return {"target_shape": (*layer.target_shape[:-1], count)}
    return {"filters": count} if type(layer) in WITH_FILTERS else {}


def _kernel_and_bias(_layer: Layer, weights: list[Array], kept_inputs: Mask, kept_outputs: Mask) -> list[Array]:
    """Kernel [..., inputs, outputs] and bias [outputs]."""
    return [weights[0][..., kept_inputs, :][..., kept_outputs], *(bias[kept_outputs] for bias in weights[1:])]


def _transposed(_layer: Layer, weights: list[Array], kept_inputs: Mask, kept_outputs: Mask) -> list[Array]:
    """Kernel [..., outputs, inputs] and bias [outputs]."""
    return [weights[0][..., kept_outputs, :][..., kept_inputs], *(bias[kept_outputs] for bias in weights[1:])]


def _depthwise(_layer: Layer, weights: list[Array], kept_inputs: Mask, kept_outputs: Mask) -> list[Array]:
    """Kernel [..., inputs, multiplier] and bias [inputs * multiplier]."""
    return [weights[0][..., kept_inputs, :], *(bias[kept_outputs] for bias in weights[1:])]


def _separable(layer: Layer, weights: list[Array], kept_inputs: Mask, kept_outputs: Mask) -> list[Array]:
    """Depthwise kernel [..., inputs, multiplier], pointwise kernel [..., inputs * multiplier, outputs], bias."""
    between = np.repeat(kept_inputs, layer.depth_multiplier)
    pointwise = weights[1][..., between, :][..., kept_outputs]
    return [weights[0][..., kept_inputs, :], pointwise, *(bias[kept_outputs] for bias in weights[2:])]


def _by_channel(_layer: Layer, weights: list[Array], kept_inputs: Mask, _made: Mask) -> list[Array]:
    """Weights [..., channels]; a last axis of size 1 is shared by all channels."""
    return [weight[..., kept_inputs] if weight.shape[-1] == len(kept_inputs) else weight for weight in weights]


#: Layer class -> function (layer, weights, mask of its input's channels, mask of its output's channels) -> the weights
#: that stay.
_SLICES: dict[Any, Callable[[Layer, list[Array], Mask, Mask], list[Array]]] = {
    **dict.fromkeys(WITH_FILTERS - TRANSPOSED - SEPARABLE, _kernel_and_bias),
    **dict.fromkeys(TRANSPOSED, _transposed),
    **dict.fromkeys(SEPARABLE, _separable),
    **dict.fromkeys(DEPTHWISE, _depthwise),
    **dict.fromkeys(WITH_CHANNEL_WEIGHTS, _by_channel),
    keras.layers.Reshape: lambda _layer, weights, _given, _made: weights,
}
