"""Results of steps that several chains of a search share: the same float model, the same pruned model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tfmot_ops.contract import Artifact, Recipe, Status, StepResult, StepSpec, TrainingOptions
from tfmot_ops.errors import ArtifactError
from tfmot_ops.recipes.names import resolve

#: Steps that depend on the recipe's sparsity and budget alone, not on how it quantises.
_BEFORE_QUANTIZE = frozenset({"train", "prune", "fine_tune", "strip"})


@dataclass
class SharedSteps:
    """Results by what the steps were given.

    Attributes:
        results: digest of a step's options, inputs and seed -> its result.
        on_change: called after a result was added.
    """

    results: dict[str, StepResult] = field(default_factory=dict)
    on_change: Callable[[], None] = lambda: None

    def find(self, spec: StepSpec) -> StepResult | None:
        """The result of a step that was given the same; None if it has to run."""
        digest = _digest(spec)
        return self.results.get(digest) if digest is not None else None

    def keep(self, spec: StepSpec, result: StepResult) -> None:
        """Keep the result of a step that ended well, if others may share it."""
        digest = _digest(spec)
        if digest is not None and result.status is Status.OK:
            self.results[digest] = result
            self.on_change()

    def forget_missing(self, fetch: Callable[[Artifact, Path], Path]) -> None:
        """Drop the results whose outputs are missing or damaged."""
        with tempfile.TemporaryDirectory() as folder:
            for digest, result in list(self.results.items()):
                try:
                    for name, artifact in result.outputs.items():
                        fetch(artifact, Path(folder) / digest / name)
                except ArtifactError:
                    del self.results[digest]


def _digest(spec: StepSpec) -> str | None:
    """Digest of all that decides a step's outputs; None for a step that is not shared."""
    options = spec.options
    if options.kind not in _BEFORE_QUANTIZE:
        return None
    given = options.model_dump(mode="json", exclude={"recipe", "training"})
    if options.named_recipe is not None:
        recipe: Recipe = resolve(options.named_recipe)
        budget = recipe.budget.model_dump(mode="json", include={"fine_tune_epochs", "fine_tune_learning_rate"})
        parts = [part and part.model_dump(mode="json") for part in (recipe.channels, recipe.sparsity)]
        given["recipe"] = [*parts, budget]
    if isinstance(options, TrainingOptions):
        # The step `train` has no teacher.
        plan = options.plan if options.learns_from_trained else options.plan.model_copy(update={"distillation": None})
        given["training"] = plan.model_dump(mode="json")
    inputs = {name: artifact.sha256 for name, artifact in spec.inputs.items()}
    return hashlib.sha256(json.dumps([given, inputs, spec.seed], sort_keys=True).encode()).hexdigest()
