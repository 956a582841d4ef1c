"""Reads recipes, training plans, policies and targets from YAML and JSON files, for the CLI and the DAGs.

The user who triggers a DAG run gives the file's path but may not be allowed to read the file. So no message quotes the
file's content.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from tfmot_ops.contract import Document, Policy, Recipe, Target, TrainingPlan
from tfmot_ops.contract.refusal import kind_of, refusal
from tfmot_ops.errors import RecipeError
from tfmot_ops.system import files

_Document = TypeVar("_Document", bound=Document)

#: File name endings that mean "a recipe file" rather than the name of a preset.
RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
#: Remedy for a document of another form.
_FORM = "`tfmot-ops schema {}` prints the whole form"
#: Largest recipe file, in bytes. YAML is parsed at about 250 kB a second.
_MOST_BYTES = 128 * 1024
#: Largest nesting depth of a YAML recipe, and largest number of references to anchors: ten lines of nested references
#: can expand to billions of values.
_DEEPEST, _MOST_ALIASES = 32, 16
#: Longest whole number, in bits.
_MOST_BITS = 64


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits on nesting and references: a small file cannot become a large document."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Called by PyYAML for each value, from within the value that holds it."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._aliases += isinstance(event, yaml.AliasEvent)
        self._depth += 1
        if self._depth > _DEEPEST or self._aliases > _MOST_ALIASES:
            raise yaml.MarkedYAMLError(problem="too deep", problem_mark=event.start_mark)  # type: ignore[arg-type] # of pure Python here
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Called by PyYAML for each mapping; if a name is given twice, PyYAML would drop the first value."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for name in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (name.tag, name.value) in seen:
                raise yaml.MarkedYAMLError(problem="given twice", problem_mark=name.start_mark)
            seen.add((name.tag, name.value))
        return node

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """Called by PyYAML for each whole number; hexadecimal ones could have any length."""
        return _limited(super().construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def _limited(number: int) -> int:
    """A whole number of at most 64 bits.

    Raises:
        ValueError: it is longer; Python could not even print one of 4300 digits.
    """
    if number.bit_length() > _MOST_BITS:
        raise ValueError("a number that is too long")
    return number


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of a JSON object.

    Raises:
        ValueError: a name is given twice, and Python would drop the first value.
    """
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name that is given twice")
    return dict(pairs)


def is_recipe_file(text: str | Path) -> bool:
    """Whether the text is the path of a recipe file, and not a recipe's name."""
    return Path(text).suffix.lower() in RECIPE_SUFFIXES


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML or JSON file.

    Raises:
        RecipeError: the file is missing, is not YAML or JSON, or is not a valid recipe; the message names the field
            and the type of its value, but not the value.
    """
    return _validated(Path(path), read_mapping(Path(path), "recipe", _FORM.format("recipe")), Recipe, "recipe")


def read_training(path: str | Path) -> TrainingPlan | None:
    """Read a training plan from a YAML or JSON file, or the plan in a recipe file.

    A recipe has a name, and a plan has none.

    Returns:
        The plan; None for a recipe without one.

    Raises:
        RecipeError: as for `read_recipe`.
    """
    document = read_mapping(Path(path), "training plan", _FORM.format("training"))
    if "name" in document:
        return _validated(Path(path), document, Recipe, "recipe").training
    return _validated(Path(path), document, TrainingPlan, "training")


def read_policy(path: str | Path) -> Policy:
    """Read the rules for a registration from a YAML or JSON file.

    Raises:
        RecipeError: as for `read_recipe`.
    """
    return _validated(Path(path), read_mapping(Path(path), "policy", _FORM.format("policy")), Policy, "policy")


def read_target(path: str | Path) -> Target:
    """Read a target from a YAML or JSON file.

    Raises:
        RecipeError: as for `read_recipe`.
    """
    return _validated(Path(path), read_mapping(Path(path), "target", _FORM.format("target")), Target, "target")


def read_mapping(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The content of a YAML or JSON file whose outermost value is a mapping.

    Args:
        path: of the file.
        what: name of such a file in messages: `recipe`.
        remedy: what to do where the file holds something else.

    Raises:
        RecipeError: the file cannot be read or parsed, is too large or too deep, or is no mapping.
    """
    if not is_recipe_file(path):
        raise RecipeError(
            f"{what} file {path}",
            required=f"a name ending in {', '.join(RECIPE_SUFFIXES)}",
            received=path.name,
            remedy="rename the file; a recipe's name is given without an ending",
        )
    document = _parse(path, _read(path, what), what)
    if not isinstance(document, dict):
        raise RecipeError(
            f"{what} file {path}",
            required=f"a mapping with the fields of a {what}",
            received=kind_of(document),
            remedy=remedy,
        )
    return document


def _validated(path: Path, document: dict[str, Any], kind: type[_Document], schema: str) -> _Document:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        # From None, as Airflow logs causes too, and this one holds the values.
        raise refusal(f"{schema} file {path}", error, _FORM.format(schema), RecipeError, fields=_fields(kind)) from None


def _read(path: Path, what: str) -> bytes:
    try:
        return files.read_limited(path, _MOST_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        received = getattr(error, "strerror", None) or type(error).__name__
    raise RecipeError(
        f"{what} file {path} cannot be read",
        required=f"a readable file of at most {_MOST_BYTES // 1024} kB",
        received=received,
        remedy="a relative path starts at the folder the process runs in; give an absolute one",
    )


def _parse(path: Path, content: bytes, what: str) -> Any:
    try:
        text = content.decode("utf-8")
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_without_twice, parse_int=lambda digits: _limited(int(digits)))
        return yaml.load(text, _Loader)  # noqa: S506 - it is safe
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        place = _place(error)
    # Raised outside the exception handler: the parser's message quotes the file, and would be logged as the context.
    raise RecipeError(
        f"{what} file {path} cannot be parsed",
        required=f"YAML or JSON in which no mapping has a name twice, nested at most {_DEEPEST} deep, with at most "
        f"{_MOST_ALIASES} references to anchors",
        received=f"something else at {place}",
        remedy="correct that place; YAML indents with spaces only",
    )


def _place(error: Exception) -> str:
    """Position of a parser's error, without the content at that position."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start}, which is not UTF-8"
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position}"
    if isinstance(error, RecursionError):
        return "a value that is nested too deep"
    return "a value: a number that is too long, or a name that is given twice in one mapping"


@cache
def _fields(kind: type[Document]) -> frozenset[str]:
    """Names of the fields of a document and of its parts."""
    schema = kind.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    return frozenset(name for part in parts for name in part.get("properties", ()))
