"""The digest of everything that decides a cell's result: a cell whose digest is unchanged is not run again."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from tfmot_ops.contract import Recipe
from tfmot_ops.models.applications import application_constructors
from tfmot_ops.models.architectures import Architecture
from tfmot_ops.models.by_name import ENTRY_POINT_GROUP
from tfmot_ops.system.environment import hides_all_gpus
from tfmot_ops.system.versions import DECIDING, installed


@cache
def core_sha256() -> str:
    """Digest of this package's source files that decide a cell's result: core, recipes, contract, errors, check."""
    package = Path(__file__).parents[2]
    folders = (
        path for name in ("contract", "core", "models", "recipes", "tasks") for path in (package / name).rglob("*.py")
    )
    return _digest(package, [*folders, package / "errors.py", package / "sweep" / "run" / "check.py"])


def _digest(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def inputs_sha256(architecture: Architecture, recipe: Recipe, seed: int) -> str:
    """Digest of the architecture's code, the recipe, the versions, this package's core, the device and the seed."""
    document = {
        "architecture": architecture.name,
        "code": _code(architecture),
        "recipe": recipe.model_dump(mode="json"),
        "python": list(sys.version_info[:2]),
        "packages": installed(DECIDING),
        "core": core_sha256(),
        "device": _device(),
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _code(architecture: Architecture) -> list[str]:
    """Texts that identify the code of an architecture; a registered model is not imported, as that may fail."""
    if architecture.name.partition("@")[0] in application_constructors():
        module = inspect.getmodule(architecture.constructor)
        file = getattr(module, "__file__", None)
        return [hashlib.sha256(Path(file).read_bytes()).hexdigest()] if file else []
    entries = entry_points(group=ENTRY_POINT_GROUP, name=architecture.name)
    return [part for entry in entries for part in (entry.value, _distribution(entry), _package_sha256(entry))]


def _distribution(entry: EntryPoint) -> str:
    return "" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _package_sha256(entry: EntryPoint) -> str:
    """Digest of all Python files of a package: an editable install changes without a new version."""
    try:
        # Only the top-level package's spec can be found without importing code of the package.
        spec = find_spec(entry.module.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""  # the cell fails and reports what is missing
    if spec.submodule_search_locations is None:
        file = Path(spec.origin or "")
        return _digest(file.parent, [file]) if file.is_file() else ""
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    return " ".join(_digest(folder, folder.rglob("*.py")) for folder in folders)


def _device() -> list[str]:
    """The processor's type and the visible GPUs, as floating-point rounding depends on them.

    TensorFlow is not used to list GPUs, as it prints errors on stderr on a machine without a GPU.
    """
    gpus = [] if hides_all_gpus() else sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return [platform.machine(), *gpus]
