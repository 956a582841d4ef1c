"""Reads a Keras model into a layer graph: nested models are flattened, and masks become tensors of the graph.

In Keras a mask is an attribute of a tensor, which is lost at the first layer that does not support masking. In the
graph a mask is a tensor, computed by calls of its own and passed as the argument `mask`. So a quantiser that is
inserted between two layers cannot lose the mask.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, is_graph_model, map_tensors, tensors
from tfmot_ops.core.graph.trace import as_functional
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.identity import IdentityKey
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import KerasTensor
from tfmot_ops.core.keras.types import Function, Layer, TensorLike
from tfmot_ops.errors import UnsupportedModelError

#: Symbolic tensor of a Keras model -> the graph's tensor for it.
TensorMap = dict[IdentityKey, Tensor]

#: Keras' layers that create a mask from an unmasked input, by themselves or by the layer that they wrap. Of a custom
#: layer this is not known: its `compute_mask` is called.
_STARTS_MASKS = (keras.layers.Embedding, keras.layers.Masking, keras.layers.Wrapper)


def read_graph(model: keras.Model) -> Graph:
    """Read the layer graph of a model.

    Args:
        model: functional, built sequential, or subclassed model (see `trace.as_functional`). Functional and sequential
            models within it are flattened; a subclassed model within it becomes one call.

    Raises:
        UnsupportedModelError: the model has no graph, and its `call` cannot be recorded; or a layer's `compute_mask`
            does not work on symbolic tensors.
    """
    model = as_functional(model)
    bound: TensorMap = {}
    structure = tf.nest.map_structure(lambda keras_tensor: _bind_input(keras_tensor, bound), _input_structure(model))
    names = {
        bound[IdentityKey(keras_tensor)]: private.history(keras_tensor).layer.name for keras_tensor in model.inputs
    }
    nodes: list[Node] = []
    outputs = _walk(model, "", bound, nodes)
    return _with_masks(Graph(model.name, structure, names, outputs, nodes))


def _input_structure(model: keras.Model) -> Any:
    # A sequential model has a list with one input; a functional model keeps the user's structure.
    return model.inputs[0] if isinstance(model, keras.Sequential) else private.nested_inputs(model)


def _bind_input(keras_tensor: KerasTensor, bound: TensorMap) -> Tensor:
    tensor = bound[IdentityKey(keras_tensor)] = _tensor(keras_tensor, None)
    return tensor


def _tensor(keras_tensor: KerasTensor, producer: Node | None) -> Tensor:
    shape = keras_tensor.shape
    sizes = tuple(shape.as_list()) if shape.rank is not None else ()
    return Tensor(sizes, tf.as_dtype(keras_tensor.dtype).name, producer)


def _walk(model: keras.Model, prefix: str, bound: TensorMap, nodes: list[Node]) -> Any:
    """Append the calls of `model` to `nodes`; `bound` maps the symbolic tensors of this model."""
    by_depth = private.calls_by_depth(model)
    for depth in sorted(by_depth, reverse=True):
        for call in by_depth[depth]:
            if isinstance(call.layer, keras.layers.InputLayer):
                continue
            _read_call(call, prefix, bound, nodes)
    nested = model.outputs[0] if isinstance(model, keras.Sequential) else private.nested_outputs(model)
    return tf.nest.map_structure(lambda keras_tensor: bound[IdentityKey(keras_tensor)], nested)


def _read_call(call: Any, prefix: str, bound: TensorMap, nodes: list[Node]) -> None:
    layer = call.layer
    path = prefix + layer.name

    def lookup(leaf: object) -> Any:
        return bound.get(IdentityKey(leaf), leaf)

    args = tf.nest.map_structure(lookup, call.call_args)
    kwargs = {name: tf.nest.map_structure(lookup, value) for name, value in call.call_kwargs.items()}
    node = Node(layer, path, args, kwargs, None)
    training_by_keyword(node)
    if isinstance(layer, keras.Model) and is_graph_model(layer):
        first = len(nodes)
        outputs = _open(layer, path, node.inputs(), nodes)
        for inner in nodes[first:]:
            pass_training(inner, node.kwargs.get("training"))
    else:
        outputs = node.outputs = tf.nest.map_structure(lambda out: _tensor(out, node), call.outputs)
        nodes.append(node)
    for keras_tensor, tensor in zip(tf.nest.flatten(call.outputs), tensors(outputs), strict=True):
        bound[IdentityKey(keras_tensor)] = tensor


def training_by_keyword(call: Node) -> None:
    """Pass a call's positional arguments after the first by keyword, if `training` or `mask` is among them."""
    names = private.call_signature(call.layer).arg_names[: len(call.args)]
    if {"training", "mask"}.intersection(names[1:]):
        call.kwargs = dict(zip(names[1:], call.args[1:], strict=False)) | call.kwargs
        call.args = call.args[:1]


def pass_training(call: Node, value: object) -> None:
    """Pass the `training` argument of the surrounding model or layer to a call that has none; None changes nothing."""
    expects = private.call_signature(call.layer).expects_training_arg
    if value is not None and expects and call.kwargs.get("training") is None:
        call.kwargs = call.kwargs | {"training": value}


def _open(model: keras.Model, path: str, arguments: list[Tensor], nodes: list[Node]) -> Any:
    inner = {IdentityKey(keras_tensor): tensor for keras_tensor, tensor in zip(model.inputs, arguments, strict=True)}
    outputs = _walk(model, path + "/", inner, nodes)
    # The copy keeps this call's outputs apart from its inputs, also for a nested model that returns its own input.
    return map_tensors(outputs, lambda tensor: tensor)


