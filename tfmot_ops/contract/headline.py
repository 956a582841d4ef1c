"""Headline, the one metric by which the models of a task are compared, and how its values are written for people."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from tfmot_ops.contract.document import Document


class Headline(Document):
    """The metric by which the models of a task are compared.

    Attributes:
        name: key of the metric in a result's `metrics` (`accuracy`, `rmse`).
        higher_is_better: direction of the metric.
        is_share: whether the metric is in [0, 1] and shown in percent; otherwise it has the unit of the targets.
    """

    name: str = Field(min_length=1)
    higher_is_better: bool = True
    is_share: bool = True

    @property
    def words(self) -> str:
        """The name for people: `mean iou`."""
        return self.name.replace("_", " ")

    def drop(self, reference: float, value: float) -> float:
        """How much worse `value` is than `reference`, in the metric's unit; negative where it is better."""
        return reference - value if self.higher_is_better else value - reference

    def text(self, value: float) -> str:
        """A value for people: a share in percent, any other value with four digits."""
        return f"{value:.1%}" if self.is_share else f"{value:.4g}"

    def size_text(self, difference: float) -> str:
        """The size of a difference between two values: of shares in points, of other values in their unit."""
        return f"{100.0 * abs(difference):.1f} points" if self.is_share else f"{abs(difference):.3g}"


#: The headline of results that name none: they were written when classification was the only task.
ACCURACY: Final = Headline(name="accuracy")
