"""Reads files of Keras 3 into tf_keras, if the model is a graph of layers that compute the same in both.

Keras 3 is not loaded, and nothing that the file names is imported or called: classes and activations are looked up in
the tables below.
"""

from __future__ import annotations

import inspect
import io
import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Config
from tfmot_ops.core.saving.model_size import limited_variables
from tfmot_ops.core.saving.safe_files import check_weights
from tfmot_ops.errors import UnsupportedModelError

#: Layers that compute the same in both, with their weights in the same order.
_SAME_IN_BOTH = (
    *("Activation", "Add", "Average", "AveragePooling1D", "AveragePooling2D", "BatchNormalization", "Concatenate"),
    *("Conv1D", "Conv2D", "Conv2DTranspose", "Cropping2D", "Dense", "DepthwiseConv2D", "Dropout", "Embedding"),
    *("Flatten", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D"),
    *("LayerNormalization", "LeakyReLU", "MaxPooling1D", "MaxPooling2D", "Maximum", "Minimum", "Multiply", "PReLU"),
    *("Permute", "ReLU", "Rescaling", "Reshape", "SeparableConv2D", "Softmax", "SpatialDropout1D", "SpatialDropout2D"),
    *("Subtract", "UpSampling2D", "ZeroPadding1D", "ZeroPadding2D"),
)
#: Activations that are the same in both; `hard_sigmoid` is not.
_ACTIVATIONS = {name: name for name in ("linear", "relu", "relu6", "softmax", "sigmoid", "tanh", "elu", "selu", "gelu")}
_ACTIVATIONS |= {"silu": "swish", "swish": "swish", "softplus": "softplus"}
#: (class, argument in Keras 3) -> the argument's name in tf_keras.
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
#: Argument -> the argument without which it has no effect.
_ONLY_WITH = {"renorm_momentum": "renorm"}
#: The keyword argument that Keras 3 records for a call that follows the model's training mode.
_NO_TRAINING = ("training", False)


class _NoMatchError(Exception):
    """A part of the model for which tf_keras may have no equivalent that computes the same."""


def read_keras_three(path: Path) -> keras.Model | None:
    """The model in a file that Keras 3 saved, not compiled; None for any other file.

    Args:
        path: `.h5` or `.keras` file, or SavedModel folder, which TensorFlow writes alike under either Keras.

    Raises:
        UnsafeModelError: the file's weights are in other files.
        UnsupportedModelError: a part of the model may have no equivalent in tf_keras.
    """
    version = _version(path)
    if version.partition(".")[0] in {"", "0", "1", "2"}:
        return None
    try:
        model = _read(path)
    except (_NoMatchError, LookupError, ValueError, TypeError, OSError, RecursionError, zipfile.BadZipFile) as error:
        raise UnsupportedModelError(
            "the model file is one of Keras 3, and cannot be read into tf_keras",
            required="a file of tf_keras (Keras 2), or a functional or sequential model of layers that compute the "
            "same in both",
            received=f"{path}, saved by Keras {version}: {type(error).__name__.strip('_')}: {error}",
            remedy="build the model with tf_keras and save it from there: run the script that makes it with the "
            "environment variable TF_USE_LEGACY_KERAS=1 where it uses tensorflow.keras, or with `import tf_keras as "
            "keras` instead of `import keras`; a trained model's get_weights() go into the new one by set_weights()",
        ) from error
    warnings.warn(f"{path} is a file of Keras {version}: read into tf_keras, and not compiled", stacklevel=3)
    return model


def _version(path: Path) -> str:
    """The version of Keras that a file says it was saved by; empty if it does not say so."""
    try:
        if path.suffix == ".keras" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json"))["keras_version"])
        if path.is_file():
            with h5py.File(path, "r") as file:
                version = file.attrs.get("keras_version", "")
                return version.decode(errors="replace") if isinstance(version, bytes) else str(version)
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        pass
    return ""


def _read(path: Path) -> keras.Model:
    """Build the model from the file's config, and set the weights that the file has."""
    if path.suffix != ".keras":
        with h5py.File(path, "r") as file:
            with limited_variables(str(path), check_weights(path, path.name, file, path.stat().st_size)):
                model = _model_from_config(json.loads(file.attrs["model_config"]))
            for layer in model.layers:
                group = file["model_weights"][layer.name]
                layer.set_weights([np.asarray(group[name]) for name in group.attrs["weight_names"]])
        return model
    with zipfile.ZipFile(path) as archive:
        config, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    with h5py.File(io.BytesIO(weights), "r") as file:
        with limited_variables(str(path), check_weights(path, "model.weights.h5", file, len(weights))):
            model = _model_from_config(config)
        seen: Counter[str] = Counter()
        # Weights are stored under the classes' names in snake case, numbered in the order of the config.
        for item in config["config"]["layers"]:
            name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", item["class_name"])
            name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
            number = f"_{seen[name]}" if seen[name] else ""
            seen[name] += 1
            if item["class_name"] != "InputLayer":
                stored = file["layers"][f"{name}{number}"]["vars"]
                weights_of = [np.asarray(stored[str(index)]) for index in range(len(stored))]
                model.get_layer(item["config"]["name"]).set_weights(weights_of)
    return model


def _model_from_config(config: Config) -> keras.Model:
    """The model with new weights."""
    kind, inner = config["class_name"], config["config"]
    items = inner["layers"]
    if kind == "Sequential":
        return keras.Sequential([_layer(item) for item in items], name=inner["name"])
    if kind != "Functional":
        raise _NoMatchError(f"a model of class {kind}")
    layers = {item["config"]["name"]: _layer(item) for item in items if item["class_name"] != "InputLayer"}
    tensors = {(item["config"]["name"], 0, 0): _layer(item) for item in items if item["class_name"] == "InputLayer"}
    calls = [
        (item["config"]["name"], index, call) for item in items for index, call in enumerate(item["inbound_nodes"])
    ]
    while calls:
        # A layer that is called several times may come before layers that its later calls follow.
        ready = [call for call in calls if set(_tensor_keys(call[2]["args"])) <= tensors.keys()]
        if not ready:
            raise _NoMatchError(f"calls whose inputs no layer computes: {', '.join(name for name, *_ in calls)}")
        for name, index, call in ready:
            tensors[name, index, 0] = layers[name](_argument(name, call, tensors))
        calls = [call for call in calls if call not in ready]
    inputs, outputs = ([tensors[place] for place in _places(inner[name])] for name in ("input_layers", "output_layers"))
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=inner["name"])


