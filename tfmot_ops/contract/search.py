"""What a search looks for (goals), what it tries (candidates), and what it found of them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tfmot_ops.contract.document import Artifact, Document, later
from tfmot_ops.contract.headline import Headline
from tfmot_ops.contract.recipe import Recipe
from tfmot_ops.contract.target import Bytes


class Goals(Document):
    """What the file has to be; None sets no goal.

    Attributes:
        max_drop: how much worse than the float model the headline metric may be: points of a share such as accuracy
            (1.0 for one point), else in the metric's unit.
        min_metric: worst value of the headline metric: a share in [0, 1], else in the metric's unit. For a metric of
            which less is better, the largest value.
        max_flash: most bytes on the device: the TFLite file, or the file that Vela makes of it.
        max_ram: most bytes of memory for activations on the device.
        max_gzip: most bytes of the gzipped TFLite file, as an app downloads it.
        max_latency_ratio: longest inference with one thread, as a ratio to the float32 TFLite file's on this machine.
        max_latency: longest inference on the device in milliseconds: Vela's estimate, or measured on this machine.
        min_npu_share: least share of operations on the NPU, in [0, 1].
    """

    max_drop: float | None = None
    min_metric: float | None = None
    max_flash: Bytes | None = None
    max_ram: Bytes | None = None
    max_gzip: Bytes | None = None
    max_latency_ratio: float | None = Field(default=None, gt=0.0)
    max_latency: float | None = Field(default=None, gt=0.0)
    min_npu_share: float | None = Field(default=None, ge=0.0, le=1.0)


class Candidate(Document):
    """One recipe that the search may try.

    Attributes:
        name: of the recipe.
        recipe: what to do.
        tries: what is different about it, for people.
        zeros: percent of zeros in pruned kernels; 0 without pruning.
        removed: percent of the multiplications that went with removed filters; 0 where no filter is removed.
        wide: whether layers or activations have more than 8 bits.
    """

    name: str
    recipe: Recipe
    tries: str
    zeros: int = 0
    removed: int = later(0)
    wide: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether the model has all its filters and no zeros: its int8 file costs the same, however it is made."""
        return not self.zeros and not self.removed


class Found(Document):
    """One candidate that was tried.

    Attributes:
        candidate: what was tried.
        metrics: of its file; empty where its chain failed.
        headline: the task's metric.
        seconds: wall time of the steps that ran for it.
        error: why its chain failed; empty where it did not.
        tflite: the copy of its file in the output folder of the command; None in a DAG, or where its chain failed.
        file: its file in the artifact store; None where its chain failed.
        run_id: its MLflow run; None without tracking.
    """

    candidate: Candidate
    metrics: dict[str, float]
    headline: Headline
    seconds: float
    error: str = ""
    tflite: Path | None = None
    file: Artifact | None = later()
    run_id: str | None = None
