"""Decodes recipe names; a preset is defined by its name.

A name is parts joined by `_`: `macs50` (filters are removed until 50 % of the multiplications are left), `sparse50`
(50 % zeros) or `sparse2of4`, `wi8` / `wi16f` (int8 or float16 weights), `ai8` / `ai16` / `afp32` (activations),
`keep10` (the most sensitive layers stay in float, with at most 10 % of the weights), `ptq` (no training), `aeq` (no
training, and Google's AI Edge Quantizer instead of the converter: `wi8_ai8_ptq_aeq`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from tfmot_ops.contract import (
    PRESET_RECIPES,
    Activations,
    Backend,
    Channels,
    Keep,
    Method,
    Quantization,
    Recipe,
    Sparsity,
    Weights,
)
from tfmot_ops.errors import RecipeError

#: Pattern of a part -> (what it sets, function from the pattern's groups to the value).
_PARTS: dict[str, tuple[str, Callable[..., Any]]] = {
    r"sparse([1-9][0-9]?)": ("sparsity", lambda percent: Sparsity(ratio=int(percent) / 100)),
    r"sparse([1-9][0-9]*)of([1-9][0-9]*)": ("sparsity", lambda zeros, group: _n_of_m(int(zeros), int(group))),
    r"macs([1-9][0-9]?)": ("channels", lambda percent: Channels(macs=int(percent) / 100)),
    "wi8": ("weights", lambda: Weights.INT8),
    "wi16f": ("weights", lambda: Weights.FLOAT16),
    "ai8": ("activations", lambda: Activations.INT8),
    "ai16": ("activations", lambda: Activations.INT16),
    "afp32": ("activations", lambda: Activations.FLOAT32),
    r"keep([1-9][0-9]?)": ("keep", lambda percent: Keep(budget=int(percent) / 100)),
    "ptq": ("method", lambda: Method.PTQ),
    "aeq": ("backend", lambda: Backend.AI_EDGE_QUANTIZER),
}
_ANY_PART = f"({'|'.join(_PARTS)})"
#: Regular expression (JSON Schema) of recipe names, for forms that check a name before a step runs.
RECIPE_NAME = f"^{_ANY_PART}(_{_ANY_PART})*$"


def decode(name: str) -> Recipe:
    """Decode a recipe name.

    Raises:
        RecipeError: a part of the name is unknown, or parts contradict each other.
    """
    values: dict[str, Any] = {}
    for part in name.split("_"):
        key, value = _part(name, part)
        if key in values:
            raise _refuse(name, f"{part!r} says {key} a second time")
        values[key] = value
    sparsity, channels = values.pop("sparsity", None), values.pop("channels", None)
    quantization = None
    if values:
        if "weights" not in values:
            raise _refuse(name, "activations without weights")
        trainable = (values["weights"], values.get("activations")) == (Weights.INT8, Activations.INT8)
        values.setdefault("activations", Activations.FLOAT32)
        values.setdefault("method", Method.QAT if trainable and "backend" not in values else Method.PTQ)
        try:
            quantization = Quantization(**values)
        except ValidationError as error:
            raise _refuse(name, error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return Recipe(name=name, sparsity=sparsity, quantization=quantization, channels=channels)


def presets() -> dict[str, Recipe]:
    """Name -> recipe, for the built-in recipes."""
    return {name: decode(name) for name in PRESET_RECIPES}


def resolve(recipe: Recipe | str) -> Recipe:
    """The recipe itself, or the recipe decoded from a name."""
    return recipe if isinstance(recipe, Recipe) else decode(recipe)


def _part(name: str, part: str) -> tuple[str, Any]:
    for pattern, (key, value) in _PARTS.items():
        match = re.fullmatch(pattern, part)
        if match:
            found = value(*match.groups())
            if found is not None:
                return key, found
    raise _refuse(name, f"{part!r}")


def _n_of_m(zeros: int, group: int) -> Sparsity | None:
    return Sparsity(ratio=zeros / group, n_of_m=(zeros, group)) if zeros < group else None


def _refuse(name: str, received: str) -> RecipeError:
    return RecipeError(
        f"recipe name {name!r} cannot be decoded",
        required="parts of: macs<1-99>, sparse<1-99> or sparse<n>of<m>, wi8 or wi16f, ai8, ai16 or afp32, keep<1-99>, "
        "ptq, aeq",
        received=received,
        remedy=f"take a preset ({', '.join(PRESET_RECIPES)}) or give a recipe file",
    )
