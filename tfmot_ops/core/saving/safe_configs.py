"""Checks a saved model's config (JSON) for anything but harmless layers, functions and values before loading it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf import json_format

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.private import IndexLookup, RNNCellWrapper, TensorFlowOpLayer, feature_column_v2, tf_op_layer
from tfmot_ops.core.keras.types import Config
from tfmot_ops.core.saving.safe_graphs import is_symbol_of_tensors, unsafe_operation
from tfmot_ops.core.saving.safe_names import classes_of, is_harmful_name, is_harmless_function, is_known_layer

#: Values of `class_name` by which Keras marks values that JSON has no type for, such as tuples.
_VALUES = {"CompositeTensor", "TensorShape", "__bytes__", "__ellipsis__", "__numpy__", "__tensor__", "__tuple__"}
_SPECS = {"BoundedTensorSpec", "RaggedTensorSpec", "SparseTensorSpec", "TensorSpec"}
#: Attributes of ragged and sparse tensors that Keras records as layers (`tf_keras/src/layers/core/tf_op_layer.py`).
_ATTRIBUTES = {
    *("values", "flat_values", "row_splits", "nested_row_splits", "indices", "dense_shape", "value_rowids"),
    *("nested_value_rowids", "nrows", "row_starts", "row_limits", "row_lengths", "nested_row_lengths"),
    *("bounding_shape", "with_values", "with_flat_values", "with_row_splits_dtype", "merge_dims", "to_tensor"),
    *("to_sparse",),
}
_RAGGED_METHODS = {
    *("from_value_rowids", "from_row_splits", "from_row_lengths", "from_row_starts", "from_row_limits"),
    *("from_uniform_row_length", "from_nested_value_rowids", "from_nested_row_splits", "from_nested_row_lengths"),
    *("from_tensor", "from_sparse"),
}
#: Keys whose string values name a class or function; only a key's last word counts: `kernel_initializer`.
_NAMING_KEYS = {"activation", "constraint", "fn", "initializer", "loss", "metrics", "regularizer"}
_REGISTERED = "registered_name"


class Finding(NamedTuple):
    """Something in a config that is not known to be harmless.

    Attributes:
        what: text for a message: `function tf.io.write_file`.
        where: path in the config: `config.layers[2] 'scores'.config.activation`.
    """

    what: str
    where: str


class _Part(NamedTuple):
    value: Any
    where: str
    #: Last word of the key that holds the part (`initializer`); items of a list have the list's key.
    key: str


def unsafe_names(config: object, *, restored_from_graph: bool = False) -> Iterator[Finding]:
    """Find everything in a model's config that is not known to be harmless.

    Harmless are: layers, initializers, losses, optimizers and similar classes of tf_keras, tfmot and this package;
    TensorFlow and tf_keras functions that only compute tensors; and classes and functions that this process has
    registered (`register_keras_serializable`, `custom_object_scope`, `get_custom_objects`), as they are its own code.

    Args:
        config: the config, as `json.loads` returns it.
        restored_from_graph: whether Keras restores a layer of an unknown class from the graph of a SavedModel, so that
            the layer's class name and own arguments are never used.

    Yields:
        The findings, in no particular order.
    """
    todo = [_Part(config, "", "layers")]
    while todo:
        part = todo.pop()
        if isinstance(part.value, dict):
            left = restored_from_graph and part.key == "layers" and _is_left_to_the_graph(part.value)
            unsafe = _unsafe_object(part.value) if "class_name" in part.value and not left else None
            if unsafe:
                yield Finding(unsafe, part.where)
            todo += _members(part, without_config=left and "layers" not in _config_of(part.value))
        elif isinstance(part.value, list):
            todo += _items(part)
        elif part.key in _NAMING_KEYS and isinstance(part.value, str) and is_harmful_name(part.value):
            yield Finding(f"{part.value!r}, which is no {part.key} of Keras", part.where)


def _members(part: _Part, *, without_config: bool) -> Iterator[_Part]:
    # In `loss: {"output": "mse"}` the dict's keys are output names, so its values are still losses.
    names_all = part.key in _NAMING_KEYS and "class_name" not in part.value
    for name, member in part.value.items():
        if name != "config" or not without_config:
            key = part.key if names_all else name.rpartition("_")[2]
            yield _Part(member, f"{part.where}.{name}" if part.where else name, key)


def _items(part: _Part) -> Iterator[_Part]:
    items = list(part.value)
    if len(items) > 1 and items[0] == "_COMPOSITE_TYPE":  # Keras stores such a constant as JSON text inside the JSON
        items[1] = json.loads(items[1])
    for index, item in enumerate(items):
        if not isinstance(item, dict | list) and not (isinstance(item, str) and part.key in _NAMING_KEYS):
            continue  # a number or a word: a vocabulary may have millions of them
        name = _config_of(item).get("name") if isinstance(item, dict) else None
        label = f" {name!r}" if isinstance(name, str) else ""
        yield _Part(item, f"{part.where}[{index}]{label}", part.key)


def _config_of(value: Config) -> dict[str, Any]:
    config = value.get("config")
    return config if isinstance(config, dict) else {}


def _is_left_to_the_graph(value: Config) -> bool:
    name = value.get("class_name")
    if not isinstance(name, str) or "module" in value:
        return False
    # For a Lambda layer, Keras' safe mode raises before the code is read; then Keras restores it from the graph.
    is_code = name == "Lambda" and _config_of(value).get("function_type") == "lambda"
    return is_code or not is_known_layer(name)


def _unsafe_object(value: Config) -> str | None:
    """A text that names a serialised object, if the object is not known to be harmless; otherwise None."""
    name, module = value["class_name"], value.get("module")
    if not isinstance(name, str) or not all(isinstance(value.get(key), str | None) for key in ("module", _REGISTERED)):
        return f"class {name!r} of module {module!r}"
    if name in _VALUES and module is None:
        return None
    return _NOT_CLASSES.get(name, _unsafe_instance)(value)


def _unsafe_instance(value: Config) -> str | None:
    name, module = value["class_name"], value.get("module")
    found = classes_of(name, module, value.get(_REGISTERED, name))
    if not found or not all(inspect.isclass(item) for item in found):
        return f"class {name}" + (f" of module {module}" if module else "")
    return next(filter(None, (_unsafe_use(item, _config_of(value)) for item in found)), None)


def _unsafe_spec(value: Config) -> str | None:
    name = value.get("spec_name") or str(value.get("type_spec")).removeprefix("tf.")
    module = str(value.get("module") or "tensorflow.")
    known = name in _SPECS and value.get(_REGISTERED) is None and module.startswith("tensorflow.")
    return None if known else f"type {name} of module {module}"


def _unsafe_function(value: Config) -> str | None:
    name, module = value.get("config"), value.get("module")
    # Parts of Keras look up the registered name instead of the function's name.
    if is_harmless_function(name, module) and not is_harmful_name(value.get(_REGISTERED)):
        return None
    return f"function {name!r} of module {module!r}"


def _unsafe_use(cls: type, config: Config) -> str | None:
    """What the class would do besides computing, given the arguments in its config; None if nothing."""
    if cls is keras.layers.Lambda:
        return "Python code (a Lambda layer)"
    for kind, check in _CHECKS:
        if issubclass(cls, kind):
            return check(config)
    return None


def _unsafe_symbol(config: Config) -> str | None:
    symbol = config.get("function")
    return None if is_symbol_of_tensors(symbol) else f"function tf.{symbol}"


def _unsafe_method(config: Config) -> str | None:
    owner, name = config.get("cls_symbol"), config.get("method_name")
    return None if owner == "RaggedTensor" and str(name) in _RAGGED_METHODS else f"method tf.{owner}.{name}"


def _unsafe_attribute(config: Config) -> str | None:
    name = str(config.get("attr_name"))
    return None if name in _ATTRIBUTES else f"attribute {name} of a tensor"


def _unsafe_node(config: Config) -> str | None:
    node = config.get("node_def")
    if not isinstance(node, dict):
        return "an operation that is not written as JSON"
    return unsafe_operation(json_format.ParseDict(node, tf.compat.v1.NodeDef()))


def _unsafe_vocabulary(config: Config) -> str | None:
    words = config.get("vocabulary")
    return f"vocabulary file {words!r}" if isinstance(words, str) else None


def _unsafe_wrapper(config: Config) -> str | None:
    brings = [key for key in ("dropout_fn", "residual_fn") if key in config]
    return f"Python code ({brings[0]} of a cell's wrapper)" if brings else None


def _unsafe_column(config: Config) -> str | None:
    path = config.get("ckpt_to_load_from")
    return None if path is None else f"checkpoint {path!r}"


#: Values of `class_name` that do not name a class -> their check.
_NOT_CLASSES = {
    "TypeSpec": _unsafe_spec,
    "__lambda__": lambda _: "Python code (a lambda)",
    "__typespec__": _unsafe_spec,
    "function": _unsafe_function,
}
#: Classes that are harmless only with some arguments, and the check of their config.
_CHECKS = (
    (tf_op_layer.TFOpLambda, _unsafe_symbol),
    (tf_op_layer.ClassMethod, _unsafe_method),
    (tf_op_layer.InstanceProperty, _unsafe_attribute),
    (TensorFlowOpLayer, _unsafe_node),
    ((IndexLookup, keras.layers.TextVectorization), _unsafe_vocabulary),
    (RNNCellWrapper, _unsafe_wrapper),
    (feature_column_v2.EmbeddingColumn, _unsafe_column),
)
