"""Layer graph -> Keras model: copies every layer once, calls the copy for each call, and sets its weights.

Called after each rewrite of a graph: normalisation, QAT, pruning of channels. The functions that copy a layer, or avoid
tracing one, also serve pruning wrappers and the loading of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Graph, Node, Tensor, map_tensors, tensors, unique_names
from tfmot_ops.core.graph.layers import INSERTED_LAYERS
from tfmot_ops.core.graph.pointwise import Pointwise
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import KerasTensor, QuantizeLayer, QuantizeWrapperV2
from tfmot_ops.core.keras.types import Args, Config, Function, Kwargs, Layer
from tfmot_ops.errors import UnsupportedModelError

#: (copied layer, first call of the original) -> the layer to call: the copy, or a wrapper around it.
Wrap = Callable[[Any, Node], Any]
#: (tensor of the graph, its KerasTensor) -> the KerasTensor that its readers get, such as a quantiser's output.
OnTensor = Callable[[Tensor, Any], Any]

#: Packages of tf_keras.layers, and further layers, whose `call` has no side effects (no new state, no losses).
_PURE_PACKAGES = {"activation", "convolutional", "merging", "normalization", "pooling", "regularization", "reshaping"}
_PURE_LAYERS = {keras.layers.Dense, keras.layers.Activation, QuantizeLayer, Pointwise, *INSERTED_LAYERS}
#: Random initialisers: skipped in a rebuild, as the graph's weights replace their values.
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
        wrap: (copied layer, first call of the original) -> the layer to call.
        on_tensor: (graph input or call's output, its KerasTensor) -> the KerasTensor that its readers get.

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
            copies[node.layer] = to_call = wrap(copy, node)
            weights = graph.weights_of(node.layer)
            with without_random_values() if weights else nullcontext():
                result = call_layer(to_call, args, kwargs, node.outputs)
            if weights:
                copy.set_weights(weights)
        for tensor, value in zip(tensors(node.outputs), tf.nest.flatten(result), strict=True):
            values[tensor] = on_tensor(tensor, value)
    inputs = map_tensors(graph.input_structure, lambda tensor: placeholders[tensor])
    outputs = map_tensors(graph.outputs, lambda tensor: values[tensor])
    return keras.Model(inputs, outputs, name=graph.name)


def copy_layer(layer: Layer, name: str, /, **changes: object) -> Any:
    """An unbuilt copy of a layer, with `trainable` as in the original.

    Args:
        layer: the original.
        name: the copy's name.
        changes: constructor arguments that replace the original's.

    Raises:
        UnsupportedModelError: `from_config` does not accept the layer's config.
    """
    if isinstance(layer, keras.Model):
        raise UnsupportedModelError(
            f"layer {layer.name!r} is a subclassed model ({type(layer).__name__}) whose call cannot be recorded",
            required="layers, and TensorFlow functions of tensors, without branches on values or random numbers",
            received="a call that does not take symbolic tensors, or that does something else at each call",
            remedy="write the model with the functional API: keras.Model(inputs, outputs)",
        )
    try:
        config = config_of(layer)
        # With `batch_input_shape` a layer would build itself at once; here the call builds it.
        config.pop("batch_input_shape", None)
        copy = type(layer).from_config(config | _functions(layer, config) | changes | {"name": name})
    except (TypeError, ValueError, NotImplementedError, OSError) as error:
        raise UnsupportedModelError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be copied",
            required="a from_config that accepts what get_config returns, with functions that Keras finds by name",
            received=f"{type(error).__name__}: {error}",
            remedy="return every argument of the constructor from get_config; decorate functions and classes with "
            "keras.saving.register_keras_serializable",
        ) from error
    if "activity_regularizer" not in config | changes:
        private.copy_activity_regularizer(copy, layer)
    _freeze_like(layer, copy)
    return copy


def config_of(layer: Layer) -> dict[str, Any]:
    """The config of a layer; `linear` stands in it for the user's own activation function.

    Keras fails to describe a function without a name or source: a lambda, a `functools.partial`, an object that can be
    called. The copy gets the function itself, see `_functions`.
    """
    activation = vars(layer).get("activation")
    if not _is_own_function(activation):
        config: dict[str, Any] = layer.get_config()
        return config
    # `object.__setattr__`, as Keras' own would drop the variables of an activation from the layer's weights.
    object.__setattr__(layer, "activation", keras.activations.linear)
    try:
        config = layer.get_config()
    finally:
        object.__setattr__(layer, "activation", activation)
    return config


def is_public(function: object) -> bool:
    """Whether the function is one of Keras' or TensorFlow's, so that a config can refer to it by name."""
    module = str(getattr(function, "__module__", ""))
    return isinstance(function, FunctionType) and module.startswith(("tf_keras.", "tensorflow."))


def _is_own_function(value: object) -> bool:
    return callable(value) and not isinstance(value, keras.layers.Layer) and not is_public(value)


def _functions(layer: Layer, config: Config) -> dict[str, Any]:
    """The user's functions, and copies of activation layers, among a layer's constructor arguments.

    The config has only their names, from which Keras cannot find an unregistered function.
    """
    kinds = ("activation", "initializer", "regularizer", "constraint")
    values = {key: getattr(layer, key, None) for key in config if key.endswith(kinds)}
    layers = {key: value for key, value in values.items() if isinstance(value, keras.layers.Layer)}
    return {key: copy_layer(value, value.name) for key, value in layers.items()} | {
        key: value
        for key, value in values.items()
        # A public function is left to its name in the config, so that a copy and a loaded model have the same one.
        if (isinstance(value, FunctionType) or (key.endswith("activation") and _is_own_function(value)))
        and not (is_public(value) and isinstance(config[key], str))
    }


def _freeze_like(layer: Layer, copy: Layer) -> None:
    """Copy `trainable` from `layer` and its inner layers to `copy` and its inner layers."""
    pairs = list(zip(private.layers_within(layer), private.layers_within(copy), strict=False))
    for original, copied in pairs:
        # Only where they differ: setting `trainable` of a layer also sets it for all inner layers.
        if copied.trainable != original.trainable:
            copied.trainable = original.trainable


def call_layer(layer: Layer, args: Args, kwargs: Kwargs, outputs: object) -> Any:
    """Call a layer on KerasTensors, without tracing its `call` where the graph already has the output shapes.

    Keras traces a layer's `call` to infer the output shapes; for a quantisation wrapper the trace takes most of the
    time of a rebuild.

    Args:
        layer: the layer; it is built if it is not built yet.
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
    """In this context, Keras takes output shapes from `compute_output_shape` instead of tracing each layer's `call`.

    Keras traces even where a layer has `compute_output_shape`; for a quantised model the traces take up to half of the
    time of loading it.
    """

    def infer(layer: Layer, inputs: object, masks: object, args: Args, kwargs: Kwargs) -> Any:
        shape_of = _output_shape_formula(layer)
        if shape_of is None or not _are_plain(inputs, masks):
            return private.trace_outputs(layer, inputs, masks, args, kwargs)
        private.build_for_call(layer, inputs, args, kwargs)
        shape = shape_of(tf.nest.map_structure(lambda value: value.shape, inputs))
        return KerasTensor(tf.TensorSpec(shape, layer.compute_dtype))

    with private.outputs_of_all_layers(infer):
        yield


