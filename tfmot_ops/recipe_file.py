"""Recipes in files: one form for the CLI, the DAG and the container."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from pydantic import ValidationError

from tfmot_ops.contract import Recipe
from tfmot_ops.errors import RecipeError
from tfmot_ops.refusal import refusal

#: File name endings that mean "a recipe file" rather than the name of a preset.
RECIPE_SUFFIXES = (".yaml", ".yml", ".json")


def is_recipe_file(text: str | Path) -> bool:
    """Whether the text is the path of a recipe file, and not a recipe's name."""
    return Path(text).suffix.lower() in RECIPE_SUFFIXES


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML or JSON file.

    Raises:
        RecipeError: the file is missing, is no YAML or JSON, or is no recipe; the message names the field.
    """
    path = Path(path)
    if not is_recipe_file(path):
        raise RecipeError(
            f"recipe file {path}",
            required=f"a name ending in {', '.join(RECIPE_SUFFIXES)}",
            received=path.name,
            remedy="rename the file; a recipe's name is given without an ending",
        )
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise RecipeError(
            f"recipe file {path} cannot be read",
            required="a readable file",
            received=error.strerror or type(error).__name__,
            remedy="a relative path starts at the folder the process runs in; give an absolute one",
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise RecipeError(
            f"recipe file {path} cannot be parsed",
            required="YAML or JSON",
            received=str(error),
            remedy="correct the place that the parser names; YAML indents with spaces only",
        ) from error
    if not isinstance(document, dict):
        raise RecipeError(
            f"recipe file {path}",
            required="a mapping with the fields of a recipe",
            received=type(document).__name__,
            remedy="start with `name: ...`; `tfmot-ops schema recipe` prints the whole form",
        )
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        remedy = "`tfmot-ops schema recipe` prints the whole form"
        raise refusal(f"recipe file {path}", error, remedy, RecipeError) from error
