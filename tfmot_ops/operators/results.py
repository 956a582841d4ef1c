"""The result of another task as an argument of an operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfmot_ops.contract import Artifact
from tfmot_ops.contract.refusal import quoted
from tfmot_ops.errors import SpecError


def artifact_of(name: str, value: Any) -> Any:
    """The output `name` of a step's result, or the value itself if it has the fields of an Artifact."""
    if isinstance(value, Artifact):
        return value
    if not isinstance(value, Mapping):
        raise SpecError(
            f"input {name}",
            required="the result of a step that succeeded, or the fields of an Artifact",
            received=quoted(value),
            remedy="pass `inputs={'" + name + "': task.output}`, with the task upstream of this one",
        )
    if "outputs" not in value:
        return value
    if name not in value["outputs"]:
        raise SpecError(
            f"input {name}",
            required=f"an output {name} of step {value.get('step_id')}",
            received=", ".join(value["outputs"]) or "no outputs",
            remedy="take the input from a step that makes it",
        )
    return value["outputs"][name]


def run_id_of(parent: Any) -> str | None:
    """The id of the MLflow run in a result, or the id itself."""
    if isinstance(parent, Mapping):
        parent = parent.get("tracking_run_id")
    return str(parent) if parent else None
