"""Decode a recipe name; the presets are names too.

A name is parts joined by `_`: `sparse50` (50 % zeros) or `sparse2of4`, `wi8` / `wi16f` (int8 or float16
weights), `ai8` / `ai16` / `afp32` (activations), `ptq` (no training), `aeq` (no training, and Google's AI Edge
Quantizer instead of the converter: `wi8_ai8_ptq_aeq`).
"""

from __future__ import annotations

import re
from typing import Any

from tfmot_ops.contract import PRESET_RECIPES, Activations, Backend, Method, Quantization, Recipe, Sparsity, Weights
from tfmot_ops.errors import RecipeError

_SPARSE = re.compile(r"sparse(\d{1,2})$")
_N_OF_M = re.compile(r"sparse(\d+)of(\d+)$")
_WEIGHTS = {"wi8": Weights.INT8, "wi16f": Weights.FLOAT16}
_ACTIVATIONS = {"ai8": Activations.INT8, "ai16": Activations.INT16, "afp32": Activations.FLOAT32}


def decode(name: str) -> Recipe:
    """Decode a recipe name.

    Raises:
        RecipeError: a part that means nothing, or parts that do not go together.
    """
    values: dict[str, Any] = {}
    for part in name.split("_"):
        key, value = _part(name, part)
        if key in values:
            raise _refuse(name, f"{part!r} says {key} a second time")
        values[key] = value
    sparsity = values.pop("sparsity", None)
    quantization = None
    if values:
        if "weights" not in values:
            raise _refuse(name, "activations without weights")
        trainable = (values["weights"], values.get("activations")) == (Weights.INT8, Activations.INT8)
        values.setdefault("activations", Activations.FLOAT32)
        values.setdefault("method", Method.QAT if trainable and "backend" not in values else Method.PTQ)
        quantization = Quantization(**values)
    return Recipe(name=name, sparsity=sparsity, quantization=quantization)


def presets() -> dict[str, Recipe]:
    """The recipes that ship, by name."""
    return {name: decode(name) for name in PRESET_RECIPES}


def resolve(recipe: Recipe | str) -> Recipe:
    """A recipe as it is, or the one its name says."""
    return recipe if isinstance(recipe, Recipe) else decode(recipe)


def _part(name: str, part: str) -> tuple[str, Any]:
    if part in _WEIGHTS:
        return "weights", _WEIGHTS[part]
    if part in _ACTIVATIONS:
        return "activations", _ACTIVATIONS[part]
    if part == "ptq":
        return "method", Method.PTQ
    if part == "aeq":
        return "backend", Backend.AI_EDGE_QUANTIZER
    if match := _SPARSE.match(part):
        percent = int(match[1])
        if percent:
            return "sparsity", Sparsity(ratio=percent / 100)
    if match := _N_OF_M.match(part):
        zeros, group = int(match[1]), int(match[2])
        if 0 < zeros < group:
            return "sparsity", Sparsity(ratio=zeros / group, n_of_m=(zeros, group))
    raise _refuse(name, f"{part!r}")


def _refuse(name: str, received: str) -> RecipeError:
    return RecipeError(
        f"recipe name {name!r} cannot be decoded",
        required="parts of: sparse<1-99> or sparse<n>of<m>, wi8 or wi16f, ai8, ai16 or afp32, ptq, aeq",
        received=received,
        remedy=f"take a preset ({', '.join(PRESET_RECIPES)}) or give a recipe file",
    )
