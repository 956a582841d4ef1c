"""SweepResult: the results of a sweep of the compat matrix, and their comparison with the expected results."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from tfmot_ops.contract.document import SCHEMA_VERSION, Document, FileName, PathBelow
from tfmot_ops.contract.result import CompatResult, Status


class Judgement(Document):
    """The cells whose result differs from the expected result: cell (`MobileNet/wi8_ai8`) -> how it differs.

    Attributes:
        regressions: cells that fail although they passed before or are expected to pass.
        improvements: cells that pass although they are expected to fail.
        new: cells without an expected result, and cells that fail at a later stage than expected.
        missing: requested cells without a result; a missing cell counts as failed.
    """

    regressions: dict[str, str] = Field(default_factory=dict)
    improvements: dict[str, str] = Field(default_factory=dict)
    new: dict[str, str] = Field(default_factory=dict)
    missing: dict[str, str] = Field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether there is no regression and no missing cell."""
        return not (self.regressions or self.missing)


class SweepResult(Document):
    """One sweep.

    Attributes:
        sweep_id: id of the sweep, also in its file names; ids sort by time.
        started_at: in UTC.
        duration_s: wall time in seconds.
        cells: results of the requested cells; a cell without a result is in `judgement.missing`.
        repros: cell -> path of the script that reproduces its failure, relative to the page.
        run_url: URL of the sweep's MLflow run; empty without tracking.
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
        """Number of cells that passed every stage."""
        return sum(cell.status is Status.OK for cell in self.cells)
