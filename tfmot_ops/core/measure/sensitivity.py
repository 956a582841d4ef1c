"""Sensitivity: how much noise the int8 rounding of each layer adds, and which layers to keep in float for that."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmot_ops.contract import Method, Recipe
from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors, unique_names
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.run import infer
from tfmot_ops.core.graph.samples import Calibration, batch_size_of, calibration_batches
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.policies import new_layers_with_policy
from tfmot_ops.core.keras.private import QuantizeLayer
from tfmot_ops.core.keras.types import Args, Kwargs
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.measure.noise import power_ratio_db, signal_and_noise
from tfmot_ops.core.quantization.qat import quantize
from tfmot_ops.core.quantization.scheme import output_quantizer
from tfmot_ops.core.quantization.without_rounding import call_unrounded
from tfmot_ops.errors import RecipeError

#: A choice that removes less than this share of the noise power is not made.
_LEAST_GAIN = 0.01
#: Samples that are run at once: all tensors of a QAT ResNet50 take 148 MB for an image of 224x224, and two sets of
#: values are in memory.
_BATCH = 4
#: (call, args, kwargs) -> the result; see `_call_rounded`, `call_unrounded` and `_call_with_result_rounded`.
_Compute = Callable[[Node, Args, Kwargs], Any]


@dataclass(frozen=True)
class LayerSensitivity:
    """What rounding one group of layers to int8 does to the model's outputs.

    A group holds the layers between two roundings, which TFLite computes as one operation: a convolution, its
    BatchNormalization and its ReLU. Ratios are those of signal to quantisation noise at the model's outputs, the lowest
    one of several outputs, in dB; infinite without noise.

    Attributes:
        paths: paths of the group's layers in the user's model, in the order of their calls.
        weights: number of weights that become int8.
        macs: number of multiplications by these weights for one sample; a size that the model leaves open counts as 1.
        alone_db: with only this group rounded (weights and result).
        result_db: with only the group's result rounded.
        others_db: with only this group in float. Its result is rounded nevertheless, as int8 layers read it.
        readers: places in the list of groups of those that read its result; -1 stands for the model's outputs.
    """

    paths: tuple[str, ...]
    weights: int
    macs: int
    alone_db: float
    result_db: float
    others_db: float
    readers: tuple[int, ...]


@new_layers_with_policy("float32")
def sensitivity(
    model: keras.Model, recipe: Recipe, calibration: Calibration, samples: int = 32
) -> list[LayerSensitivity]:
    """Measure how sensitive a float model's outputs are to the int8 rounding of each group of layers.

    Takes about the time of three inferences of the QAT model for each group and sample, each layer called from Python.

    Args:
        model: float model without pruning wrappers.
        recipe: a recipe with quantization.method: qat.
        calibration: inputs; see `quantize`.
        samples: number of inputs for which the outputs are compared.

    Returns:
        One row for each group, in the order of the model.

    Raises:
        As `quantize`.
    """
    quantized, _ = quantize(model, recipe, calibration)
    graph = read_graph(quantized)
    groups = _groups(graph, _origins(model))
    measured = [{name: _Noise() for name in ("alone", "result", "others")} for _ in groups]
    for inputs in _small_batches(graph, calibration, samples):
        exact, rounded = _values(graph, inputs, call_unrounded), _values(graph, inputs, _call_rounded)
        reference = [exact[tensor] for tensor in tensors(graph.outputs)]
        for group, noise in zip(groups, measured, strict=True):
            changed = {
                "alone": _outputs_with_group(graph, exact, group, (_call_rounded, call_unrounded)),
                "result": _outputs_with_group(graph, exact, group, (_call_with_result_rounded, call_unrounded)),
                "others": _outputs_with_group(graph, rounded, group, (_call_with_result_rounded, _call_rounded)),
            }
            for name, outputs in changed.items():
                noise[name].add(reference, outputs)
    place_of = {node: place for place, group in enumerate(groups) for node in group.nodes}
    return [
        LayerSensitivity(
            paths=tuple(group.paths),
            weights=group.weights,
            macs=group.macs,
            **{f"{name}_db": powers.db for name, powers in noise.items()},
            readers=tuple(sorted(_readers(graph, group, place_of))),
        )
        for group, noise in zip(groups, measured, strict=True)
    ]


def keep_sensitive(
    model: keras.Model, recipe: Recipe, calibration: Calibration
) -> tuple[Recipe, list[LayerSensitivity]]:
    """Carry out the part `quantization.keep` of a recipe: choose the layers that stay in float.

    Args:
        model: float model without pruning wrappers.
        recipe: a recipe with `quantization.keep`.
        calibration: inputs; see `quantize`.

    Returns:
        The recipe with the chosen layers excluded by the scope of its quantization, and without `keep`; and the rows of
        `sensitivity`.

    Raises:
        RecipeError: the recipe has no `quantization.keep`.
    """
    if recipe.quantization is None or recipe.quantization.keep is None:
        raise RecipeError(
            "keep_sensitive chooses the layers that stay in float",
            required="a recipe with quantization.keep",
            received=f"recipe {recipe.name!r} without it",
            remedy="call quantize or export_tflite with this recipe directly",
        )
    quantization, keep = recipe.quantization, recipe.quantization.keep
    trained = quantization.model_copy(update={"method": Method.QAT, "keep": None})
    rows = sensitivity(model, recipe.model_copy(update={"quantization": trained}), calibration, keep.samples)
    chosen = [path for place in sorted(choose(rows, keep.budget)) for path in rows[place].paths]
    scope = quantization.scope.model_copy(
        update={"exclude": (*quantization.scope.exclude, *map(_escaped_selector, chosen))}
    )
    kept = quantization.model_copy(update={"scope": scope, "keep": None})
    return recipe.model_copy(update={"quantization": kept}), rows


def choose(rows: Sequence[LayerSensitivity], budget: float) -> set[int]:
    """Choose the groups to keep in float: they remove most noise, for a share of all weights and multiplications.

    Keeping a group in float removes the noise of its weights. The noise of its result is removed only if all groups
    that read the result are in float too, as an int8 layer reads int8 values. So a choice is a group alone, a group
    with its readers, or a group with all groups that it reads. The choice that removes most noise is made first. Noise
    powers are added up, as the rounding errors of two groups hardly depend on each other.

    Args:
        rows: from `sensitivity`.
        budget: largest share of each of the two, from 0 to 1.

    Returns:
        Places in `rows`.
    """
    kept: set[int] = set()
    largest, least = budget * _costs(rows, range(len(rows))), _LEAST_GAIN * _remaining_noise(rows, kept)
    choices = [choice for choice in _choices(rows) if all(rows[place].paths for place in choice)]
    while True:
        before = _remaining_noise(rows, kept)
        noise_of: dict[frozenset[int], float] = {}
        for choice in choices:
            more = frozenset(kept | choice)
            if (_costs(rows, more) <= largest).all():
                noise_of[more] = _remaining_noise(rows, more)
        lowest = min(noise_of.values(), default=before)
        if before - lowest <= least:
            return kept
        # Of choices whose noise differs by less than `least`, the one with the fewest weights.
        near = [more for more, noise in noise_of.items() if noise <= lowest + least]
        best = min(near, key=lambda more: tuple(_costs(rows, more)))
        kept = set(best)


def _costs(rows: Sequence[LayerSensitivity], places: Iterable[int]) -> npt.NDArray[np.int64]:
    """(weights, multiplications) of some groups together."""
    chosen = [rows[place] for place in places]
    return np.array([sum(row.weights for row in chosen), sum(row.macs for row in chosen)], np.int64)


def _choices(rows: Sequence[LayerSensitivity]) -> list[set[int]]:
    """What `choose` considers: each group alone, with its readers, and with the groups that it reads."""
    read_by: dict[int, set[int]] = defaultdict(set)
    for place, row in enumerate(rows):
        for reader in row.readers:
            read_by[reader].add(place)
    return [
        choice
        for place, row in enumerate(rows)
        for choice in (
            {place},
            {place, *row.readers} - {-1},
            {place, *(other for other in read_by[place] if rows[other].paths)},
        )
    ]


def _remaining_noise(rows: Sequence[LayerSensitivity], kept: AbstractSet[int]) -> float:
    """Noise power that remains, as a share of the signal's, if some groups are kept in float."""
    noise = 0.0
    for place, row in enumerate(rows):
        result = 10.0 ** (-row.result_db / 10.0)
        if place not in kept:
            noise += max(10.0 ** (-row.alone_db / 10.0), result)
        elif not set(row.readers) <= kept:
            noise += result
    return noise


