"""What a run is called and its tags, so that runs are told apart and found without being opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pydantic import JsonValue

from tfmot_ops.contract import OpenRunOptions, Recipe, StepSpec
from tfmot_ops.system.uri_secrets import address, hide

if TYPE_CHECKING:
    import mlflow

MODEL = "tfmot_ops.model"
DATASET = "tfmot_ops.dataset"
TASK = "tfmot_ops.task"
RECIPE = "tfmot_ops.recipe"
DEVICE = "tfmot_ops.device"
TARGET = "tfmot_ops.target"
#: Tag -> the parameter that it shows; these tags of the parent run are given to the runs of its steps too.
_SHOWN = {MODEL: "model", DATASET: "dataset", TASK: "task", RECIPE: "recipe", TARGET: "target"}
_NAMED_BY = (MODEL, DATASET, RECIPE)
_NO_NAME = "optimize"
_LONGEST_LABEL = 80
#: Number of digits of a run's id that tell it from others.
_SHORT_ID = 8


def label(name: str) -> str:
    """A short name for a model or a data set: a path or URI without its folder and scheme, with no secret.

    `npz:/data/faces.npz` becomes `faces.npz`, `application:MobileNetV2` becomes `MobileNetV2`. A model of MLflow keeps
    what tells it apart: `models:/digits/3` becomes `digits/3`, `runs:/0123456789ab/model.h5` `model.h5 of 01234567`.
    """
    text = hide(name)
    if text.startswith("models:/"):
        text = text.removeprefix("models:/")
    elif text.startswith("runs:/"):
        run, _, path = text.removeprefix("runs:/").partition("/")
        text = f"{PurePosixPath(path).name or 'model'} of {run[:_SHORT_ID]}"
    else:
        text = PurePosixPath(address(text) if "://" in text else text).name
        text = text.rpartition(":")[2] or text
    return text[:_LONGEST_LABEL]


def tags_of(parameters: Mapping[str, JsonValue]) -> dict[str, str]:
    """The tags that say what a run with these parameters works on; a recipe is shown by its name."""
    tags = {}
    for tag, name in _SHOWN.items():
        value = parameters.get(name)
        if isinstance(value, Mapping):
            value = value.get("name")
        if isinstance(value, str) and value:
            tags[tag] = label(value)
    return tags


def run_name(spec: StepSpec) -> str:
    """The name of a step's run.

    The name of a step; for a parent run the name in its options, or else model, data set and recipe:
    `resnet8 digits sparse50_wi8_ai8`.
    """
    if not isinstance(spec.options, OpenRunOptions):
        return hide(spec.step_id)
    if spec.options.name:
        return hide(spec.options.name)
    return named_by(tags_of(spec.options.parameters)) or _NO_NAME


def named_by(tags: Mapping[str, str]) -> str:
    """Model, data set and recipe in one name; empty where the tags have none of them."""
    return " ".join(tags[tag] for tag in _NAMED_BY if tag in tags)


def spec_tags(client: mlflow.MlflowClient, spec: StepSpec) -> dict[str, str]:
    """The tags of a step's run: what its options say, and for the rest what its parent run says.

    Raises:
        MlflowException: the parent run cannot be read.
    """
    options, parent = spec.options, spec.tracking.parent_run_id if spec.tracking else None
    known = client.get_run(parent).data.tags if parent else {}
    tags = {tag: known[tag] for tag in _SHOWN if tag in known}
    if isinstance(options, OpenRunOptions):
        tags |= tags_of(options.parameters)
    else:
        recipe = options.named_recipe
        given = {name: getattr(options, name, None) for name in ("dataset", "task")}
        given |= {"model": options.named_model, "recipe": recipe.name if isinstance(recipe, Recipe) else recipe}
        tags |= tags_of(given)
    if options.computes_with_a_model or isinstance(options, OpenRunOptions):
        tags[DEVICE] = spec.device.value
    return tags
