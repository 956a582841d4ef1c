"""Applies a recipe's scope to the layers of a model."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from tfmot_ops.contract import Scope
from tfmot_ops.errors import ScopeError


def select(scope: Scope, layers: Iterable[tuple[str, str]]) -> dict[str, bool | None]:
    """Apply a scope to layers given as (path, class name).

    Returns:
        path -> True (named by `include`), False (excluded, or not in a given `include`), None (an empty
        `include` leaves it to the default).

    Raises:
        ScopeError: a selector matches no layer.
    """
    layers = list(layers)
    for selector in (*scope.include, *scope.exclude):
        if not any(_matches(selector, path, name) for path, name in layers):
            raise ScopeError(
                f"scope selector {selector!r} matches no layer",
                required="a layer path, a glob on it, or class:<Name>",
                received=f"{selector!r} for a model with {', '.join(path for path, _ in layers[:8])}"
                + (f" and {len(layers) - 8} more" if len(layers) > 8 else ""),  # noqa: PLR2004 - a readable line
                remedy="correct the selector in the recipe's scope or in training.frozen",
            )
    return {path: _decide(scope, path, name) for path, name in layers}


def _decide(scope: Scope, path: str, name: str) -> bool | None:
    if any(_matches(selector, path, name) for selector in scope.exclude):
        return False
    if not scope.include:
        return None
    return any(_matches(selector, path, name) for selector in scope.include)


def _matches(selector: str, path: str, class_name: str) -> bool:
    if selector.startswith("class:"):
        return fnmatchcase(class_name, selector.removeprefix("class:"))
    return fnmatchcase(path, selector) or fnmatchcase(path.rsplit("/", 1)[-1], selector)
