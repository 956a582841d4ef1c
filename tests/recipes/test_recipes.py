"""Names of recipes: what a form takes is what can be decoded."""

from __future__ import annotations

import re

import pytest

from tfmot_ops import recipes
from tfmot_ops.contract import PRESET_RECIPES
from tfmot_ops.errors import RecipeError
from tfmot_ops.recipes import RECIPE_NAME


@pytest.mark.parametrize(
    "name",
    [*PRESET_RECIPES, "sparse70_wi8_ai8", "wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "sparse2of4", "wi16f", "wi8_ai16"],
)
def test_a_name_that_decodes_passes_a_form(name) -> None:
    assert recipes.decode(name).name == name
    assert re.fullmatch(RECIPE_NAME, name)


@pytest.mark.parametrize(
    "name", ["", "no_such_recipe", "sparse0_wi8_ai8", "sparse100_wi8", "wi8-ai8", "wi8__ai8", "WI8"]
)
def test_a_name_that_means_nothing_passes_neither(name) -> None:
    with pytest.raises(RecipeError):
        recipes.decode(name)
    assert not re.fullmatch(RECIPE_NAME, name)
