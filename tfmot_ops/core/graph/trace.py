"""Records what a layer computes: its `call` is run on symbolic tensors, and the calls in it become a model.

Keras records each layer and each TensorFlow function that is called on a symbolic tensor. During the recording, weights
that the layer itself holds are replaced by symbolic tensors, so that functions of weights are recorded too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from typing import Any

import tensorflow as tf

from tfmot_ops.core.graph.ir import Tensor, is_graph_model, map_tensors, tensors
from tfmot_ops.core.graph.layers import LearnedTensor
from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.added_losses import without_added_losses
from tfmot_ops.core.keras.identity import IdentityKey
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import KerasTensor
from tfmot_ops.core.keras.types import Args, Function, Kwargs, Layer, Variable
from tfmot_ops.core.keras.weights import (
    own_weights_of,
    regularizers_of,
    restore_attributes,
    snapshot_attributes,
    variable_key,
    weights_replaced,
)
from tfmot_ops.errors import UnsupportedModelError

_LOG = logging.getLogger(__name__)


class LearnedTensors:
    """Makes one `LearnedTensor` for each weight, also if the weight is used in several places."""

    def __init__(self) -> None:
        self._made: dict[IdentityKey, LearnedTensor] = {}
        self._names: set[str] = set()

    def layer(self, weight: Variable, regularizer: object = None, *, trainable: bool = True) -> LearnedTensor:
        """The layer whose result has the weight's values; it is made at the first request for the weight.

        Args:
            weight: the weight.
            regularizer: its regulariser.
            trainable: False for a weight of a layer that is frozen.
        """
        key = variable_key(weight)
        if key not in self._made:
            plain = private.plain_variable(weight)
            name = self._free_name(weight.name.split(":")[0].rsplit("/", 1)[-1])
            self._made[key] = layer = LearnedTensor(
                plain.shape.as_list(),
                plain.dtype.name,
                regularizer,
                getattr(plain, "constraint", None),
                name=name,
                trainable=bool(plain.trainable) and trainable,
            )
            layer.build([])
            layer.set_weights([plain.numpy()])
        return self._made[key]

    def _free_name(self, name: str) -> str:
        """A name that Keras allows and no other weight has: other characters become `_`, and a number is added."""
        plain = "learned_" + "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
        numbered = (f"{plain}_{number}" for number in count(1))
        free = next(one for one in chain([plain], numbered) if one not in self._names)
        self._names.add(free)
        return free

    def has(self, weight: Variable) -> bool:
        """Whether a layer was made for the weight."""
        return variable_key(weight) in self._made


def record(layer: Layer, args: Args, kwargs: Kwargs, learned: LearnedTensors) -> tuple[Any, list[Tensor]]:
    """Record a call of a layer on tensors of a graph.

    Args:
        layer: a custom layer, a Lambda layer or a subclassed model; it is not changed.
        args: the call's arguments, with graph tensors in them.
        kwargs: its keyword arguments.
        learned: makes the tensors that stand for the layer's own weights.

    Returns:
        A functional model of what the call computes, and the graph tensor for each of its inputs.

    Raises:
        Exception: whatever the user's `call` raises on symbolic tensors.
    """
    read = list(dict.fromkeys(tensors((args, kwargs))))
    symbols = {tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in read}
    given_args, given_kwargs = map_tensors((args, kwargs), lambda tensor: symbols[tensor])
    return _recorded(layer, list(symbols.values()), given_args, given_kwargs, learned), read


def _recorded(layer: Layer, inputs: Any, args: Args, kwargs: Kwargs, learned: LearnedTensors) -> Any:
    """A functional model from `inputs`, which are the symbolic tensors in `args` and `kwargs`, to the call's result."""
    weight_owners = [layer]
    made, read = _recording_of(weight_owners, inputs, args, kwargs, learned)
    # An inner layer that is called on constants, as a table of positions, leaves no call: its weights become tensors.
    within = {variable_key(weight) for weight in made.weights}
    weight_owners += [part for part in _inner_layers(layer) if _holds_any_of(part, read - within)]
    if len(weight_owners) > 1:
        made, read = _recording_of(weight_owners, inputs, args, kwargs, learned)
    if any(_holds_any_of(owner, read) for owner in weight_owners):
        raise ValueError(f"the call of {layer.name} reads the values of a weight, which would become constants")
    return made


