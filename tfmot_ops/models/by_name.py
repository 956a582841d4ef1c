"""Models by name: built-ins, the constructors of tf_keras.applications, saved models, and registered ones.

Every model is a float model that fits a data set and a task: its inputs have the shapes of the samples, and its
outputs are those that the task trains and measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.keras.types import Model
from tfmot_ops.errors import SpecError, UnsupportedModelError
from tfmot_ops.models.applications import build_application
from tfmot_ops.models.builtin import BUILT_IN, BuiltIn, Head
from tfmot_ops.system.memory import machine_bytes
from tfmot_ops.tasks.classification import Classification
from tfmot_ops.tasks.task import Facts, Task

ENTRY_POINT_GROUP = "tfmot_ops.models"
_FORM_DESCRIPTIONS = {
    "application:<Name>": "a constructor of tf_keras.applications, untrained, with the task's head, for images",
    "<path>": "a saved model: .h5, .keras or a SavedModel folder",
}
_SAVED_SUFFIXES = (".h5", ".keras")
#: Share of the memory that the output of a layer for one sample may take.
_SHARE_OF_MEMORY = 0.25


def build_model(name: str, input_shape: tuple[int, int, int], num_classes: int, seed: int) -> keras.Model:
    """Build a classifier by name, or load it, for images [N, H, W, C]; see `build`."""
    return build(name, Classification(), Facts(input_shape, (), num_classes), seed)


def build(name: str, task: Task, facts: Facts, seed: int) -> keras.Model:
    """Build a model by name, or load it, for a task and a data set.

    Args:
        name: a built-in (`resnet8`), `application:<Name>`, the path of a saved model (.h5, .keras or a SavedModel
            folder), or a name registered under the entry-point group `tfmot_ops.models`: a callable that takes
            (shape of an input, number of outputs), as in `facts`.
        task: what the targets mean; it gives the head of a model without one.
        facts: shapes and number of outputs of the data set.
        seed: decides the initial weights; seeds the process as `set_seed` does. A saved model keeps its weights.

    Returns:
        Model with the inputs of the data set and the outputs of the task; compiled only when it was loaded compiled.

    Raises:
        SpecError: the name is unknown, or the shape or the number of outputs is invalid.
        UnsupportedModelError: a loaded, registered or application model does not fit the data set.
    """
    _check_measures(task, facts)
    set_seed(seed)
    kind, _, rest = name.partition(":")
    if name in BUILT_IN:
        return _built_in(name, task, facts)
    if kind == "application":
        return build_application(rest, _image_shape(name, facts), _head(task, facts))
    if comes_trained(name):
        return _load(name, task, facts)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        model = entry.load()(facts.input_shape, facts.outputs)
        _check_fit(name, model, task, facts)
        return model
    raise SpecError(
        f"there is no model named {name!r}",
        required="one of " + ", ".join(available_models()),
        received=repr(name),
        remedy=f"use a name from the list, or register a callable under the entry-point group {ENTRY_POINT_GROUP}",
    )


def _head(task: Task, facts: Facts) -> Head:
    return lambda features: task.head(features, facts.outputs or 0)


def _built_in(name: str, task: Task, facts: Facts) -> keras.Model:
    """A built-in model, if it is made for samples of this shape and for this task."""
    row, shape = BUILT_IN[name], facts.input_shape
    if isinstance(shape, Mapping) or (row.axes is not None and len(shape) != len(row.axes)):
        fitting = [one for one, other in BUILT_IN.items() if not isinstance(shape, Mapping) and _takes(other, shape)]
        raise SpecError(
            f"the model {name} is not made for these samples",
            required=f"samples of shape ({', '.join(row.axes or ())})",
            received=f"samples of shape {_shape_text(shape)}",
            remedy=f"use one of {', '.join(fitting)}, or a model of your own" if fitting else "use a model of your own",
        )
    model = row.build(tuple(shape), _head(task, facts))
    if row.reconstructs != task.learns_its_input or not task.fits(_output_shapes(model), facts):
        raise SpecError(
            f"the model {name} is not made for the task {task.name}",
            required=f"an output {task.output_shape(facts)}",
            received=f"the output {_shape_text((None, *model.outputs[0].shape[1:]))}",
            remedy="use a model whose description names the task (tfmot-ops list models), or a model of your own",
        )
    return model


def _takes(row: BuiltIn, shape: tuple[int, ...]) -> bool:
    return row.axes is None or len(row.axes) == len(shape)


def _image_shape(name: str, facts: Facts) -> tuple[int, ...]:
    shape = facts.input_shape
    if isinstance(shape, Mapping) or len(shape) != 3:  # noqa: PLR2004 - (H, W, C)
        raise SpecError(
            f"{name} takes images",
            required="samples of shape (H, W, C)",
            received=f"samples of shape {_shape_text(shape)}",
            remedy="use another model, or add the channel axis to the images",
        )
    return shape


def comes_trained(name: str) -> bool:
    """Whether a model's name is the path of a saved model, whose weights are loaded and not random.

    False for a built-in model or `application:<Name>`, even if there is a folder of that name.
    """
    if name in BUILT_IN or name.startswith("application:"):
        return False
    return Path(name).suffix in _SAVED_SUFFIXES or Path(name).is_dir()


def available_models() -> dict[str, str]:
    """Name -> one-line description of all models: built-in, `application:<Name>`, saved, and registered."""
    registered = {entry.name: f"registered as {entry.value}" for entry in entry_points(group=ENTRY_POINT_GROUP)}
    # A built-in is found first, so a registered name cannot hide it.
    return {**registered, **{name: row.description for name, row in BUILT_IN.items()}, **_FORM_DESCRIPTIONS}


def _check_measures(task: Task, facts: Facts) -> None:
    """Refuse sizes of 0 and fewer than two classes."""
    shapes = facts.input_shape.values() if isinstance(facts.input_shape, Mapping) else [facts.input_shape]
    if any(not shape or min(shape) < 1 for shape in shapes) or (facts.outputs or 0) < task.fewest_outputs:
        raise SpecError(
            "invalid input shape or number of classes",
            required="an input shape, each size at least 1, and at least 2 classes",
            received=f"input shape {_shape_text(facts.input_shape)} and {facts.outputs} classes",
            remedy="check the shape of the data set's samples and its labels",
        )


def _load(path: str, task: Task, facts: Facts) -> keras.Model:
    if not Path(path).exists():
        raise SpecError(
            f"{path} does not exist",
            required="a saved model: .h5, .keras or a SavedModel folder",
            received=f"no file or folder {path}",
            remedy="check the path",
        )
    from tfmot_ops.core.saving.files import load_model

    model = load_model(path, allow_unsafe=False)
    _check_fit(path, model, task, facts)
    return model


def _check_fit(name: str, model: Model, task: Task, facts: Facts) -> None:
    """Refuse a model whose inputs are not the data set's, or whose outputs are not the task's."""
    if isinstance(model, keras.Model) and _takes_inputs(model, facts) and task.fits(_output_shapes(model), facts):
        _check_memory(name, model)
        return
    shape = facts.input_shape
    inputs = (
        f"inputs {_shape_text(shape)}" if isinstance(shape, Mapping) else f"one input {_shape_text((None, *shape))}"
    )
    raise UnsupportedModelError(
        f"model {name} does not fit the data set",
        required=f"for the task {task.name}, a tf_keras model with {inputs} and one output {task.output_shape(facts)}",
        received=f"{type(model).__name__} with inputs {_tensors(model, 'input')} "
        f"and outputs {_tensors(model, 'output')}",
        remedy="use the data set it was made for, name another task, or change its first or last layer",
    )


def _check_memory(name: str, model: keras.Model) -> None:
    """Refuse a model with a layer whose output for a single sample takes a large part of this machine's memory."""
    shapes = {layer.name: _sizes(layer) for layer in model.layers}
    layer, size = max(shapes.items(), key=lambda item: item[1], default=("", 0))
    most = int(machine_bytes() * _SHARE_OF_MEMORY)
    if size > most:
        raise UnsupportedModelError(
            f"model {name} has a layer whose output is too large",
            required=f"at most {most:,} bytes for one sample, a quarter of this machine's memory",
            received=f"{size:,} bytes for one sample of layer {layer}",
            remedy="make that layer smaller, or use a machine with more memory",
        )


