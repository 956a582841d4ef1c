"""The compile configuration of a model: reading it, and copying it to a rewritten model.

`compile_like` compiles a rewritten model (pruned, quantised, stripped) like the original, without sharing state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import AddLoss, AddMetric, has_functional_like_constructor
from tfmot_ops.core.keras.types import Config, Configured, Optimizer
from tfmot_ops.core.keras.values import value_of
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.errors import UnsupportedModelError

_LOG = logging.getLogger(__name__)
#: Type of the values of `compile_parameters`.
Scalar = str | int | float | bool | None


def is_compiled(model: keras.Model) -> bool:
    """Whether `model` has an optimizer and a loss to train with."""
    return bool(private.is_compiled(model)) and model.optimizer is not None


def compile_like(model: keras.Model, source: keras.Model) -> None:
    """Copy class, output names and compile configuration of `source` to `model`, in place.

    Optimizer and metrics are re-created from their configs, so they share no state with `source`. Losses and a
    learning-rate schedule have no state and are shared. Dicts of losses, metrics or labels by output name work as
    before; but a saved file does not contain output names, so a loaded model uses its layers' names.

    A user's own model class is copied if its constructor takes (inputs, outputs, name). A warning is logged for what
    is not copied: other classes, and losses and metrics added by `source.add_loss` and `source.add_metric`.

    Args:
        model: the rewritten model, which is changed.
        source: the original; if it is not compiled, `model` is not compiled either.

    Raises:
        UnsupportedModelError: the models have different numbers of outputs, or an optimizer or a metric cannot be
            re-created from its config.
    """
    _copy_class(model, source)
    _copy_output_names(model, source)
    _warn_of_losses(model, source)
    if not is_compiled(source):
        return
    if type(model).compile is not keras.Model.compile:
        _LOG.warning("%s: %s has a compile of its own; compile the model yourself", model.name, type(model).__name__)
        return
    keys = _output_keys(source)
    if len(keys) != len(_output_keys(model)):
        raise UnsupportedModelError(
            f"{model.name} cannot be compiled like {source.name}",
            required=f"as many outputs: {len(keys)}",
            received=f"{len(_output_keys(model))} outputs: {', '.join(_output_keys(model))}",
            remedy="compile the model yourself",
        )
    arguments = private.compile_arguments(source)
    arguments |= {name: _by_position(arguments[name], source) for name in ("loss", "loss_weights")}
    arguments |= {name: _fresh_metrics(arguments[name], source) for name in ("metrics", "weighted_metrics")}
    if private.tunes_steps_per_execution(source):
        arguments["steps_per_execution"] = "auto"
    model.compile(optimizer=_map_leaves(fresh_optimizer, source.optimizer), **arguments)


def _copy_class(model: keras.Model, source: keras.Model) -> None:
    """Give `model` the user's own model class of `source`, if its constructor allows it; otherwise log a warning."""
    cls = type(source)
    if cls is type(model) or cls.__module__.startswith("tf_keras."):
        return
    # The same test as in Keras' clone_model; a saved model of any other class cannot be loaded.
    if not has_functional_like_constructor(cls):
        _LOG.warning(
            "%s: the new model is not of the class %s, whose constructor takes other arguments than (inputs, outputs, "
            "name, trainable); methods of the class, such as its train_step, are not used",
            model.name,
            cls.__name__,
        )
        return
    # The copy was made as a plain keras.Model; now the constructor of the user's class runs on it.
    model.__class__ = cls
    cls.__init__(model, private.nested_inputs(model), private.nested_outputs(model), name=model.name)


def _copy_output_names(model: keras.Model, source: keras.Model) -> None:
    """Copy the output names of `source` to `model`; a pruning wrapper's name is replaced by its inner layer's."""
    names, layers = source.output_names, private.output_layers(source)
    if not names or not layers or len(names) != len(model.output_names or ()):
        return
    known = [inner_layer(layer).name if name == layer.name else name for name, layer in zip(names, layers, strict=True)]
    # `object.__setattr__`, because Keras' own would track the list as a part of the model and save it.
    object.__setattr__(model, "output_names", known)


def _warn_of_losses(model: keras.Model, source: keras.Model) -> None:
    """Log a warning that names the layers by which `add_loss` and `add_metric` work and that `model` lacks."""
    added, kept = (
        {layer.name for layer in private.layers_within(part) if isinstance(layer, AddLoss | AddMetric)}
        for part in (source, model)
    )
    if added - kept:
        _LOG.warning(
            "%s: leaves out what add_loss and add_metric added to the model (%s); add it to the loss, or to %s anew",
            model.name,
            ", ".join(sorted(added - kept)),
            model.name,
        )


def _output_keys(model: keras.Model) -> list[str]:
    """Keys by which a dict of losses or metrics refers to the outputs of `model`, in the outputs' order."""
    outputs = private.nested_outputs(model)
    # If the outputs are a dict, Keras uses that dict's keys; otherwise it uses the output names.
    return sorted(outputs) if isinstance(outputs, Mapping) else list(model.output_names or ())


def _by_position(structure: object, source: keras.Model) -> Any:
    """A dict by output names as a list in the outputs' order, as output names change when a model is saved."""
    is_dict = isinstance(private.nested_outputs(source), Mapping)
    if not isinstance(structure, Mapping) or is_dict:
        return structure
    return [structure.get(name) for name in source.output_names]


