"""What decides a cell's result, as one digest: a cell with the same digest need not run again."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tfmot_ops.contract import Recipe
from tfmot_ops.core.catalog import Architecture

#: Packages whose versions a result depends on.
_PACKAGES = ("tensorflow", "tensorflow-cpu", "tf-keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")


@cache
def core_sha256() -> str:
    """Digest of the sources of our core and contract."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder in ("contract", "core"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def inputs_sha256(architecture: Architecture, recipe: Recipe, seed: int) -> str:
    """Digest of the architecture's code, the recipe, the versions, our own core and the seed."""
    document = {
        "architecture": architecture.name,
        "code": _source_sha256(architecture),
        "recipe": recipe.model_dump(mode="json"),
        "python": list(sys.version_info[:2]),
        "packages": {name: _version(name) for name in _PACKAGES},
        "core": core_sha256(),
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _source_sha256(architecture: Architecture) -> str:
    module = inspect.getmodule(architecture.constructor)
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