def sensitivity_csv(rows: Sequence[LayerSensitivity]) -> str:
    """The rows with weights as CSV with a header, the most sensitive first: paths joined by spaces, ratios in dB."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["paths", "weights", "macs", "alone_db", "result_db", "others_db"])
    for row in sorted((row for row in rows if row.weights), key=lambda row: row.alone_db):
        ratios = (f"{value:.2f}" for value in (row.alone_db, row.result_db, row.others_db))
        writer.writerow([" ".join(row.paths), row.weights, row.macs, *ratios])
    return text.getvalue()


def _escaped_selector(path: str) -> str:
    """A scope's selector that matches a path with characters of globs in it."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)


@dataclass
class _Noise:
    """Powers of signal and noise of each output, summed over batches."""

    powers: dict[int, tuple[float, float]] = field(default_factory=lambda: defaultdict(lambda: (0.0, 0.0)))

    def add(self, reference: Sequence[Any], other: Sequence[Any]) -> None:
        for place, (expected, found) in enumerate(zip(reference, other, strict=True)):
            if expected.dtype.is_floating:
                signal, noise = signal_and_noise(np.asarray(expected), np.asarray(found))
                before = self.powers[place]
                self.powers[place] = before[0] + signal, before[1] + noise

    @property
    def db(self) -> float:
        """Signal to quantisation noise ratio in dB, the lowest one of the outputs."""
        return min((power_ratio_db(*powers) for powers in self.powers.values()), default=float("inf"))


