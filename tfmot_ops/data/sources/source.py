"""The data class that every source returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Source:
    """Unscaled images and labels of a source; without a test set, `x_test` and `y_test` are None."""

    x: Any
    y: Any
    x_test: Any = None
    y_test: Any = None
    class_names: tuple[str, ...] = ()
