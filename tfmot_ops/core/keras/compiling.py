"""How a model is compiled: read it, and compile a rewritten model as the original was.

`compile_like` compiles a model (pruned, quantised, stripped) as the original was, with nothing of the original's
state in it.
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
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.errors import UnsupportedModelError

_LOG = logging.getLogger(__name__)
#: What `compile_parameters` gives as values.
Scalar = str | int | float | bool | None


def is_compiled(model: keras.Model) -> bool:
    """Whether `model` has an optimizer and a loss to train with."""
    return bool(private.is_compiled(model)) and model.optimizer is not None


def compile_like(model: keras.Model, source: keras.Model) -> None:
    """Make `model` train as `source` does, in place: compiled if `source` is, of its class, with its outputs' names.

    The optimizer and the metrics are re-created from their configs, so they share no state with `source`; a
    learning-rate schedule and the losses have none and are shared. Losses, metrics and labels keyed by an output's
    name keep their keys; a saved file has no names of outputs, so a loaded model goes by its layers' again.

    A class of the user's own is kept where it is made as `cls(inputs, outputs, name=...)`. What is not kept is
    warned of in the log: another class, and what `source.add_loss` and `add_metric` added.

    Raises:
        UnsupportedModelError: the models differ in their number of outputs, or an optimizer or a metric cannot be
            made from its own config.
    """
    _take_class(model, source)
    _take_names(model, source)
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
    arguments |= {name: _by_place(arguments[name], source) for name in ("loss", "loss_weights")}
    arguments |= {name: _fresh_metrics(arguments[name], source) for name in ("metrics", "weighted_metrics")}
    if private.tunes_steps_per_execution(source):
        arguments["steps_per_execution"] = "auto"
    model.compile(optimizer=_map_leaves(_fresh_optimizer, source.optimizer), **arguments)


def _take_class(model: keras.Model, source: keras.Model) -> None:
    cls = type(source)
    if cls is type(model) or cls.__module__.startswith("tf_keras."):
        return
    # As Keras' clone_model chooses; a file of any other class does not load.
    if not has_functional_like_constructor(cls):
        _LOG.warning(
            "%s: is no %s, whose constructor takes other arguments than (inputs, outputs, name, trainable); "
            "what the class does in training is left out",
            model.name,
            cls.__name__,
        )
        return
    # What makes the copy does not know the class; the constructor that runs now is the one it would have called.
    model.__class__ = cls
    cls.__init__(model, private.nested_inputs(model), private.nested_outputs(model), name=model.name)


def _take_names(model: keras.Model, source: keras.Model) -> None:
    """Give the outputs the names that the user knows them by: of the layers inside pruning wrappers."""
    names, layers = source.output_names, private.output_layers(source)
    if not names or not layers or len(names) != len(model.output_names or ()):
        return
    known = [inner_layer(layer).name if name == layer.name else name for name, layer in zip(names, layers, strict=True)]
    # Past Keras' own `__setattr__`, which would make the list a part of the model that is saved.
    object.__setattr__(model, "output_names", known)


def _warn_of_losses(model: keras.Model, source: keras.Model) -> None:
    added, kept = (
        {layer.name for layer in private.layers_within(each) if isinstance(layer, AddLoss | AddMetric)}
        for each in (source, model)
    )
    if added - kept:
        _LOG.warning(
            "%s: leaves out what add_loss and add_metric added to the model (%s); add it to the loss, or to %s again",
            model.name,
            ", ".join(sorted(added - kept)),
            model.name,
        )


def _output_keys(model: keras.Model) -> list[str]:
    """Keys that a dict of losses or metrics of `model` may have, in the order of its outputs."""
    outputs = private.nested_outputs(model)
    # Keras matches a dict of losses to a dict of outputs by its own keys, and to a list by the layers' names.
    return sorted(outputs) if isinstance(outputs, Mapping) else list(model.output_names or ())


def _by_place(structure: object, source: keras.Model) -> Any:
    """A dict by outputs' names as a list by their places: a saved model goes by other names than the one in memory."""
    is_dict = isinstance(private.nested_outputs(source), Mapping)
    if not isinstance(structure, Mapping) or is_dict:
        return structure
    return [structure.get(name) for name in source.output_names]


def _map_leaves(function: Callable[[Any], Any], structure: object) -> Any:
    """Apply `function` to what is in nested lists, tuples and dicts, which become lists and dicts."""
    if isinstance(structure, Mapping):
        return {key: _map_leaves(function, value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return [_map_leaves(function, value) for value in structure]
    return function(structure)


def _fresh_optimizer(optimizer: Optimizer) -> Any:
    config = optimizer.get_config()
    rate = private.given_learning_rate(optimizer)
    if callable(rate) and not isinstance(rate, tf.Variable):
        # Put back as it is: the config form of a user's own schedule only loads under a custom object scope.
        config["learning_rate"] = rate
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None and "inner_optimizer" in config and not isinstance(inner, keras.optimizers.legacy.Optimizer):
        config["inner_optimizer"] = _fresh_optimizer(inner)
    fresh = _from_config(optimizer, config)
    # Set by a method and in no config: variables, by parts of their names, that weight decay leaves alone.
    names = private.names_without_decay(optimizer)
    if names:
        fresh.exclude_from_weight_decay(var_names=names)
    return fresh


def _fresh_metrics(structure: object, source: keras.Model) -> Any:
    # With several outputs Keras puts the output's name before that of a metric object when it first meets data; it
    # will do so again for the new model.
    named = source.compiled_metrics.built and len(source.output_names or ()) > 1
    prefixes = tuple(f"{name}_" for name in source.output_names or ()) if named else ()

    def fresh(metric: object) -> Any:
        if not isinstance(metric, keras.metrics.Metric):
            return metric  # a name, a function or None: Keras makes a new metric of it
        config = metric.get_config()
        prefix = next((prefix for prefix in prefixes if metric.name.startswith(prefix)), "")
        config["name"] = metric.name.removeprefix(prefix)
        return _from_config(metric, config)

    placed = _by_place(structure, source)
    if placed is not structure:
        # A flat list would be one for every output.
        placed = [each if isinstance(each, list | tuple) else [] if each is None else [each] for each in placed]
    return _map_leaves(fresh, placed)


def _from_config(instance: Configured, config: Config) -> Any:
    try:
        return type(instance).from_config(config)
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{_qualified_name(type(instance))} cannot be re-created from its config",
            required="get_config and from_config that fit each other",
            received=f"{type(error).__name__}: {error}",
            remedy="return every argument of the constructor from get_config",
        ) from error


def compile_parameters(model: keras.Model) -> dict[str, Scalar]:
    """The compile configuration, flat and readable, for the record of a run; empty if not compiled.

    Returns:
        `optimizer` (class name), `optimizer.<setting>` for each of its settings, `loss`, `loss_weights`, `metrics`,
        `weighted_metrics`, `steps_per_execution`, `jit_compile` and `run_eagerly`. Schedules and loss objects read
        like their constructor call; functions are given by qualified name.
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
        value = np.asarray(value).item() if np.size(value) == 1 else np.asarray(value).tolist()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return _readable(value).removeprefix("[").removesuffix("]") if isinstance(value, list | tuple) else _readable(value)


def _readable(value: object) -> str:
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
