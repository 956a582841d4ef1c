"""Replaces a custom layer that is derived from a Keras layer by that Keras layer, where both compute the same.

Packages derive classes to change default arguments, or to freeze a BatchNormalization. The operation table knows Keras'
own classes only, as a derived class may compute anything. So both layers are run on the same random values, and the
Keras layer takes the derived one's place only if the results are equal. Called by `custom`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, tensors
from tfmot_ops.core.graph.roles import is_custom
from tfmot_ops.core.graph.trial import computes_the_same
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer

#: Base classes that do not say what a derived class computes: they compute nothing, or what an inner layer or a
#: function computes.
_WITHOUT_FIXED_COMPUTATION = (
    *(keras.layers.Layer, keras.Model, keras.layers.Wrapper, keras.layers.Lambda, keras.layers.RNN),
)


class BaseClassReplacer:
    """Replaces derived layers by Keras layers; all calls of a shared layer get the same Keras layer."""

    def __init__(self) -> None:
        self._made: dict[Layer, Layer | None] = {}

    def replace(self, node: Node) -> Node:
        """The call with the Keras layer in place of the derived one, or the call itself where the results differ."""
        layer = node.layer
        if layer not in self._made:
            self._made[layer] = _as_base_class(node) if _base_class(layer) is not None else None
        made = self._made[layer]
        if made is None:
            return node
        call = Node(made, node.path, node.args, node.kwargs, node.outputs, node.origin, node.source_kernel)
        for tensor in tensors(node.outputs):
            tensor.producer = call
        return call


def _base_class(layer: Layer) -> Any:
    """The first of Keras' classes that the layer's class is derived from; None for a class of Keras."""
    if not is_custom(layer) or isinstance(layer, _WITHOUT_FIXED_COMPUTATION[1:]):
        return None
    bases = (base for base in type(layer).__mro__ if base.__module__.startswith(private.LAYERS_PACKAGE))
    return next((base for base in bases if base not in _WITHOUT_FIXED_COMPUTATION), None)


def _as_base_class(node: Node) -> Layer | None:
    """The Keras layer that computes the same as a call of a derived layer; None if there is none."""
    layer, base = node.layer, _base_class(node.layer)
    kwargs = {name: value for name, value in node.kwargs.items() if name != "training"}
    try:
        if base is None:
            return None
        # The base's own config: the derived class may have arguments that the base does not take.
        form = base.from_config(base.get_config(layer))
        call = Node(form, node.path, node.args, kwargs, node.outputs)
        read = list(dict.fromkeys(call.inputs()))
        graph = Graph(layer.name, read, {}, node.outputs, [call])
        _build_like(form, call, layer)
        original = Node(layer, node.path, node.args, kwargs, node.outputs)
        modes = (False, True) if private.call_signature(layer).expects_training_arg else (False,)
        same = all(computes_the_same(original, graph, read, training=mode, unknown=False) for mode in modes)
    except Exception:  # noqa: BLE001 - a derived class may lack attributes of its base, or have other weights
        return None
    return form if same and len(form.losses) == len(layer.losses) else None


def _build_like(form: Layer, call: Node, layer: Layer) -> None:
    """Build a layer by a symbolic call, and give it the weights of another one.

    Raises:
        ValueError: their weights differ in number or shape.
    """
    symbols = {tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in call.inputs()}
    args, kwargs = tf.nest.map_structure(lambda leaf: symbols.get(leaf, leaf), (call.args, call.kwargs))
    form(*args, **kwargs)
    if [weight.shape for weight in form.weights] != [weight.shape for weight in layer.weights]:
        raise ValueError("the weights of the two layers differ in number or shape")
    form.set_weights([np.asarray(weight) for weight in layer.get_weights()])
    form.trainable = layer.trainable
