"""Model -> layer graph: nested models opened, shared layers kept shared."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, is_graph_model, map_tensors, tensors
from tfmot_ops.core.legacy_keras import keras
from tfmot_ops.errors import UnsupportedModelError


def read_graph(model: keras.Model) -> Graph:
    """Read the layer graph of a model.

    Args:
        model: functional or built sequential model; nested ones of the same kinds are opened in place.

    Raises:
        UnsupportedModelError: a (nested) model is subclassed or not built, so it has no graph to read.
    """
    _require_graph(model, model.name)
    bound: dict[int, Tensor] = {}
    structure = tf.nest.map_structure(lambda keras_tensor: _bind_input(keras_tensor, bound), _input_structure(model))
    names = {
        id(bound[id(keras_tensor)]): keras_tensor._keras_history.layer.name  # noqa: SLF001 - Keras' own graph record
        for keras_tensor in model.inputs
    }
    nodes: list[Node] = []
    outputs = _walk(model, "", bound, nodes)
    return Graph(model.name, structure, names, outputs, nodes)


def _require_graph(model: keras.Model, path: str) -> None:
    if is_graph_model(model):
        return
    built = isinstance(model, keras.Sequential)
    raise UnsupportedModelError(
        f"model {path!r} has no layer graph",
        required="a functional model, or a sequential one that is built",
        received="a sequential model that is not built" if built else f"a subclassed model ({type(model).__name__})",
        remedy="call model.build(input_shape) or the model on one batch first"
        if built
        else "write the model with the functional API: keras.Model(inputs, outputs)",
    )


def _input_structure(model: keras.Model) -> Any:
    # A sequential model's nested inputs are a list of one; a functional one keeps what the user gave.
    return model.inputs[0] if isinstance(model, keras.Sequential) else model._nested_inputs  # noqa: SLF001


def _bind_input(keras_tensor: Any, bound: dict[int, Tensor]) -> Tensor:
    tensor = bound[id(keras_tensor)] = _tensor(keras_tensor, None)
    return tensor


def _tensor(keras_tensor: Any, producer: Node | None) -> Tensor:
    shape = keras_tensor.shape
    sizes = tuple(shape.as_list()) if shape.rank is not None else ()
    return Tensor(sizes, tf.as_dtype(keras_tensor.dtype).name, producer)


def _walk(model: keras.Model, prefix: str, bound: dict[int, Tensor], nodes: list[Node]) -> Any:
    """Append the calls of `model` to `nodes`; `bound` maps id(KerasTensor) of this model to tensors."""
    by_depth = model._nodes_by_depth  # noqa: SLF001 - the only order Keras records
    for depth in sorted(by_depth, reverse=True):
        for call in by_depth[depth]:
            if isinstance(call.layer, keras.layers.InputLayer):
                continue
            _read_call(call, prefix, bound, nodes)
    nested = model.outputs[0] if isinstance(model, keras.Sequential) else model._nested_outputs  # noqa: SLF001
    return tf.nest.map_structure(lambda keras_tensor: bound[id(keras_tensor)], nested)


def _read_call(call: Any, prefix: str, bound: dict[int, Tensor], nodes: list[Node]) -> None:
    layer = call.layer
    path = prefix + layer.name

    def lookup(leaf: Any) -> Any:
        return bound.get(id(leaf), leaf)

    args = tf.nest.map_structure(lookup, call.call_args)
    kwargs = {name: tf.nest.map_structure(lookup, value) for name, value in call.call_kwargs.items()}
    if isinstance(layer, keras.Model):
        _require_graph(layer, path)
        outputs = _open(layer, path, tensors((args, kwargs)), nodes)
    else:
        node = Node(layer, path, args, kwargs, None)
        outputs = node.outputs = tf.nest.map_structure(lambda out: _tensor(out, node), call.outputs)
        nodes.append(node)
    for keras_tensor, tensor in zip(tf.nest.flatten(call.outputs), tensors(outputs), strict=True):
        bound[id(keras_tensor)] = tensor


def _open(model: keras.Model, path: str, arguments: list[Tensor], nodes: list[Node]) -> Any:
    inner = {id(keras_tensor): tensor for keras_tensor, tensor in zip(model.inputs, arguments, strict=True)}
    outputs = _walk(model, path + "/", inner, nodes)
    # A nested model that returns its own input would otherwise alias two tensors of the outer graph.
    return map_tensors(outputs, lambda tensor: tensor)
