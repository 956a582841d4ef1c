"""The reference of the files that a user writes, from their pydantic classes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tfmot_ops.contract import Policy, Recipe, Target, TrainingPlan
from tools.site.markdown import code, entries, prose, sentence, table

#: JSON Schema's word for a limit -> how the table says it.
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "pattern": "of the form `{}`",
}


#: Class -> the page that describes it, for classes with a page of their own.
_PAGES = {"TrainingPlan": "training-plan.md", "Target": "target.md"}


def recipe() -> str:
    """The fields of a recipe file, without those of documents with a page of their own."""
    return _document(Recipe, leave_out={TrainingPlan, Target})


def training_plan() -> str:
    """The fields of a training plan."""
    return _document(TrainingPlan)


def policy() -> str:
    """The fields of a policy, the rules of a release."""
    return _document(Policy)


def target() -> str:
    """The fields of a target."""
    return _document(Target)


def _document(root: type[BaseModel], leave_out: Collection[type] = ()) -> str:
    return "\n".join(_section(model) for model in _models(root, set(leave_out)))


def _models(model: type[BaseModel], seen: set[type]) -> Iterator[type[BaseModel]]:
    """A model and those in its fields, each once."""
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        for inner in _classes(field.annotation):
            if issubclass(inner, BaseModel):
                yield from _models(inner, seen)


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def _section(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    meanings = entries(model)
    rows = []
    for name, field in model.model_fields.items():
        if name == "schema_version":
            continue
        node = schema["properties"][name]
        words = [sentence(meanings.get(name) or field.description or _of_class(field)), *_choices(field.annotation)]
        rows.append([code(name), _type(node, schema), _default(field), " ".join(filter(None, words))])
    return "\n".join(
        [f"## {model.__name__}\n", prose(model) + "\n", table(("field", "type", "default", "meaning"), rows)]
    )


def _of_class(field: Any) -> str:
    """What the field's own class says of itself, in its first line; nothing for a number or a text."""
    documents = [kind for kind in _classes(field.annotation) if issubclass(kind, BaseModel)]
    return prose(documents[0]).partition("\n")[0] if documents else ""


def _default(field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return ""
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, Enum):
        default = default.value
    return code(json.dumps(default)) if default or isinstance(default, int | float) else ""


def _choices(annotation: Any) -> Iterator[str]:
    for kind in _classes(annotation):
        if issubclass(kind, Enum):
            yield "One of " + ", ".join(code(each.value) for each in kind) + "."


def _type(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """Type and limits of a field, from its JSON Schema."""
    if "$ref" in node:
        return _named_type(node["$ref"].rpartition("/")[2], schema)
    if "anyOf" in node:
        return " or ".join(_type(each, schema) for each in node["anyOf"] if each.get("type") != "null")
    if "allOf" in node:
        return _type(node["allOf"][0], schema)
    return _plain_type(node, schema) + "".join(
        f", {words.format(node[limit])}" for limit, words in _LIMITS.items() if limit in node
    )


def _named_type(name: str, schema: dict[str, Any]) -> str:
    definition = schema["$defs"].get(name, {})
    if not definition:  # pydantic's JsonValue
        return "any value"
    if "enum" in definition:
        return "text"
    on_a_page_of_its_own = name in _PAGES and name != schema["title"]
    return f"[{name}]({_PAGES[name] if on_a_page_of_its_own else '#' + name.lower()})"


def _plain_type(node: dict[str, Any], schema: dict[str, Any]) -> str:
    kind = node.get("type", "any value")
    if kind == "array":
        inner = node.get("prefixItems") or [node.get("items", {})]
        return "list of " + ", ".join(dict.fromkeys(_type(each, schema) for each in inner if each) or ["values"])
    if kind == "object":
        values = node.get("additionalProperties")
        return "mapping" + (f" to {_type(values, schema)}" if isinstance(values, dict) and values else "")
    return {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false"}.get(kind, kind)
