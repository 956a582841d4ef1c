"""Recipes: decoded from names, read from files, and the scopes in them. Needs no TensorFlow."""

from tfmot_ops.contract import Recipe
from tfmot_ops.recipes.files import is_recipe_file, read_policy, read_recipe, read_training
from tfmot_ops.recipes.names import RECIPE_NAME, decode, presets, resolve

__all__ = [
    "RECIPE_NAME",
    "Recipe",
    "decode",
    "is_recipe_file",
    "presets",
    "read_policy",
    "read_recipe",
    "read_training",
    "resolve",
]