def _sizes(layer: Any) -> int:
    """Bytes of the largest output of a layer for one sample, as float32; an unknown size counts as 1."""
    shapes = [tensor.shape[1:] for node in layer.inbound_nodes for tensor in tf.nest.flatten(node.outputs)]
    return max((4 * math.prod(size or 1 for size in shape) for shape in shapes), default=0)


def _takes_inputs(model: keras.Model, facts: Facts) -> bool:
    tensors = model.inputs or []
    if not isinstance(facts.input_shape, Mapping):
        return len(tensors) == 1 and _same(tensors[0].shape[1:], facts.input_shape)
    if set(model.input_names or ()) != set(facts.input_shape):
        return False
    return all(_same(t.shape[1:], facts.input_shape[n]) for n, t in zip(model.input_names, tensors, strict=True))


def _same(own: Any, given: tuple[int, ...]) -> bool:
    """Whether a sample of the shape `given` fits an input whose unknown sizes are None."""
    if tuple(own) == (1,) and not given:  # Keras adds the axis to numbers [N]
        return True
    return len(own) == len(given) and all(size in (None, there) for size, there in zip(own, given, strict=True))


def _output_shapes(model: keras.Model) -> list[tuple[int | None, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in model.outputs or ()]


def _tensors(model: Any, kind: str) -> str:
    """Names and shapes of a model's inputs or outputs."""
    tensors = getattr(model, f"{kind}s", None) or []
    names = getattr(model, f"{kind}_names", None) or [""] * len(tensors)
    shown = [_shape_text(tensor.shape) for tensor in tensors]
    if len(shown) > 1:
        shown = [f"{name} {shape}" for name, shape in zip(names, shown, strict=True)]
    return f"[{', '.join(shown)}]"


def _shape_text(shape: Any) -> str:
    if isinstance(shape, Mapping):
        return ", ".join(f"{name} {_shape_text((None, *one))}" for name, one in shape.items())
    return str(tuple(shape))
