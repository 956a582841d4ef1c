"""Layer graph -> model, in one pass: every layer is made once, called once a call, and given its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors, unique_names
from tfmot_ops.core.graph.layers import LAYERS
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import KerasTensor, QuantizeLayer, QuantizeWrapperV2
from tfmot_ops.core.keras.types import Args, Config, Function, Kwargs, Layer
from tfmot_ops.errors import UnsupportedModelError

#: (new layer, the call it stands for) -> the layer that is called in its place.
Wrap = Callable[[Any, Node], Any]
#: (tensor, its value) -> the value that the calls read.
OnTensor = Callable[[Tensor, Any], Any]

#: Packages of tf_keras' layers whose layers only compute in their call, and other layers that do.
_PURE_PACKAGES = {"activation", "convolutional", "merging", "normalization", "pooling", "regularization", "reshaping"}
_PURE_LAYERS = {keras.layers.Dense, keras.layers.Activation, QuantizeLayer, *LAYERS}
#: Initialisers that draw numbers; what they draw is replaced by the graph's weights.
_RANDOM = (
    keras.initializers.VarianceScaling,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Orthogonal,
)


def rebuild(
    graph: Graph,
    wrap: Wrap = lambda layer, _node: layer,
    on_tensor: OnTensor = lambda _tensor, value: value,
) -> keras.Model:
    """Build a model from a graph; neither the graph nor the layers in it are changed.

    Args:
        graph: the layer graph.
        wrap: gives the layer to call for a copied layer and the (first) call it stands for.
        on_tensor: gives what the calls read for a tensor: a graph input or a call's output.

    Returns:
        An uncompiled functional model with the graph's weights.
    """
    names = unique_names(dict.fromkeys(node.path for node in graph.nodes), graph.input_names.values())
    copies: dict[Layer, Layer] = {}
    values: dict[Tensor, KerasTensor] = {}
    placeholders: dict[Tensor, KerasTensor] = {}
    for tensor in graph.inputs():
        placeholder = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=graph.input_names[tensor])
        placeholders[tensor], values[tensor] = placeholder, on_tensor(tensor, placeholder)
    for node in graph.nodes:
        args, kwargs = map_tensors((node.args, node.kwargs), lambda tensor: values[tensor])
        if node.layer in copies:
            result = call_layer(copies[node.layer], args, kwargs, node.outputs)
        else:
            copy = copy_layer(node.layer, names[node.path])
            copies[node.layer] = called = wrap(copy, node)
            weights = graph.weights_of(node.layer)
            with without_random_values() if weights else nullcontext():
                result = call_layer(called, args, kwargs, node.outputs)
            if weights:
                copy.set_weights(weights)
        for tensor, value in zip(tensors(node.outputs), tf.nest.flatten(result), strict=True):
            values[tensor] = on_tensor(tensor, value)
    inputs = map_tensors(graph.input_structure, lambda tensor: placeholders[tensor])
    outputs = map_tensors(graph.outputs, lambda tensor: values[tensor])
    return keras.Model(inputs, outputs, name=graph.name)


def copy_layer(layer: Layer, name: str, **changes: object) -> Any:
    """An unbuilt copy of a layer under a name, frozen where the original is.

    Args:
        layer: the original.
        name: of the copy.
        changes: constructor arguments with other values than the original's.

    Raises:
        UnsupportedModelError: the layer cannot be made from its config.
    """
    try:
        config = _config(layer)
        # A `batch_input_shape` makes a first layer build itself for a sequential model; here Input does that.
        config.pop("batch_input_shape", None)
        copy = type(layer).from_config(config | _functions(layer, config) | changes | {"name": name})
    except (TypeError, ValueError, NotImplementedError, OSError) as error:
        raise UnsupportedModelError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be copied",
            required="get_config and from_config that fit each other, and functions that Keras finds by their names",
            received=f"{type(error).__name__}: {error}",
            remedy="return every argument of the constructor from get_config; decorate functions and classes with "
            "keras.saving.register_keras_serializable",
        ) from error
    if "activity_regularizer" not in config | changes:
        private.copy_activity_regularizer(copy, layer)
    _freeze_like(layer, copy)
    return copy


def _config(layer: Layer) -> dict[str, Any]:
    config: dict[str, Any]
    if getattr(getattr(layer, "activation", None), "__name__", "") != "<lambda>":
        config = layer.get_config()
        return config
    with warnings.catch_warnings():
        # Keras warns of a lambda in a config; the copy gets the function itself.
        warnings.filterwarnings("ignore", message="The object being serialized includes a `lambda`")
        config = layer.get_config()
    return config


def is_public(function: object) -> bool:
    """Whether Keras finds this function again by its name: it is one of Keras' own or TensorFlow's."""
    return str(getattr(function, "__module__", "")).startswith(("tf_keras.", "tensorflow."))


def _functions(layer: Layer, config: Config) -> dict[str, Any]:
    """The user's functions, and activations that are layers, among a layer's arguments: a config only names them."""
    kinds = ("activation", "initializer", "regularizer", "constraint")
    values = {key: getattr(layer, key, None) for key in config if key.endswith(kinds)}
    layers = {key: value for key, value in values.items() if isinstance(value, keras.layers.Layer)}
    return {key: copy_layer(value, value.name) for key, value in layers.items()} | {
        key: value
        for key, value in values.items()
        # A name of Keras' own may stand for another function than TensorFlow's object, and loads as Keras' own.
        if isinstance(value, FunctionType) and not (is_public(value) and isinstance(config[key], str))
    }


def _freeze_like(layer: Layer, copy: Layer) -> None:
    """Freeze what is frozen in `layer`: the whole, or layers inside it."""
    pairs = list(zip(private.layers_within(layer), private.layers_within(copy), strict=False))
    for original, copied in pairs:
        # Only where they differ, as setting it sets it for all layers inside.
        if copied.trainable != original.trainable:
            copied.trainable = original.trainable


def call_layer(layer: Layer, args: Args, kwargs: Kwargs, outputs: object) -> Any:
    """Call a layer on KerasTensors, without tracing its `call` where its outputs are known beforehand.

    Keras learns a layer's output shapes by tracing its call in a graph of its own; for a quantisation wrapper
    that is most of what a rebuild costs. A graph's tensors say the shapes already.

    Args:
        layer: the layer; this call builds it if it is not built.
        args: the call's arguments, with KerasTensors in them.
        kwargs: its keyword arguments.
        outputs: the result's structure with `Tensor` leaves.

    Returns:
        The result with KerasTensors as leaves, connected to the arguments.
    """
    if not (_is_pure(layer) and _are_known(layer, outputs)):
        return layer(*args, **kwargs)

    def infer(inputs: object, masks: object, more: Args, named: Kwargs) -> Any:
        if not _are_plain(inputs, masks):
            return private.trace_outputs(layer, inputs, masks, more, named)
        private.build_for_call(layer, inputs, more, named)
        return map_tensors(outputs, lambda t: KerasTensor(tf.TensorSpec(t.shape, t.dtype)))

    with private.outputs_of_one_layer(layer, infer):
        return layer(*args, **kwargs)


@contextmanager
def without_traces() -> Iterator[None]:
    """Layers called on KerasTensors in this context say their output's shape by their own formula.

    Keras traces each call of a layer for it, also where the layer has a formula; for a quantised model that is up to
    half of what loading it costs.
    """

    def infer(layer: Layer, inputs: object, masks: object, args: Args, kwargs: Kwargs) -> Any:
        shape_of = _formula(layer)
        if shape_of is None or not _are_plain(inputs, masks):
            return private.trace_outputs(layer, inputs, masks, args, kwargs)
        private.build_for_call(layer, inputs, args, kwargs)
        shape = shape_of(tf.nest.map_structure(lambda value: value.shape, inputs))
        return KerasTensor(tf.TensorSpec(shape, layer.compute_dtype))

    with private.outputs_of_all_layers(infer):
        yield


def _formula(layer: Layer) -> Callable[[Any], Any] | None:
    """Shape of the inputs -> shape of the one output, None for a layer that has to be traced for it."""
    inner = layer.layer if isinstance(layer, QuantizeWrapperV2) else layer
    if not _is_pure(layer) or layer.compute_dtype != "float32" or inner.compute_dtype != "float32":
        return None
    if type(layer) is QuantizeLayer:
        return lambda shape: shape
    has_one = type(inner).compute_output_shape is not keras.layers.Layer.compute_output_shape
    return inner.compute_output_shape if has_one else None


def _is_pure(layer: Layer) -> bool:
    """Whether a call of the layer only computes: no state is made in it, no loss added."""
    inner = layer.layer if isinstance(layer, QuantizeWrapperV2) else layer
    if isinstance(inner, keras.layers.Wrapper) or inner.activity_regularizer is not None:
        return False
    if isinstance(getattr(inner, "activation", None), keras.layers.Layer):
        return False
    return private.package_of(inner) in _PURE_PACKAGES or type(inner) in _PURE_LAYERS


def _are_known(layer: Layer, outputs: object) -> bool:
    """Whether the graph says what the call gives: no tensor of unknown rank, none that a dtype policy casts."""
    dtypes = {layer.compute_dtype, getattr(layer, "layer", layer).compute_dtype}
    return all(tensor.shape and {tensor.dtype} == dtypes for tensor in tensors(outputs))


def _are_plain(inputs: object, masks: object) -> bool:
    """Whether the inputs are dense tensors without a mask, as are then the outputs."""
    return all(mask is None for mask in tf.nest.flatten(masks)) and all(
        type(value) is KerasTensor for value in tf.nest.flatten(inputs)
    )


def without_random_values() -> AbstractContextManager[None]:
    """Variables made in this context start from zeros instead of random numbers."""

    def create(next_creator: Function, **kwargs: Any) -> Any:
        initial = kwargs["initial_value"]
        # Keras gives a partial of the initialiser, with the shape as its argument.
        if isinstance(getattr(initial, "func", None), _RANDOM):
            (shape,) = initial.args
            kwargs["initial_value"] = lambda: tf.zeros(shape, kwargs["dtype"])
        return next_creator(**kwargs)

    context: AbstractContextManager[None] = tf.variable_creator_scope(create)
    return context
