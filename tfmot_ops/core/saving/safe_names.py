"""Which classes and functions a saved model's config may name unless `allow_unsafe` is set.

Keras resolves a name in a config by importing the module and taking any member. Here names are only looked up in
modules that this process has loaded; nothing is imported or called.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import tensorflow_model_optimization as tfmot

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import (
    BUILTIN_MODULES,
    FUNCTION_MODULES,
    InputSpec,
    LossScaleOptimizer,
    LossScaleOptimizerV3,
    ModuleWrapper,
    OptimizerV2,
    Policy,
    ReloadedLayer,
    activation_layers,
    activations,
    constraints,
    feature_column_v2,
    get_symbol_from_name,
    initializers,
    learning_rate_schedule,
    losses,
    metrics,
    regularizers,
)
from tfmot_ops.core.keras.private import layer_tables as layers
from tfmot_ops.core.saving.safe_graphs import is_function_of_tensors

_PACKAGES = ("tf_keras.", "tensorflow_model_optimization.", "tfmot_ops.")
_OPTIMIZERS = (keras.optimizers.Optimizer, OptimizerV2)
_KINDS = (
    *(keras.layers.Layer, keras.initializers.Initializer, keras.regularizers.Regularizer),
    *(keras.constraints.Constraint, keras.losses.Loss, keras.metrics.Metric, *_OPTIMIZERS),
    *(keras.optimizers.schedules.LearningRateSchedule, Policy, InputSpec, tfmot.sparsity.keras.PruningSchedule),
    *(tfmot.quantization.keras.QuantizeConfig, tfmot.quantization.keras.quantizers.Quantizer),
)
#: Layers that load a file from a path, or call any method of an object.
_REFUSED = {ReloadedLayer, ModuleWrapper}
#: Functions of FUNCTION_MODULES that look up objects by name.
_LOOKUP_FUNCTIONS = {"deserialize", "get", "is_categorical_crossentropy", "serialize"}
#: Feature columns of a DenseFeatures layer, without the column that reads its vocabulary from a file.
_COLUMNS = (
    *(feature_column_v2.BucketizedColumn, feature_column_v2.CrossedColumn, feature_column_v2.EmbeddingColumn),
    *(feature_column_v2.HashedCategoricalColumn, feature_column_v2.IdentityCategoricalColumn),
    *(feature_column_v2.IndicatorColumn, feature_column_v2.NumericColumn, feature_column_v2.SequenceCategoricalColumn),
    *(feature_column_v2.VocabularyListCategoricalColumn, feature_column_v2.WeightedCategoricalColumn),
)


def registered(name: object) -> Any:
    """The object that this process or the current custom_object_scope has registered by this name, or None."""
    return keras.saving.get_registered_object(name) if isinstance(name, str) else None


def is_known_layer(name: str) -> bool:
    """Whether Keras finds a class by this name when it deserialises a layer."""
    return registered(name) is not None or name in _layers()


def classes_of(name: str, module: str | None, registered_name: str | None) -> list[Any]:
    """All classes to which Keras could resolve a class name; the lookup depends on the file format.

    Args:
        name: `class_name` in the config.
        module: `module` in the config; None in the old format.
        registered_name: `registered_name` in the config; defaults to `name`.

    Returns:
        The classes; an empty list if Keras could resolve the name to anything but a harmless or registered class.
    """
    own = registered(registered_name)
    by_name = [registered(name)] if registered(name) is not None else _known_classes().get(name, [])
    if own is not None:
        # The old format uses `class_name` only: it must be unknown, or name a harmless class.
        return [own, *by_name] if by_name or getattr(own, "__name__", None) == name else []
    if module is None:
        return by_name
    by_path = _member(module, name)
    return [by_path, *by_name] if _is_harmless_class(by_path) else []


def is_harmless_function(name: object, module: object) -> bool:
    """Whether a function of a module is registered by this process, or only computes tensors."""
    return isinstance(name, str) and (registered(name) is not None or _is_of_tensors(_member(module, name)))


def is_harmful_name(name: object) -> bool:
    """Whether Keras, given the name without a module, finds something other than a harmless class or function."""
    return name in _harmful_names() and registered(name) is None


def _member(module: object, name: str) -> Any:
    """The object that Keras finds under this name in a module, if the module is loaded already; otherwise None."""
    if not isinstance(module, str):
        return None
    places = [f"keras.{part}" for part in BUILTIN_MODULES] if module == "builtins" else [module]
    if places[0].partition(".")[0] in {"keras", "tf_keras"}:
        prefix = "compat.v1." if "__internal__.legacy" in module else ""
        symbols = (get_symbol_from_name(f"{prefix}{place}.{name}") for place in places)
        found = next((symbol for symbol in symbols if symbol is not None), None)
        if found is not None or module == "builtins":
            return found
    loaded = sys.modules.get(f"tf_{module}" if module.startswith("keras") else module)
    return vars(loaded).get(name) if isinstance(loaded, ModuleType) else None


def _is_harmless_class(item: object) -> bool:
    return inspect.isclass(item) and (
        item in _COLUMNS
        or (issubclass(item, _KINDS) and item.__module__.startswith(_PACKAGES) and item not in _REFUSED)
    )


def _is_of_tensors(item: object) -> bool:
    if inspect.isfunction(item) and item.__module__ in FUNCTION_MODULES:
        return not item.__name__.startswith("_") and item.__name__ not in _LOOKUP_FUNCTIONS
    return item is regularizers.l1_l2 or is_function_of_tensors(item)


def _layers() -> dict[str, Any]:
    layers.populate_deserializable_objects()
    table: dict[str, Any] = layers.LOCAL.ALL_OBJECTS
    return table


def _tables() -> Iterator[dict[str, Any]]:
    """Keras' tables (name -> object) for names without a module."""
    yield _layers()
    initializers.populate_deserializable_objects()
    yield initializers.LOCAL.ALL_OBJECTS
    by_kind = (activation_layers, activations)
    yield {name: item for module in by_kind for name, item in vars(module).items() if callable(item)}
    for module in (losses, metrics, regularizers, constraints, learning_rate_schedule):
        yield vars(module)


@cache
def _known_classes() -> dict[str, list[Any]]:
    """Name without module -> the harmless classes that Keras may find by this name."""
    others = [Policy, tfmot.sparsity.keras.ConstantSparsity, tfmot.sparsity.keras.PolynomialDecay, *_COLUMNS]
    others += [cls for part in (keras.optimizers, keras.optimizers.legacy) for cls in vars(part).values()]
    others += [LossScaleOptimizer, LossScaleOptimizerV3]
    named = [(cls.__name__, cls) for cls in others if _is_harmless_class(cls)]
    # Keras looks up optimizers by lower-case names too.
    named += [(name.lower(), cls) for name, cls in named if issubclass(cls, _OPTIMIZERS)]
    named += [item for table in _tables() for item in table.items() if _is_harmless_class(item[1])]
    named += [("PolicyV1", Policy)]
    known: dict[str, list[Any]] = {}
    for name, cls in named:
        known.setdefault(name, []).append(cls)
    return known


@cache
def _harmful_names() -> frozenset[str]:
    members = (member for table in _tables() for member in table.items())
    return frozenset(name for name, item in members if not (_is_harmless_class(item) or _is_of_tensors(item)))
