"""Installed versions: of the packages that decide numeric results, and of those that results name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

#: Packages whose versions decide numbers; of `tensorflow` and `tensorflow-cpu`, which a CPU image has, one is there.
DECIDING = (
    "tensorflow",
    "tensorflow-cpu",
    "tf-keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "litert-quantizer",
    "numpy",
)
#: Packages whose versions a result names: besides the deciding ones, this package itself and the one that records.
RECORDED = ("tfmot-ops", *DECIDING, "mlflow")


def installed(packages: Iterable[str] = RECORDED) -> dict[str, str]:
    """Name -> version of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version(package: str) -> str:
    """Version of a package that has to be there; `tensorflow` is also found as the `tensorflow-cpu` of a CPU image.

    Raises:
        PackageNotFoundError: the package is not installed.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return metadata.version(f"{package}-cpu")