def _inner_layers(layer: Layer) -> list[Any]:
    return [part for part in private.layers_within(layer) if part is not layer]


def _recording_of(
    weight_owners: Sequence[Layer], inputs: Any, args: Args, kwargs: Kwargs, learned: LearnedTensors
) -> tuple[Any, set[IdentityKey]]:
    """What a call computes, as a model, and the trained weights whose values the call read itself.

    Args:
        weight_owners: the called layer first, then those of its inner layers whose own weights become tensors too.
        inputs: the model's inputs.
        args: the call's arguments.
        kwargs: its keyword arguments.
        learned: makes the tensors that stand for the weights.
    """
    layer = weight_owners[0]
    anchor = next(leaf for leaf in tf.nest.flatten((args, kwargs)) if isinstance(leaf, KerasTensor))
    regularizers = {weight: found for part in weight_owners for weight, found in regularizers_of(part).items()}
    trained = {variable_key(weight) for weight in layer.trainable_weights}
    tensors_of: dict[IdentityKey, Any] = {}

    def tensor_of(weight: Variable) -> Any:
        key = variable_key(weight)
        if key not in tensors_of:
            # One call for a weight that several attributes hold.
            made = learned.layer(weight, regularizers.get(key), trainable=key in trained)
            tensors_of[key] = made(anchor)
        return tensors_of[key]

    logger = logging.getLogger("tensorflow")
    level = logger.level
    try:
        # Keras warns that a recorded function reads a weight; here the weight becomes a weight of the new model.
        logger.setLevel(logging.ERROR)
        with _without_recorded_calls(layer), ExitStack() as replacements:
            # What a model adds is a part of how it is trained, as its loss is; what a layer adds stays with the layer.
            models = [layer] if isinstance(layer, keras.Model) else []
            added = replacements.enter_context(without_added_losses(models))
            for owner in weight_owners:
                replacements.enter_context(weights_replaced(owner, tensor_of))
            tape = replacements.enter_context(tf.GradientTape())
            made = keras.Model(inputs, _call_of(layer)(layer, *args, **kwargs), name=layer.name)
        if added:
            names = ", ".join(sorted(set(added)))
            _LOG.warning("%s: leaves out what its call adds by %s; add it to the loss", layer.name, names)
        return made, {variable_key(weight) for weight in tape.watched_variables()}
    finally:
        logger.setLevel(level)


def _holds_any_of(layer: Layer, weights: AbstractSet[IdentityKey]) -> bool:
    """Whether a layer's own weights, without those of inner layers, are among the weights."""
    return any(variable_key(weight) in weights for weight in own_weights_of(layer))


def _call_of(layer: Layer) -> Function:
    """The function that computes a layer's call from (layer, arguments)."""
    match layer:
        case keras.layers.TimeDistributed():
            return _call_at_each_step
        case keras.layers.SpectralNormalization():
            return _call_inner
    return lambda layer, *args, **kwargs: layer.call(*args, **kwargs)


def _call_inner(layer: Layer, inputs: KerasTensor, training: bool | None = None) -> Any:
    """What SpectralNormalization computes in inference: its inner layer, with the kernel as it is."""
    mode = {"training": training} if private.call_signature(layer.layer).expects_training_arg else {}
    return layer.layer(inputs, **mode)


def _call_at_each_step(layer: Layer, inputs: object, training: bool | None = None, mask: object = None) -> Any:
    """What TimeDistributed computes: [N, T, ...] as [N * T, ...] through its inner layer, and back to [N, T, ...].

    Raises:
        ValueError: the call has a mask, several inputs or an unknown number of steps.
    """
    if mask is not None or not isinstance(inputs, KerasTensor) or inputs.shape[1] is None:
        raise ValueError("a TimeDistributed layer with a mask, several inputs or an unknown number of steps")
    mode = {"training": training} if private.call_signature(layer.layer).expects_training_arg else {}
    steps = layer.layer(tf.reshape(inputs, [-1, *inputs.shape[2:]]), **mode)
    return tf.nest.map_structure(lambda step: tf.reshape(step, [-1, inputs.shape[1], *step.shape[1:]]), steps)


