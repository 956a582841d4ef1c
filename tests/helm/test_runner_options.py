"""`runner.options` in the schema of the values: the runners' own arguments, each by its type."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pydantic import TypeAdapter
from rendering import CHART, deployed_runner

from tfmot_ops.runners import DockerRunner, KubernetesRunner, LocalRunner

RUNNERS = {"kubernetes": KubernetesRunner, "docker": DockerRunner, "local": LocalRunner}
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
#: JSON's name of the type of a value of an enumeration.
TYPES = {str: "string", type(None): "null"}

each_runner = pytest.mark.parametrize(("name", "runner"), RUNNERS.items(), ids=RUNNERS)


def test_each_runner_is_in_the_schema():
    assert SCHEMA["properties"]["runner"]["properties"]["name"]["enum"] == [*RUNNERS]


@each_runner
def test_the_schema_lists_the_arguments(name, runner):
    listed = SCHEMA["definitions"][f"{name}Runner"]["properties"]
    assert list(listed) == [field.name for field in dataclasses.fields(runner)]
    # Read as `choose_runner` reads them.
    taken = TypeAdapter(runner).json_schema()
    for argument, schema in taken["properties"].items():
        assert _types(listed[argument], SCHEMA) == _types(schema, taken), argument


@each_runner
def test_the_schema_takes_the_defaults(name, runner):
    defaults = TypeAdapter(runner).dump_python(runner(), mode="json")
    deployed, _ = deployed_runner({"runner": {"name": name, "options": defaults}})
    assert isinstance(deployed, runner)


def _types(schema, document):
    """JSON's names of the types that a schema takes."""
    if "$ref" in schema:
        target = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return _types(target, document)
    if "anyOf" in schema:
        return set().union(*(_types(each, document) for each in schema["anyOf"]))
    if "enum" in schema:
        return {TYPES[type(value)] for value in schema["enum"]}
    return {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
