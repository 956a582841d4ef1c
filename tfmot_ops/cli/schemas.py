"""The documents of which `tfmot-ops schema` prints the form."""

from __future__ import annotations

from typing import Literal

from tfmot_ops.contract import (
    Artifact,
    CompatResult,
    Document,
    LayerReport,
    Policy,
    Recipe,
    StepResult,
    StepSpec,
    SweepResult,
    Target,
    TrainingPlan,
)

#: Names that `tfmot-ops schema` takes.
DocumentName = Literal[
    "spec", "result", "recipe", "artifact", "layer", "compat", "sweep", "training", "policy", "target"
]
#: Name -> class of the document.
SCHEMAS: dict[DocumentName, type[Document]] = {
    "spec": StepSpec,
    "result": StepResult,
    "recipe": Recipe,
    "artifact": Artifact,
    "layer": LayerReport,
    "compat": CompatResult,
    "sweep": SweepResult,
    "training": TrainingPlan,
    "policy": Policy,
    "target": Target,
}