def _output_shape_formula(layer: Layer) -> Callable[[Any], Any] | None:
    """The function from input shapes to the shape of the only output; None for a layer that has to be traced."""
    inner = layer.layer if isinstance(layer, QuantizeWrapperV2) else layer
    if not _is_pure(layer) or layer.compute_dtype != "float32" or inner.compute_dtype != "float32":
        return None
    if type(layer) is QuantizeLayer:
        return lambda shape: shape
    has_one = type(inner).compute_output_shape is not keras.layers.Layer.compute_output_shape
    return inner.compute_output_shape if has_one else None


def _is_pure(layer: Layer) -> bool:
    """Whether a call of the layer has no side effects: it creates no state and adds no loss."""
    inner = layer.layer if isinstance(layer, QuantizeWrapperV2) else layer
    if isinstance(inner, keras.layers.Wrapper) or inner.activity_regularizer is not None:
        return False
    if isinstance(getattr(inner, "activation", None), keras.layers.Layer):
        return False
    return private.package_of(inner) in _PURE_PACKAGES or type(inner) in _PURE_LAYERS


def _are_known(layer: Layer, outputs: object) -> bool:
    """Whether shapes and dtypes of the outputs are known: every rank is known, and no dtype policy casts."""
    dtypes = {layer.compute_dtype, getattr(layer, "layer", layer).compute_dtype}
    return all(tensor.shape and {tensor.dtype} == dtypes for tensor in tensors(outputs))


def _are_plain(inputs: object, masks: object) -> bool:
    """Whether all inputs are dense tensors without a mask; then the outputs are too."""
    return all(mask is None for mask in tf.nest.flatten(masks)) and all(
        type(value) is KerasTensor for value in tf.nest.flatten(inputs)
    )


def without_random_values() -> AbstractContextManager[None]:
    """Variables made in this context start from zeros instead of random numbers."""

    def create(next_creator: Function, **kwargs: Any) -> Any:
        initial = kwargs["initial_value"]
        # Keras passes functools.partial(initialiser, shape).
        if isinstance(getattr(initial, "func", None), _RANDOM):
            (shape,) = initial.args
            kwargs["initial_value"] = lambda: tf.zeros(shape, kwargs["dtype"])
        return next_creator(**kwargs)

    context: AbstractContextManager[None] = tf.variable_creator_scope(create)
    return context