@dataclass(eq=False)
class _Group:
    """Calls of a QAT graph between which no value is rounded.

    Attributes:
        nodes: the calls, with those of the quantisers of their results.
        paths: of their layers in the user's model; a dict for its order.
        weights: number of weights that are rounded.
        macs: number of multiplications by them for one sample.
    """

    nodes: dict[Node, None] = field(default_factory=dict)
    paths: dict[str, None] = field(default_factory=dict)
    weights: int = 0
    macs: int = 0


def _origins(model: keras.Model) -> dict[str, str]:
    """Name of a layer of the QAT model -> path of the layer of the user's model that it was made from."""
    normal = normalize_graph(read_graph(model), for_qat=True)
    names = unique_names(dict.fromkeys(node.path for node in normal.nodes), normal.input_names.values())
    return {names[node.path]: node.origin for node in normal.nodes}


def _groups(graph: Graph, origins: Mapping[str, str]) -> list[_Group]:
    """The groups of a QAT graph: calls joined by values that are not rounded, and all calls of a shared layer."""
    group_of: dict[Node, _Group] = {}
    of_layer: dict[Any, Node] = {}
    for node in graph.nodes:
        joined = [call for tensor in node.inputs() if (call := tensor.producer) is not None and _joins(node, call)]
        joined.append(of_layer.setdefault(node.layer, node))
        merged = _Group()
        for group in dict.fromkeys(group_of[call] for call in joined if call in group_of):
            merged.nodes |= group.nodes
        merged.nodes[node] = None
        group_of |= dict.fromkeys(merged.nodes, merged)
    groups = list(dict.fromkeys(group_of[node] for node in graph.nodes))
    counted: set[Any] = set()
    for group in groups:
        for node in group.nodes:
            path = origins.get(inner_layer(node.layer).name)
            if path is not None and not isinstance(node.layer, QuantizeLayer):
                group.paths[path] = None
            size = sum(int(np.prod(variable.shape)) for variable, *_ in private.weight_variables(node.layer))
            group.weights += 0 if node.layer in counted else size
            group.macs += size * (math.prod(side or 1 for side in node.output().shape[1:-1]) if size else 0)
            counted.add(node.layer)
    return groups


