"""The names and tags by which runs are told apart."""

from __future__ import annotations

from typing import Any

import pytest

from tfmot_ops.contract import OpenRunOptions, Recipe, StepSpec
from tfmot_ops.tracking.labels import label, run_name, tags_of

NAMES = {
    "built in": ("resnet8", "resnet8"),
    "application": ("application:MobileNetV2", "MobileNetV2"),
    "path": ("/models/own net.h5", "own net.h5"),
    "folder": ("images:/data/faces/", "faces"),
    "array file": ("npz:/data/faces.npz", "faces.npz"),
    "object store": ("npz:s3://bucket/faces.npz?token=abcdef", "faces.npz"),
    "secret": ("npz:https://user:word@host/faces.npz", "faces.npz"),
    "registered": ("models:/digits@candidate", "digits@candidate"),
    "of a run": ("runs:/0123456789abcdef/model.h5", "model.h5 of 01234567"),
}


@pytest.mark.parametrize(("name", "shown"), NAMES.values(), ids=NAMES.keys())
def test_a_model_or_data_set_has_a_short_name(name, shown):
    assert label(name) == shown


def test_a_run_is_named_by_model_data_and_recipe():
    def named(**options: Any) -> str:
        return run_name(StepSpec(step_id="open_run", output_uri="/tmp", options=OpenRunOptions(**options)))  # noqa: S108

    parameters = {"model": "resnet8", "dataset": "npz:/data/faces.npz", "recipe": "wi8_ai8"}
    assert named(parameters=parameters) == "resnet8 faces.npz wi8_ai8"
    own = Recipe(name="mine").model_dump(mode="json")
    assert named(parameters={**parameters, "recipe": own}) == "resnet8 faces.npz mine"
    assert named(parameters=parameters, name="http://u:secret@h/") == "http://***@h/"
    assert named() == "optimize"
    assert tags_of({"target": "cortex-m4", "task": None, "model": 3}) == {"tfmot_ops.target": "cortex-m4"}
