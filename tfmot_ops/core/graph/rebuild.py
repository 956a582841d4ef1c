"""Layer graph -> model, in one pass: every layer is made once, called once a call, and given its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors, unique_names
from tfmot_ops.core.legacy_keras import keras

#: (new layer, the call it stands for) -> the layer that is called in its place.
Wrap = Callable[[Any, Node], Any]
#: (graph input, its value) -> the value that the calls read.
OnInput = Callable[[Tensor, Any], Any]


def rebuild(
    graph: Graph,
    wrap: Wrap = lambda layer, _node: layer,
    on_input: OnInput = lambda _tensor, value: value,
) -> keras.Model:
    """Build a model from a graph; neither the graph nor the layers in it are changed.

    Args:
        graph: the layer graph.
        wrap: gives the layer to call for a copied layer and the (first) call it stands for.
        on_input: gives what the calls read for a graph input.

    Returns:
        An uncompiled functional model with the graph's weights.
    """
    names = unique_names(dict.fromkeys(node.path for node in graph.nodes))
    copies: dict[int, tuple[Any, Any]] = {}
    values: dict[int, Any] = {}
    placeholders: dict[int, Any] = {}
    for tensor in graph.inputs():
        key = id(tensor)
        placeholders[key] = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=graph.input_names[key])
        values[key] = on_input(tensor, placeholders[key])
    for node in graph.nodes:
        if id(node.layer) not in copies:
            copy = copy_layer(node.layer, names[node.path])
            copies[id(node.layer)] = copy, wrap(copy, node)
        called = copies[id(node.layer)][1]
        args, kwargs = map_tensors((node.args, node.kwargs), lambda tensor: values[id(tensor)])
        result = called(*args, **kwargs)
        for tensor, value in zip(tensors(node.outputs), tf.nest.flatten(result), strict=True):
            values[id(tensor)] = value
    _give_weights(graph, copies)
    inputs = map_tensors(graph.input_structure, lambda tensor: placeholders[id(tensor)])
    outputs = map_tensors(graph.outputs, lambda tensor: values[id(tensor)])
    return keras.Model(inputs, outputs, name=graph.name)


def copy_layer(layer: Any, name: str) -> Any:
    """An unbuilt copy of a layer under a name, frozen where the original is."""
    config = layer.get_config()
    config["name"] = name
    # A `batch_input_shape` makes a first layer build itself for a sequential model; here Input does that.
    config.pop("batch_input_shape", None)
    copy = type(layer).from_config(config)
    copy.trainable = layer.trainable
    return copy


def _give_weights(graph: Graph, copies: dict[int, tuple[Any, Any]]) -> None:
    for node in graph.nodes:
        copy, _ = copies.pop(id(node.layer), (None, None))
        if copy is None:
            continue
        weights = graph.weights_of(node.layer)
        if weights:
            copy.set_weights(weights)
