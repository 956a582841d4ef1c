"""The layer graph: the calls of a model's layers and the tensors between them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, Model


@dataclass(eq=False)
class Tensor:
    """One tensor of the graph.

    Attributes:
        shape: static shape, the batch axis first; unknown sizes are None.
        dtype: name of the element type (`float32`).
        producer: the call that computes the tensor; None for an input of the graph.
    """

    shape: tuple[int | None, ...]
    dtype: str
    producer: Node | None = None

    @property
    def has_channel_axis(self) -> bool:
        """Whether there is an axis besides the batch (the first); the last one then is the axis of channels."""
        return len(self.shape) > 1

    @property
    def channels(self) -> int | None:
        """Size of the last axis, None when unknown or a scalar."""
        return self.shape[-1] if self.shape else None

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating point, so that a quantiser can read them."""
        return bool(tf.as_dtype(self.dtype).is_floating)


@dataclass(eq=False)
class Node:
    """One call of a layer.

    Attributes:
        layer: the layer; two calls of a shared layer carry the same object.
        path: names of the nested models and the layer, joined by `/` (`backbone/conv1_relu`).
        args, kwargs: the call's arguments, with a `Tensor` instead of each tensor.
        outputs: the call's result, same structure, with `Tensor` leaves.
        origin: path of the user's layer that this call was made from (`backbone/conv1`); reports, scopes and
            sparsity use this path.
        source_kernel: attribute of the user's layer that holds this call's kernel (`pointwise_kernel`); empty when
            both layers use the same attribute name.
    """

    layer: Any
    path: str
    args: Any
    kwargs: dict[str, Any]
    outputs: Any
    origin: str = ""
    source_kernel: str = ""

    def __post_init__(self) -> None:
        self.origin = self.origin or self.path

    def inputs(self) -> list[Tensor]:
        """Tensors this call reads, in the order of its arguments."""
        return tensors((self.args, self.kwargs))

    def output(self) -> Tensor:
        """The only output tensor; use `outputs` for a call with several."""
        (tensor,) = tensors(self.outputs)
        return tensor


@dataclass(eq=False)
class Graph:
    """A model as a flat list of calls in topological order.

    Attributes:
        inputs: graph inputs, with the InputLayer name of each.
        outputs: the model's output structure with `Tensor` leaves.
        input_structure: the model's input structure with `Tensor` leaves.
        weights: weight arrays of the layers that a rewrite made, which are not built yet; all other layers hold
            their weights themselves.
    """

    name: str
    input_structure: Any
    input_names: dict[Tensor, str]
    outputs: Any
    nodes: list[Node]
    weights: dict[Layer, list[Any]] = field(default_factory=dict)

    def inputs(self) -> list[Tensor]:
        """Graph inputs, in the model's order."""
        return tensors(self.input_structure)

    def readers(self) -> dict[Tensor, list[Node]]:
        """Tensor -> the calls that read it; a call that reads it twice appears twice."""
        index: dict[Tensor, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.inputs():
                index[tensor].append(node)
        return index

    def calls_per_layer(self) -> Counter[Layer]:
        """Layer -> number of calls; more than one means the layer is shared."""
        return Counter(node.layer for node in self.nodes)

    def weights_of(self, layer: Layer) -> list[Any]:
        """Weight arrays of a layer, in Keras' order."""
        return self.weights[layer] if layer in self.weights else layer.get_weights()

    def without_dead_calls(self) -> Graph:
        """Drop the calls that no output depends on; inputs stay, as they are the model's signature.

        Afterwards each path belongs to one layer: where a rule's new layer has the path of a user's layer, the new
        layer gets a number (`conv_relu_1`).
        """
        needed = set(tensors(self.outputs))
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if not needed.isdisjoint(tensors(node.outputs)):
                needed.update(node.inputs())
                kept.append(node)
        self.nodes = kept[::-1]
        self._make_paths_unique()
        return self

    def _make_paths_unique(self) -> None:
        owners: dict[str, Layer] = {}
        for node in sorted(self.nodes, key=lambda node: node.path != node.origin):
            path, number = node.path, 1
            while owners.setdefault(path, node.layer) is not node.layer:
                path, number = f"{node.path}_{number}", number + 1
            node.path = path


def tensors(structure: object) -> list[Tensor]:
    """The `Tensor` leaves of a nested structure, in order."""
    return [leaf for leaf in tf.nest.flatten(structure) if isinstance(leaf, Tensor)]


def map_tensors(structure: object, function: Callable[[Tensor], Any]) -> Any:
    """The structure with `function` applied to its `Tensor` leaves; other leaves stay."""
    if isinstance(structure, Tensor):
        return function(structure)
    # Most arguments are plain tuples, lists and dicts; mapping them here is faster than by tf.nest.
    if isinstance(structure, tuple | list) and type(structure) in {tuple, list}:
        return type(structure)(map_tensors(part, function) for part in structure)
    if type(structure) is dict:
        return {key: map_tensors(part, function) for key, part in structure.items()}
    return tf.nest.map_structure(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, structure)


def layer_paths(model: Model, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer except InputLayers, with those of nested models, in the model's order."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        path = prefix + layer.name
        if isinstance(layer, keras.Model) and is_graph_model(layer):
            yield from layer_paths(layer, path + "/")
        else:
            yield path, layer


def is_graph_model(model: Model) -> bool:
    """Whether the model is a graph of layers (functional, or a sequential one that is built)."""
    return private.is_graph_network(model)


def unique_names(paths: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Map each path to a layer name: its last part where that is unique, the whole path otherwise.

    Layer names contain no `/`, as an h5 file would read it as a folder. A whole path that equals another layer's name
    after `/` became `_` (`stem/conv` beside `stem_conv`) gets a number.

    Args:
        paths: the paths, without duplicates.
        taken: names that are already in use.
    """
    paths = list(paths)
    last = Counter([path.rsplit("/", 1)[-1] for path in paths] + list(taken := set(taken)))
    names = {path: name for path in paths if last[name := path.rsplit("/", 1)[-1]] == 1}
    used = {*taken, *names.values()}
    for path in paths:
        if path not in names:
            names[path] = free_name(path.replace("/", "_"), 0, used)
    return names


def scope_safe_name(name: str) -> str:
    """The name with `_` for every character that TensorFlow does not allow in the name of a scope."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)


def free_name(base: str, number: int, used: set[str]) -> str:
    """Take a name that is not in `used`: `base` (if `number` is 0), else the first of `base_<number>` and higher."""
    numbered = (f"{base}_{following}" for following in count(max(number, 1)))
    name = next(name for name in chain([] if number else [base], numbered) if name not in used)
    used.add(name)
    return name
