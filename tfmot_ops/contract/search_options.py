"""The options of the steps of a search in a DAG: try a candidate, and choose among those that were tried."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tfmot_ops.contract.document import later
from tfmot_ops.contract.result import StepResult
from tfmot_ops.contract.search import Found, Goals
from tfmot_ops.contract.step_options import RecipeRef, Recorded, StepOptions, TrainingOptions
from tfmot_ops.contract.target import TargetRef


class CandidateOptions(TrainingOptions):
    """Try one candidate of a search: prune, fine-tune, strip, quantise and evaluate a float model that is trained.

    The step is a whole chain. It has an MLflow run for each of these steps, below a run of the chain, so that a retry
    continues after the last step that ended well.

    Attributes:
        model: name, path or URI of the model that the step `train` was given.
        recipe: of the candidate.
        trained: result of the step `train`, which all candidates share.
        shared: results of steps that an earlier candidate ran, by the digest of what they were given; the chain takes
            over those whose digest is that of its own step.
        target: the device that the file is for.
        fine_tune_epochs: None takes the recipe's budget.
        qat_epochs: None takes the recipe's budget.
    """

    makes = ("tflite",)
    is_a_chain = True

    kind: Literal["candidate"] = "candidate"
    model: str = Field(min_length=1)
    recipe: RecipeRef
    trained: StepResult
    shared: dict[str, StepResult] = Field(default_factory=dict)
    target: TargetRef | None = later()
    fine_tune_epochs: int | None = Field(default=None, ge=0, description="None takes the recipe's budget")
    qat_epochs: int | None = Field(default=None, ge=0, description="None takes the recipe's budget")


class ChooseOptions(StepOptions):
    """Choose the candidate that meets the goals; outputs are the search's page, picture and table, and the chosen file.

    Attributes:
        name: of the search.
        target: name of the device, for the title of the page.
        goals: what the file has to be.
        found: the candidates that were tried, in the order in which they are judged.
        left_out: name of a candidate that the search cannot try -> why.
        everything: whether the search went on after the first candidate that meets the goals; then the smallest one
            that meets them is chosen.
    """

    makes = ("page", "picture", "table", "tflite")
    recorded = Recorded.SUMMARY

    kind: Literal["choose"] = "choose"
    name: str = "search"
    target: str
    goals: Goals
    found: tuple[Found, ...] = ()
    left_out: dict[str, str] = Field(default_factory=dict)
    everything: bool = later(False)
