"""The result of another task as an argument of an operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfmot_ops.contract import Artifact, mapped_step
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


def mapping_of(task_id: str, field: str, value: Any) -> Mapping[str, Any]:
    """The value of an operator's argument, as names with values; a template may have rendered to anything.

    Raises:
        SpecError: the value is no mapping.
    """
    if value is None or value == "":
        return {}
    if not isinstance(value, Mapping):
        raise SpecError(
            f"task {task_id}: field {field}",
            required="names with values: a dict, or a template that renders to one",
            received=quoted(value),
            remedy="correct the operator's arguments or the run's parameters; a template gives a dict only in a DAG "
            "with render_template_as_native_obj=True",
        )
    return value


def results_by_step(task_id: str, steps: Any) -> dict[str, Any]:
    """Step name -> its result, or anything else where it has none; each result of a mapped task has its own name.

    Args:
        task_id: for the message of a refusal.
        steps: step name -> result, or the results of a mapped task in the order of their map indices.

    Raises:
        SpecError: the steps are no mapping.
    """
    found: dict[str, Any] = {}
    for name, value in mapping_of(task_id, "steps", steps).items():
        if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value):
            found |= {mapped_step(name, index): result for index, result in enumerate(value)}
        else:
            found[name] = value
    return found


def run_id_of(parent: Any) -> str | None:
    """The id of the MLflow run in a result, or the id itself."""
    if isinstance(parent, Mapping):
        parent = parent.get("tracking_run_id")
    return str(parent) if parent else None


def flat(results: Any) -> Iterable[Mapping[str, Any]]:
    """The mappings in nested lists, without the None of skipped and failed tasks."""
    if isinstance(results, Mapping):
        yield results
    elif isinstance(results, Iterable) and not isinstance(results, str):
        for each in results:
            yield from flat(each)
