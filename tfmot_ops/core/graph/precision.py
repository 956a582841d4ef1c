"""A graph whose layers compute in float16, bfloat16 or float64, as a graph of float32 layers.

Fake quantisation and the TFLite converter need float32. The weights keep their values, up to float32's precision. This
is the first step of `normalize`; pruning keeps the layers' own types.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors, unique_names
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import config_of, copy_layer, rebuild
from tfmot_ops.core.keras.types import Layer

_LOG = logging.getLogger(__name__)
_OTHER_FLOATS = {"float16", "bfloat16", "float64", "half", "double"}
_POLICIES = _OTHER_FLOATS | {"mixed_float16", "mixed_bfloat16"}


def in_float32(graph: Graph) -> Graph:
    """The graph with float32 layers in place of those of another float type; paths and origins of its calls stay.

    Args:
        graph: from `read_graph`; it is not changed, and returned as it is if everything computes in float32.

    Raises:
        UnsupportedModelError: a layer cannot be copied.
    """
    results = [tensor for node in graph.nodes for tensor in tensors(node.outputs)]
    if not any(tensor.dtype in _OTHER_FLOATS for tensor in (*graph.inputs(), *results)):
        return graph
    _LOG.info("%s: layers of type float16, bfloat16 or float64 are converted to float32", graph.name)
    converted = _Conversion(graph).graph
    names = unique_names(dict.fromkeys(node.path for node in converted.nodes), converted.input_names.values())
    known = {names[node.path]: (node.path, node.origin) for node in converted.nodes}
    # Built as a model, as rules read the variables of layers.
    result = read_graph(rebuild(converted))
    for node in result.nodes:
        node.path, node.origin = known.get(node.path, (node.path, node.origin))
    return result


class _Conversion:
    """Makes the float32 graph: attribute `graph`, with unbuilt layers."""

    def __init__(self, source: Graph) -> None:
        self._source = source
        self._tensors = {tensor: _float32_tensor(tensor) for tensor in source.inputs()}
        self._layers: dict[Layer, Layer] = {}
        self._weights: dict[Layer, list[Any]] = {}
        nodes = [self._call(node) for node in source.nodes]
        self.graph = Graph(
            source.name,
            map_tensors(source.input_structure, self._tensors.__getitem__),
            {self._tensors[tensor]: name for tensor, name in source.input_names.items()},
            map_tensors(source.outputs, self._tensors.__getitem__),
            nodes,
            self._weights,
        )

    def _call(self, node: Node) -> Node:
        args, kwargs = tf.nest.map_structure(self._leaf, (node.args, node.kwargs))
        outputs = {tensor: _float32_tensor(tensor) for tensor in tensors(node.outputs)}
        self._tensors |= outputs
        result = map_tensors(node.outputs, outputs.__getitem__)
        new = Node(self._layer(node.layer), node.path, args, kwargs, result, node.origin, node.source_kernel)
        for tensor in outputs.values():
            tensor.producer = new
        return new

    def _layer(self, layer: Layer) -> Layer:
        if layer not in self._layers:
            changed = {key: _float32_config(key, value) for key, value in config_of(layer).items()}
            changes = {key: value for key, value in changed.items() if value is not None}
            self._layers[layer] = copy_layer(layer, layer.name, **changes)
            weights = self._source.weights_of(layer)
            if weights:
                self._weights[self._layers[layer]] = weights
        return self._layers[layer]

    def _leaf(self, leaf: Any) -> Any:
        """An argument of a call: a tensor of the new graph, float32 for another float type, or a constant cast."""
        if isinstance(leaf, Tensor):
            return self._tensors[leaf]
        if isinstance(leaf, tf.DType):
            return tf.float32 if leaf.name in _OTHER_FLOATS else leaf
        if isinstance(leaf, str):
            return "float32" if leaf in _OTHER_FLOATS else leaf
        if (
            isinstance(leaf, tf.Variable)
            or not hasattr(leaf, "dtype")
            or tf.as_dtype(leaf.dtype).name not in _OTHER_FLOATS
        ):
            return leaf
        return tf.cast(leaf, tf.float32) if tf.is_tensor(leaf) else np.asarray(leaf, np.float32)


def _float32_tensor(tensor: Tensor) -> Tensor:
    return Tensor(tensor.shape, "float32" if tensor.dtype in _OTHER_FLOATS else tensor.dtype)


def _float32_config(key: str, value: Any) -> Any:
    """An entry of a layer's config with float32 for each other float type within; None if there is none."""
    if key == "dtype":
        name = value["config"].get("name") if _is_policy(value) else value
        return "float32" if isinstance(name, str) and name in _POLICIES else None
    if isinstance(value, Mapping):
        changed = {name: new for name, part in value.items() if (new := _float32_config(name, part)) is not None}
        return {**value, **changed} if changed else None
    if isinstance(value, list | tuple):
        parts = [_float32_config("", part) for part in value]
        if any(part is not None for part in parts):
            return type(value)(old if new is None else new for old, new in zip(value, parts, strict=True))
    return None


def _is_policy(value: Any) -> bool:
    """Whether a config entry stands for a dtype policy, as Keras writes a policy such as mixed_float16."""
    return isinstance(value, Mapping) and value.get("class_name") in {"Policy", "PolicyV1"}
