"""Models by name: built-ins, the constructors of tf_keras.applications, saved models, and registered ones.

Every model is an uncompiled float classifier that fits a data set: its input has the shape of the images, and its
output has one score per class.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from tfmot_ops.contract import BUILTIN_MODELS
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.keras.types import Model
from tfmot_ops.errors import SpecError, UnsupportedModelError
from tfmot_ops.models.applications import build_application
from tfmot_ops.models.builtin import BUILDERS, DESCRIPTIONS

ENTRY_POINT_GROUP = "tfmot_ops.models"
_FORM_DESCRIPTIONS = {
    "application:<Name>": "a constructor of tf_keras.applications, untrained, with a head for the data set",
    "<path>": "a saved model: .h5, .keras or a SavedModel folder",
}
_SAVED_SUFFIXES = (".h5", ".keras")


def build_model(name: str, input_shape: tuple[int, int, int], num_classes: int, seed: int) -> keras.Model:
    """Build a model by name, or load it, for images [N, H, W, C] in [0, 1].

    Args:
        name: a built-in (`resnet8`, `mobilenet_like`), `application:<Name>`, the path of a saved model (.h5, .keras
            or a SavedModel folder), or a name registered under the entry-point group `tfmot_ops.models`.
        input_shape: (H, W, C) of the images.
        num_classes: number of classes, at least 2.
        seed: decides the initial weights; seeds the process as `set_seed` does. A saved model keeps its weights.

    Returns:
        Model with outputs [N, num_classes], uncompiled except when it was loaded compiled.

    Raises:
        SpecError: the name is unknown, or the shape or the number of classes is invalid.
        UnsupportedModelError: a loaded, registered or application model does not fit the data set.
    """
    _check_measures(input_shape, num_classes)
    set_seed(seed)
    kind, _, rest = name.partition(":")
    if name in BUILDERS:
        return BUILDERS[name](input_shape, num_classes)
    if kind == "application":
        return build_application(rest, input_shape, num_classes)
    if comes_trained(name):
        return _load(name, input_shape, num_classes)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        model = entry.load()(input_shape, num_classes)
        _check_fit(name, model, input_shape, num_classes)
        return model
    raise SpecError(
        f"there is no model named {name!r}",
        required="one of " + ", ".join(available_models()),
        received=repr(name),
        remedy=f"use a name from the list, or register a callable under the entry-point group {ENTRY_POINT_GROUP}",
    )


def comes_trained(name: str) -> bool:
    """Whether a model's name is the path of a saved model, whose weights are loaded and not random.

    False for a built-in model or `application:<Name>`, even if there is a folder of that name.
    """
    if name in BUILDERS or name.startswith("application:"):
        return False
    return Path(name).suffix in _SAVED_SUFFIXES or Path(name).is_dir()


def available_models() -> dict[str, str]:
    """Name -> one-line description of all models: built-in, `application:<Name>`, saved, and registered."""
    registered = {entry.name: f"registered as {entry.value}" for entry in entry_points(group=ENTRY_POINT_GROUP)}
    # A built-in is found first, so a registered name cannot hide it.
    return {**registered, **{name: DESCRIPTIONS[name] for name in BUILTIN_MODELS}, **_FORM_DESCRIPTIONS}


def _check_measures(input_shape: tuple[int, int, int], num_classes: int) -> None:
    if len(input_shape) != 3 or min(input_shape) < 1 or num_classes < 2:  # noqa: PLR2004 - (H, W, C); two classes
        raise SpecError(
            "invalid input shape or number of classes",
            required="an input shape (H, W, C), each size at least 1, and at least 2 classes",
            received=f"input shape {tuple(input_shape)} and {num_classes} classes",
            remedy="check the shape of the data set's images and its labels",
        )


def _load(path: str, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    if not Path(path).exists():
        raise SpecError(
            f"{path} does not exist",
            required="a saved model: .h5, .keras or a SavedModel folder",
            received=f"no file or folder {path}",
            remedy="check the path",
        )
    from tfmot_ops.core.saving.files import load_model

    model = load_model(path, allow_unsafe=False)
    _check_fit(path, model, input_shape, num_classes)
    return model


def _check_fit(name: str, model: Model, input_shape: tuple[int, int, int], num_classes: int) -> None:
    inputs, outputs = getattr(model, "inputs", None) or [], getattr(model, "outputs", None) or []
    fits = (
        isinstance(model, keras.Model)
        and len(inputs) == len(outputs) == 1
        and len(inputs[0].shape) == 1 + len(input_shape)
        and all(size in (None, there) for size, there in zip(inputs[0].shape[1:], input_shape, strict=True))
        and tuple(outputs[0].shape[1:]) == (num_classes,)
    )
    if not fits:
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (inputs, outputs)]
        raise UnsupportedModelError(
            f"model {name} does not fit the data set",
            required=f"a tf_keras model with one input (None, {', '.join(map(str, input_shape))}) and one output "
            f"(None, {num_classes})",
            received=f"{type(model).__name__} with inputs {shapes[0]} and outputs {shapes[1]}",
            remedy="use the data set it was made for, or change its first or last layer",
        )
