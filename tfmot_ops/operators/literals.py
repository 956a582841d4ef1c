"""Checks of an operator's literal arguments when the DAG is parsed, so that wrong ones are refused before a run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tfmot_ops.contract import Artifact, Options
from tfmot_ops.contract.refusal import refusal
from tfmot_ops.contract.step_options import StepOptions
from tfmot_ops.errors import SpecError
from tfmot_ops.recipes.files import is_recipe_file
from tfmot_ops.recipes.names import decode
from tfmot_ops.targets.by_name import resolve_target

_ANY_KIND: TypeAdapter[StepOptions] = TypeAdapter(Options)
#: What a Jinja template holds.
_TEMPLATE_MARKS = ("{{", "{%", "{#")
#: Length of the location that pydantic gives to a finding on an option itself, (kind, name); others lie within one.
_NESTED = 2
_REMEDY = "correct the operator's arguments"

#: Options that may be the path of a file with the document.
_FILES = ("training", "policy")


def refuse_options(task_id: str, kind: str | None, options: object) -> None:
    """Refuse literal options that the step would refuse; templates and results of other tasks are passed over.

    Args:
        task_id: for the message.
        kind: of the step; None takes it from the options.
        options: the operator's argument.

    Raises:
        SpecError: a name is unknown, a value is not allowed, or a required option is missing.
        RecipeError: there is no recipe of this name.
    """
    if not isinstance(options, Mapping | None) or _is_open(options or {}, within=False):
        return
    given = {"kind": kind, **(options or {})}
    later = {name for name, value in given.items() if _is_open(value) or (name in _FILES and _is_file(value))}
    if "kind" in later or given["kind"] is None:
        return
    try:
        _ANY_KIND.validate_python({name: value for name, value in given.items() if name not in later})
    except ValidationError as error:
        # The first part of a location is the kind of the step.
        wrong = [
            {"type": item["type"], "loc": ("options", *item["loc"]), "input": item["input"], "ctx": item.get("ctx", {})}
            for item in error.errors(include_url=False)
            if item["type"] != "missing" or item["loc"][-1] not in later or len(item["loc"]) > _NESTED
        ]
        if wrong:
            found: Any = wrong
            raise refusal(f"task {task_id}", ValidationError.from_exception_data("options", found), _REMEDY) from error
    recipe = given.get("recipe")
    if isinstance(recipe, str) and "recipe" not in later and not _is_file(recipe):
        decode(recipe)
    target = given.get("target")
    if isinstance(target, str) and "target" not in later and not _is_file(target):
        resolve_target(target)


def refuse_inputs(task_id: str, kind: str | None, inputs: object) -> None:
    """Refuse inputs among which a required one is missing.

    Raises:
        SpecError: the step's kind needs an input that is not given.
    """
    required = _required(kind)
    if not isinstance(inputs, Mapping | None):
        return
    missing = [name for name in required if name not in (inputs or {})]
    if missing:
        raise SpecError(
            f"task {task_id}: inputs: {kind} needs an artifact that is not given",
            required=", ".join(required),
            received=", ".join(inputs or {}) or "no inputs",
            remedy="pass `inputs={'" + missing[0] + "': task.output}`, with the task that makes it",
        )


def _required(kind: str | None, base: type[StepOptions] = StepOptions) -> tuple[str, ...]:
    """Names of the inputs that a step of this kind needs."""
    for member in base.__subclasses__():
        if "kind" in member.model_fields and member.model_fields["kind"].default == kind:
            return member.requires
        if found := _required(kind, member):
            return found
    return ()


def _is_open(value: object, *, within: bool = True) -> bool:
    """Whether a value cannot be checked yet: it, or its type, is known only when the task renders its templates.

    Args:
        value: an argument of an operator.
        within: whether the members of a mapping or list count.
    """
    if isinstance(value, str):
        return any(mark in value for mark in _TEMPLATE_MARKS) or _may_become_another_type(value)
    if isinstance(value, Mapping):
        return within and any(_is_open(member) for member in value.values())
    if isinstance(value, list | tuple):
        return any(_is_open(member) for member in value)
    return not isinstance(value, int | float | None | StepOptions | Artifact) and not hasattr(value, "model_dump")


def _is_file(value: object) -> bool:
    """Whether a value is the path of a file that the worker reads."""
    return isinstance(value, str) and is_recipe_file(value)


def _may_become_another_type(text: str) -> bool:
    """Whether a DAG that renders native objects makes a number, None or a list of the text."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    return True