def _map_leaves(function: Callable[[Any], Any], structure: object) -> Any:
    """Apply `function` to the leaves of nested lists, tuples and dicts; tuples become lists."""
    if isinstance(structure, Mapping):
        return {key: _map_leaves(function, value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return [_map_leaves(function, value) for value in structure]
    return function(structure)


def fresh_optimizer(optimizer: Optimizer, changes: Mapping[str, Any] | None = None) -> Any:
    """An optimizer of the same class and arguments, without state.

    Args:
        optimizer: also one that scales the loss around another.
        changes: arguments that differ, of the inner optimizer where there is one; None leaves an argument out.
    """
    config = optimizer.get_config()
    rate = private.given_learning_rate(optimizer)
    if callable(rate) and not isinstance(rate, tf.Variable):
        # The schedule object itself, as a user's own schedule could be re-created only in a custom object scope.
        config["learning_rate"] = rate
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None and "inner_optimizer" in config and not isinstance(inner, keras.optimizers.legacy.Optimizer):
        config["inner_optimizer"] = fresh_optimizer(inner, changes)
    elif changes:
        left_out = {name for name, value in changes.items() if value is None}
        config = {name: value for name, value in {**config, **changes}.items() if name not in left_out}
    fresh = _from_config(optimizer, config)
    # Weight decay's exceptions (parts of variable names) are set by a method and are not in the config.
    names = private.names_without_decay(optimizer)
    if names:
        fresh.exclude_from_weight_decay(var_names=names)
    return fresh


def _fresh_metrics(structure: object, source: keras.Model) -> Any:
    """New metrics with the arguments of those of `source`, but no state; lists instead of dicts by output name."""
    prefixes = _prefixes(source)

    def fresh(metric: object) -> Any:
        if not isinstance(metric, keras.metrics.Metric):
            return metric  # a name, a function or None, from which Keras creates a new metric
        config = metric.get_config()
        config["name"] = _without_prefixes(metric.name, prefixes)
        return _from_config(metric, config)

    placed = _by_position(structure, source)
    if placed is not structure:
        # One list per output, as Keras would apply every metric of a flat list to every output.
        placed = [item if isinstance(item, list | tuple) else [] if item is None else [item] for item in placed]
    return _map_leaves(fresh, placed)


def _prefixes(source: keras.Model) -> list[str]:
    """What Keras puts before the names of metrics, the longest first; empty for a model with one output.

    With several outputs, Keras prefixes a metric's name with the output's name at the first batch, and saves that name.
    A loaded model has names of layers as output names, so the prefix may be that of the layer inside a wrapper.
    """
    names, layers = list(source.output_names or ()), private.output_layers(source)
    if len(names) <= 1:
        return []
    known = {*names, *(layer.name for layer in layers), *(inner_layer(layer).name for layer in layers)}
    return sorted((f"{name}_" for name in known), key=len, reverse=True)


def _without_prefixes(name: str, prefixes: list[str]) -> str:
    """A metric's name without prefixes, as Keras will add one to the new model's metric."""
    while prefix := next((prefix for prefix in prefixes if name.startswith(prefix) and name != prefix), ""):
        name = name.removeprefix(prefix)
    return name


def _from_config(instance: Configured, config: Config) -> Any:
    try:
        return type(instance).from_config(config)
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{_qualified_name(type(instance))} cannot be re-created from its config",
            required="a from_config that accepts what get_config returns",
            received=f"{type(error).__name__}: {error}",
            remedy="return every argument of the constructor from get_config",
        ) from error


def compile_parameters(model: keras.Model) -> dict[str, Scalar]:
    """The compile configuration as a flat dict, to be logged as parameters of a run; empty if not compiled.

    Returns:
        `optimizer` (class name), `optimizer.<setting>` for each setting of the optimizer, `loss`, `loss_weights`,
        `metrics`, `weighted_metrics`, `steps_per_execution`, `jit_compile` and `run_eagerly`. Schedules and loss
        objects are written as constructor calls (`Huber(delta=1.0)`), functions by their qualified names.
    """
    if not is_compiled(model):
        return {}
    parameters: dict[str, Scalar] = {}
    optimizers = model.optimizer if isinstance(model.optimizer, list | tuple) else [model.optimizer]
    for index, optimizer in enumerate(optimizers):
        prefix = "optimizer" if len(optimizers) == 1 else f"optimizer.{index}"
        parameters[prefix] = type(optimizer).__name__
        settings = {key: value for key, value in optimizer.get_config().items() if key != "is_legacy_optimizer"}
        parameters.update({f"{prefix}.{key}": _scalar(value) for key, value in settings.items()})
    arguments = private.compile_arguments(model)
    arguments["run_eagerly"] = bool(arguments["run_eagerly"])
    return parameters | {name: _scalar(value) for name, value in arguments.items()}


def _scalar(value: object) -> Scalar:
    if isinstance(value, np.ndarray | np.generic | tf.Variable | tf.Tensor):
        array = value_of(value)
        value = array.item() if array.size == 1 else array.tolist()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return _readable(value).removeprefix("[").removesuffix("]") if isinstance(value, list | tuple) else _readable(value)


def _readable(value: object) -> str:
    """A schedule, loss object, function or nested structure as text, such as `Huber(delta=1.0)`."""
    if isinstance(value, Mapping):
        if {"class_name", "config"} <= value.keys():
            return _call(str(value["class_name"]).rsplit(">", 1)[-1], value["config"])
        return ", ".join(f"{key}={_readable(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_readable(item) for item in value) + "]"
    if hasattr(value, "get_config"):
        return _call(type(value).__name__, value.get_config())
    if callable(value):
        return _qualified_name(value)
    return str(_scalar(value))


def _call(name: str, config: object) -> str:
    arguments = config.items() if isinstance(config, Mapping) else [("config", config)]
    return f"{name}({', '.join(f'{key}={_readable(item)}' for key, item in arguments)})"


def _qualified_name(value: object) -> str:
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', type(value).__module__)}.{name}"