def _joins(node: Node, producer: Node) -> bool:
    """Whether a call and the producer of its input are in one group: a quantiser belongs to what it rounds."""
    return isinstance(node.layer, QuantizeLayer) or output_quantizer(producer.layer) is None


def _readers(graph: Graph, group: _Group, place_of: Mapping[Node, int]) -> set[int]:
    """Places of the other groups that read a group's results; -1 for the outputs of the model."""
    results = {tensor for node in group.nodes for tensor in tensors(node.outputs)}
    found = {place_of[node] for node in graph.nodes if node not in group.nodes and results & set(node.inputs())}
    return found | ({-1} if results & set(tensors(graph.outputs)) else set())


def _call_rounded(node: Node, args: Args, kwargs: Kwargs) -> Any:
    """The result of a call with weights and result rounded."""
    return infer(node.layer, args, kwargs)


def _call_with_result_rounded(node: Node, args: Args, kwargs: Kwargs) -> Any:
    """The result of a call with its result rounded, but not its weights."""
    quantizer, result = output_quantizer(node.layer), call_unrounded(node, args, kwargs)
    if isinstance(node.layer, QuantizeLayer):
        return infer(node.layer, args, kwargs)
    if quantizer is None:
        return result
    return quantizer(result, False, weights=private.output_range_variables(node.layer) or {})


def _small_batches(graph: Graph, calibration: Calibration, samples: int) -> Iterator[list[Any]]:
    """Batches of a few samples, as the values of all tensors are kept; of the model's own batch size if it is fixed."""
    fixed = batch_size_of(graph)
    for batch in calibration_batches(graph, calibration, samples):
        for start in range(0, len(batch[0]), fixed or _BATCH):
            yield [tf.convert_to_tensor(part[start : start + (fixed or _BATCH)]) for part in batch]


def _values(graph: Graph, inputs: Sequence[Any], compute: _Compute) -> dict[Tensor, Any]:
    """Tensor -> its value, for all tensors of a graph."""
    values: dict[Tensor, Any] = dict(zip(graph.inputs(), inputs, strict=True))
    for node in graph.nodes:
        _call(node, values, compute)
    return values


def _outputs_with_group(
    graph: Graph, known: Mapping[Tensor, Any], group: _Group, computes: tuple[_Compute, _Compute]
) -> list[Any]:
    """The graph's outputs where the calls of a group are computed in another way than in `known`.

    Only the group and what depends on it is computed again.

    Args:
        graph: of the QAT model.
        known: all values, with every call computed in the second way.
        group: the calls to compute in the first way.
        computes: the two ways.
    """
    values, new = dict(known), set[Tensor]()
    for node in graph.nodes:
        if node in group.nodes or any(tensor in new for tensor in node.inputs()):
            _call(node, values, computes[0] if node in group.nodes else computes[1])
            new.update(tensors(node.outputs))
    return [values[tensor] for tensor in tensors(graph.outputs)]


def _call(node: Node, values: dict[Tensor, Any], compute: _Compute) -> None:
    args, kwargs = map_tensors((node.args, node.kwargs), lambda tensor: values[tensor])
    values.update(zip(tensors(node.outputs), tf.nest.flatten(compute(node, args, kwargs)), strict=True))