def _argument(name: str, call: Mapping[str, Any], tensors: Mapping[Any, Any]) -> Any:
    # Keras 3 records `training=False` where the argument was not given, and then uses the model's training mode.
    extra = {key: value for key, value in call["kwargs"].items() if value is not None and (key, value) != _NO_TRAINING}
    if extra or len(call["args"]) != 1:
        raise _NoMatchError(f"layer {name} is called with more than one argument")
    found = [tensors[key] for key in _tensor_keys(call["args"])]
    return found if isinstance(call["args"][0], list) else found[0]


def _tensor_keys(argument: Any) -> Iterator[tuple[str, int, int]]:
    """Places of the tensors in an argument: (layer, index of its call, index of the result)."""
    if isinstance(argument, list):
        for member in argument:
            yield from _tensor_keys(member)
    elif isinstance(argument, dict) and argument.get("class_name") == "__keras_tensor__":
        name, call, result = argument["config"]["keras_history"]
        yield str(name), int(call), int(result)
    else:
        raise _NoMatchError(f"a call with {type(argument).__name__} instead of a tensor")


def _places(listed: Any) -> list[tuple[str, int, int]]:
    if not isinstance(listed, list):
        raise _NoMatchError("inputs or outputs by name")
    entries = [listed] if listed and isinstance(listed[0], str) else listed
    return [(str(name), int(call), int(result)) for name, call, result in entries]


def _layer(item: Config) -> Any:
    """A new layer, or the symbolic tensor of an input."""
    kind, config = item["class_name"], dict(item["config"])
    dtype = config.pop("dtype", "float32")
    dtype = dtype["config"]["name"] if isinstance(dtype, dict) else dtype
    if kind == "InputLayer":
        batch, *shape = config["batch_shape"]
        return keras.Input(tuple(shape), batch_size=batch, name=config["name"], dtype=str(dtype))
    if kind not in _SAME_IN_BOTH or dtype != "float32" or item.get("registered_name"):
        raise _NoMatchError(f"layer {config.get('name')} of class {kind} and type {dtype}")
    cls = getattr(keras.layers, kind)
    known = {"name", "trainable", *inspect.signature(cls.__init__).parameters} - {"self", "kwargs"}
    return cls(**dict(_arguments(kind, config, known)))


def _arguments(kind: str, config: Config, known: set[str]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = _RENAMED.get((kind, key), key)
        if key.endswith("_initializer"):
            continue  # the weights are set
        if key == "activation":
            yield name, _ACTIVATIONS[value]
        elif key.endswith("_regularizer") and value is not None:
            yield name, _regularizer(value)
        elif name in known and _is_plain(value):
            yield name, value
        elif value not in (None, False) and config.get(_ONLY_WITH.get(key, key)):
            raise _NoMatchError(f"layer {config['name']} of class {kind} with {key} {value!r:.100}")


def _regularizer(value: Config) -> Any:
    kind = value["class_name"]
    if kind not in {"L1", "L2", "L1L2"}:
        raise _NoMatchError(f"a regularizer of class {kind}")
    return getattr(keras.regularizers, kind)(**{name: float(each) for name, each in value["config"].items()})


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | None)
