"""Headline, the one metric by which the models of a task are compared."""

from __future__ import annotations

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

    def drop(self, reference: float, value: float) -> float:
        """How much worse `value` is than `reference`, in the metric's unit; negative where it is better."""
        return reference - value if self.higher_is_better else value - reference
