"""The data class that every source returns, and the row by which a source is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from tfmot_ops.data.columns import Array, Column

#: One column, or one per input or output of the model, by name. All columns have the same number of samples.
Samples = Column | Mapping[str, Column]


@dataclass(frozen=True, eq=False)
class Source:
    """The samples of a source, neither scaled nor split.

    Attributes:
        x: inputs [N, ...].
        y: targets [N, ...]; None where the input itself is the target (reconstruction).
        x_test: inputs of the test set; None without one.
        y_test: targets of the test set; for reconstruction 0 (normal) or 1 (anomaly) for each sample, or None.
        class_names: name of each class, by label; empty where there are none.
        task: name of the task that the targets are for; None where their type and shape decide.
        record: what the source did to the samples (such as the parameters of an audio front end), for the result.
        weights: factor of the loss of each sample of `x`, [N]; None is 1 for each.
        fingerprint: sha256 (hex) of the files that the source reads, for a source that is not read as a whole;
            None where the arrays themselves are digested.
    """

    x: Samples
    y: Samples | None
    x_test: Samples | None = None
    y_test: Samples | None = None
    class_names: tuple[str, ...] = ()
    task: str | None = None
    record: Mapping[str, JsonValue] = field(default_factory=dict)
    fingerprint: str | None = None
    weights: Array | None = None


@dataclass(frozen=True)
class Reader:
    """How a source is read. Each module of this package that has a `READER` is a source; no other list names it.

    Attributes:
        form: what a user writes: a name (`digits`), or a name with what follows its colon (`npz:<path>`).
        description: one line on it.
        read: from the text after the colon to the samples; for a name alone, from its options with their question
            mark, or from nothing.
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
