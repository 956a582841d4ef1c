"""The data class that every source returns, and the row by which a source is found."""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True)
class Reader:
    """How a source is read. Each module of this package that has a `READER` is a source; no other list names it.

    Attributes:
        form: what a user writes: a name (`digits`), or a name with what follows its colon (`npz:<path>`).
        description: one line on it.
        read: from the text after the colon, empty for a name alone, to the samples.
    """

    form: str
    description: str
    read: Callable[[str], Source]

    @property
    def name(self) -> str:
        """The part before the colon."""
        return self.form.partition(":")[0]

    @property
    def takes_text(self) -> bool:
        """Whether a text follows the name, after a colon."""
        return ":" in self.form
