"""SweepResult: what a sweep of the compat matrix found, and how it compares with what was expected."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from tfmot_ops.contract.document import SCHEMA_VERSION, Document, FileName, PathBelow
from tfmot_ops.contract.result import CompatResult, Status


class Judgement(Document):
    """Cells (`MobileNet/wi8_ai8`) that are not as expected, each with a sentence that says how.

    Attributes:
        regressions: passed before, or should, and do not.
        improvements: should fail, and pass.
        new: of which nothing was expected.
        missing: asked for, and without a result: they count as failed.
    """

    regressions: dict[str, str] = Field(default_factory=dict)
    improvements: dict[str, str] = Field(default_factory=dict)
    new: dict[str, str] = Field(default_factory=dict)
    missing: dict[str, str] = Field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether nothing got worse."""
        return not (self.regressions or self.missing)


class SweepResult(Document):
    """One sweep.

    Attributes:
        sweep_id: names it and its files; sorts by time.
        started_at: in UTC.
        duration_s: wall time.
        cells: one for each cell that was asked for and has a result.
        repros: cell -> path of the script that shows its failure, relative to the page.
        run_url: address of its MLflow run, empty without.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    sweep_id: FileName
    started_at: AwareDatetime
    duration_s: float = Field(ge=0.0)
    cells: tuple[CompatResult, ...]
    judgement: Judgement = Judgement()
    versions: dict[str, str] = Field(default_factory=dict)
    repros: dict[str, PathBelow] = Field(default_factory=dict)
    run_url: str = ""

    @property
    def passed(self) -> int:
        """How many cells passed every stage."""
        return sum(cell.status is Status.OK for cell in self.cells)
