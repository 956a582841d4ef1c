"""Targets by name, those that ship, or by file."""

from __future__ import annotations

from pathlib import Path

from tfmot_ops.contract import SHIPPED_TARGETS, Target, TargetRef
from tfmot_ops.errors import SpecError
from tfmot_ops.recipes.files import is_recipe_file, read_target

_PROFILES = Path(__file__).with_name("profiles")


def available_targets() -> dict[str, str]:
    """Name -> one-line description, of the targets that ship."""
    return {name: resolve_target(name).description for name in SHIPPED_TARGETS}


def resolve_target(target: TargetRef) -> Target:
    """The target itself, or the one of a name or of a .yaml or .json file.

    Raises:
        SpecError: no target that ships has this name, or the file cannot be read or is no valid target.
    """
    if isinstance(target, Target):
        return target
    if is_recipe_file(target):
        return read_target(target)
    if target not in SHIPPED_TARGETS:
        raise SpecError(
            "unknown target",
            required="one of " + ", ".join(SHIPPED_TARGETS) + ", or a .yaml or .json file",
            received=target,
            remedy="`tfmot-ops list targets` describes them",
        )
    return read_target(_PROFILES / f"{target}.yaml")