def _with_masks(graph: Graph) -> Graph:
    """The graph with the masks as arguments of the calls that take them."""
    masks: dict[Tensor, Tensor] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        # The calls that compute a mask stand before its reader.
        _pass_mask(node, masks, nodes)
        nodes.append(node)
        masks |= _masks_after(node, masks, nodes)
    if not masks:
        return graph
    for node in nodes:
        if _takes_mask(node):
            # An explicit None: after a rewrite, Keras could otherwise find a mask that the original call did not get.
            node.kwargs["mask"] = None
    graph.nodes = nodes
    return graph.without_dead_calls()


def _takes_mask(node: Node) -> bool:
    """Whether the layer's call has the argument `mask`, and the user did not pass it."""
    # TimeDistributed has the argument always, and uses a mask only if the layer that it wraps does.
    layer = node.layer.layer if isinstance(node.layer, keras.layers.TimeDistributed) else node.layer
    spec = private.call_signature(node.layer)
    takes = "mask" in private.call_signature(layer).arg_names[1:]
    return takes and not spec.arg_was_passed("mask", node.args[1:], node.kwargs)


def _masks_of(structure: object, masks: dict[Tensor, Tensor]) -> Any:
    """The masks of the structure's tensors, in the same structure; None if no tensor has a mask."""
    if masks.keys().isdisjoint(tensors(structure)):
        return None
    return tf.nest.map_structure(lambda leaf: masks.get(leaf) if isinstance(leaf, Tensor) else None, structure)


def _inputs(node: Node) -> Any:
    """The first argument of a call, which Keras treats as its inputs."""
    return node.args[0] if node.args else next(iter(node.kwargs.values()), None)


def _pass_mask(node: Node, masks: dict[Tensor, Tensor], nodes: list[Node]) -> None:
    if isinstance(node.layer, keras.layers.MultiHeadAttention):
        _pass_attention_mask(node, masks, nodes)
    elif _takes_mask(node) and (mask := _masks_of(_inputs(node), masks)) is not None:
        node.kwargs["mask"] = mask


def _pass_attention_mask(node: Node, masks: dict[Tensor, Tensor], nodes: list[Node]) -> None:
    """Pass the masks of query, value and key to MultiHeadAttention as one `attention_mask`.

    Keras' layer reads the masks from its operands and combines them with the argument; here this is done in the graph.
    """
    spec = private.call_signature(node.layer)
    names = ("query", "value", "key", "attention_mask")
    given = {
        name: spec.get_arg_value(name, node.args, node.kwargs, inputs_in_args=True)
        for name in names
        if spec.arg_was_passed(name, node.args, node.kwargs, inputs_in_args=True)
    }
    before = {name: mask for name in names[:3] if (mask := _masks_of(given.get(name), masks)) is not None}
    if not before:
        return

    def combined(values: tuple[dict[str, TensorLike], dict[str, TensorLike]]) -> Any:
        operands, operand_masks = values
        for name, mask in operand_masks.items():
            private.set_mask(operands[name], mask)
        return private.attention_mask(node.layer, **operands)

    mask = _record(node, combined, (given, before), nodes)
    node.args, node.kwargs = spec.set_arg_value("attention_mask", mask, node.args, node.kwargs, inputs_in_args=True)


def _masks_after(node: Node, masks: dict[Tensor, Tensor], nodes: list[Node]) -> dict[Tensor, Tensor]:
    """Result tensor -> its mask, for the results of a call; appends the calls that compute the masks to `nodes`."""
    layer, inputs = node.layer, _inputs(node)
    given = node.kwargs["mask"] if "mask" in node.kwargs else _masks_of(inputs, masks)
    if not layer.supports_masking or (given is None and not _starts_masks(layer)):
        return {}
    if not private.passes_mask_through(layer):
        given = _record(node, lambda values: layer.compute_mask(*values), (inputs, given), nodes)
    pairs = zip(tf.nest.flatten(node.outputs), tf.nest.flatten(given), strict=False)
    return {tensor: mask for tensor, mask in pairs if isinstance(mask, Tensor)}


def _starts_masks(layer: Layer) -> bool:
    return isinstance(layer, _STARTS_MASKS) or not private.is_keras_layer_class(layer)


def _record(node: Node, compute: Function, values: object, nodes: list[Node]) -> Any:
    """Apply a function to tensors of the graph; appends the TensorFlow calls that it consists of to `nodes`."""
    symbols: dict[Tensor, KerasTensor] = {}

    def symbol(tensor: Tensor) -> Any:
        return symbols.setdefault(tensor, keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype))

    given = map_tensors(values, symbol)
    bound = {IdentityKey(symbols[tensor]): tensor for tensor in tensors(values)}
    calls: list[Node] = []
    try:
        result = compute(given)
        found = [leaf for leaf in tf.nest.flatten(result) if leaf is not None and IdentityKey(leaf) not in bound]
        if found:
            _walk(keras.Model(list(symbols.values()), found), "", bound, calls)
    except Exception as error:  # a user's compute_mask may raise anything on symbolic tensors
        raise UnsupportedModelError(
            f"layer {node.path!r}: its mask cannot be read",
            required="a compute_mask that consists of TensorFlow functions and works on symbolic tensors",
            received=f"{type(error).__name__}: {error}",
            remedy="write compute_mask with TensorFlow functions, or pass the mask as an input of the model",
        ) from error
    # Keras counts recorded functions over the whole process (`tf.math.not_equal_17`); names count within the layer.
    seen: Counter[str] = Counter()
    for call in calls:
        kind = getattr(call.layer, "symbol", call.path).replace(".", "_").strip("_")
        seen[kind] += 1
        call.path = f"{node.path}/mask_{kind}" + (f"_{seen[kind]}" if seen[kind] > 1 else "")
        call.origin = node.origin
    nodes += calls
    return tf.nest.map_structure(lambda leaf: bound.get(IdentityKey(leaf)), result)