@contextmanager
def _without_recorded_calls(layer: Layer) -> Iterator[None]:
    """Restore the losses, recorded calls and attributes of a layer and its inner layers when the context ends.

    Raises:
        ValueError: the layer adds losses or metrics of its own, which a graph cannot represent.
    """
    before = [(part, name, len(notes)) for part, name, notes in private.recorded_call_lists(layer)]
    attributes = snapshot_attributes(layer)
    try:
        yield
        own = [name for part, name, count in before if part is layer and len(getattr(part, name)) > count]
        if own:
            raise ValueError(
                f"layer {layer.name} adds losses or metrics of its own ({own}), which a graph cannot represent"
            )
    finally:
        for part, name, count in before:
            if len(getattr(part, name)) > count:
                del getattr(part, name)[count:]
        restore_attributes(attributes)


def as_functional(model: keras.Model) -> keras.Model:
    """The model itself, or for a subclassed model a functional one that computes the same with the same layers.

    What a subclassed model computes in training only, inside `if training:`, is left out; its layers (Dropout,
    BatchNormalization) keep their own behaviour in training.

    Args:
        model: functional, sequential, or subclassed and called on data or built before.

    Raises:
        UnsupportedModelError: the model has no layer graph, and its `call` cannot be recorded.
    """
    if is_graph_model(model):
        return model
    if isinstance(model, keras.Sequential):
        raise _no_graph(model, "a sequential model that is not built", "call model.build(input_shape) first")
    arguments = _arguments_of(model)
    if arguments is None:
        raise _no_graph(model, f"a subclassed model ({type(model).__name__}) that was never called", _CALL_FIRST)
    args, kwargs = arguments
    mode = {"training": None} if private.call_signature(model).expects_training_arg else {}
    try:
        inputs = args[0] if len(args) == 1 and not kwargs else [*args, *kwargs.values()]
        return _recorded(model, inputs, args, kwargs | mode, LearnedTensors())
    except Exception as error:  # the user's `call` may raise anything on symbolic tensors
        received = f"a subclassed model ({type(model).__name__}); recording its call: {type(error).__name__}: {error}"
        raise _no_graph(model, received, _WRITE_FUNCTIONAL) from error


_CALL_FIRST = "call the model on one batch first, so that it knows the shapes of its inputs"
_WRITE_FUNCTIONAL = (
    "write the model with the functional API, keras.Model(inputs, outputs), or its call with layers and TensorFlow "
    "functions of tensors only, without branches on their values"
)


def _arguments_of(model: keras.Model) -> tuple[list[Any], dict[str, Any]] | None:
    """The (args, kwargs) of a subclassed model's call as symbolic tensors; None if the model was not built yet."""
    spec = model.save_spec(dynamic_batch=True)
    if spec is not None:
        args, kwargs = spec
        symbols = tf.nest.map_structure(_input, (list(args), {k: v for k, v in kwargs.items() if k != "training"}))
        return symbols[0], symbols[1]
    shape = (model.get_build_config() or {}).get("input_shape")
    if shape is None:
        return None
    return [_inputs_of_shape(shape)], {}


def _input(spec: Any) -> Any:
    if not isinstance(spec, tf.TensorSpec):
        return spec
    name = (spec.name or "").split(":")[0].rsplit("/", 1)[-1] or None
    return keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=name)


def _inputs_of_shape(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {name: _inputs_of_shape(part) for name, part in shape.items()}
    if isinstance(shape, list) or (isinstance(shape, tuple) and shape and isinstance(shape[0], tuple)):
        return [_inputs_of_shape(part) for part in shape]
    return keras.Input(batch_shape=(None, *tuple(shape)[1:]))


def _no_graph(model: keras.Model, received: str, remedy: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"model {model.name!r} has no layer graph",
        required="a functional model, a sequential one that is built, or a subclassed one whose call can be recorded",
        received=received,
        remedy=remedy,
    )
