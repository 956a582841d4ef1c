"""The chain of `tfmot-ops optimize`: the same steps as the DAG's, one after the other in this process."""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import Artifact, ArtifactFormat, Recipe, Status, StepResult, StepSpec, Tracking
from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import files

#: Steps between opening and closing the parent run -> step that each input comes from, with `:<output>` where the
#: output has another name.
CHAIN: dict[str, dict[str, str]] = {
    "train": {},
    "prune": {"model": "train"},
    "fine_tune": {"model": "prune"},
    "strip": {"model": "fine_tune"},
    "quantize": {"model": "strip"},
    "evaluate": {"tflite": "quantize", "model": "strip", "quantized": "quantize:model"},
}

#: Stands for the output of a step that has not run yet, so that the specs after it can be checked.
_TO_COME = Artifact(uri="to-come", sha256="0" * 64, size_bytes=0, format=ArtifactFormat.KERAS_H5)


@dataclass
class Chain:
    """What to do, and what came of it.

    Attributes:
        model: name, path or MLflow URI.
        dataset: name.
        recipe: a recipe, or the name of one.
        output: folder for the TFLite file, and for all artifacts when nothing is tracked.
        tracking_uri: MLflow; None records nothing.
        experiment: MLflow experiment.
        epochs: step name -> epochs; a step that is not named takes the recipe's budget.
        data: further options of every step: `batch_size`, `limit`.
        seed: of every step.
        results: of the steps that ran, in order.
    """

    model: str
    dataset: str
    recipe: Recipe | str
    output: Path
    tracking_uri: str | None
    experiment: str = "tfmot_ops"
    epochs: dict[str, int] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    results: list[StepResult] = field(default_factory=list)
    _run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _parent: str | None = None

    def run(self, say: Callable[[str], None]) -> StepResult:
        """Run all steps; the parent run is closed whatever happens.

        Returns:
            The result of the last step that ran: `evaluate`, or the one that failed.

        Raises:
            SpecError: a name or an option is wrong; nothing was written.
        """
        self._check()
        files.check_writable(self.output)
        opened = self._step("open_run", self._opening(), say)
        if opened.status is Status.FAILED:
            return opened
        self._parent = opened.tracking_run_id
        last = opened
        try:
            for name in CHAIN:
                last = self._step(name, self._options(name), say)
                self.results.append(last)
                if last.status is Status.FAILED:
                    break
        finally:
            self._close(say)
        return last

    def save_tflite(self) -> Path:
        """Copy the TFLite file of the chain to the output folder, verified.

        Raises:
            StepFailedError: no step made one.
            ArtifactError: it cannot be read.
        """
        artifact = next((r.outputs["tflite"] for r in self.results if "tflite" in r.outputs), None)
        if artifact is None:
            raise StepFailedError(
                "the chain made no TFLite file",
                required="a quantize step that ended well",
                received=", ".join(f"{r.step_id} {r.status}" for r in self.results) or "no steps",
                remedy="call run() first, and see in its last result what failed",
            )
        name = self.recipe if isinstance(self.recipe, str) else self.recipe.name
        target = self.output / (re.sub(r"[^\w.-]+", "_", f"{self.model}-{self.dataset}-{name}") + ".tflite")
        with tempfile.TemporaryDirectory() as folder:
            files.copy(self._fetch(artifact, Path(folder)), target)
        return target.resolve()

    def _fetch(self, artifact: Artifact, folder: Path) -> Path:
        from tfmot_ops import store

        if self.tracking_uri is None:
            return store.fetch(artifact, folder)
        from tfmot_ops.tracking import fetch_artifact

        return fetch_artifact(artifact, folder, self.tracking_uri)

    def _check(self) -> None:
        """Refuse what can never succeed before the first step: otherwise its MLflow run would be left behind."""
        from tfmot_ops import steps

        steps.check(self._spec("open_run", self._opening()))
        for name, sources in CHAIN.items():
            steps.check(self._spec(name, self._options(name), dict.fromkeys(sources, _TO_COME)))

    def _opening(self) -> dict[str, Any]:
        return {"name": f"optimize {self.model}", "parameters": self._parameters()}

    def _parameters(self) -> dict[str, Any]:
        recipe = self.recipe if isinstance(self.recipe, str) else self.recipe.model_dump(mode="json")
        given = {"model": self.model, "dataset": self.dataset, "recipe": recipe, "seed": self.seed}
        return {**given, **self.data, **{f"{step}_epochs": epochs for step, epochs in self.epochs.items()}}

    def _options(self, name: str) -> dict[str, Any]:
        options: dict[str, Any] = {"dataset": self.dataset, **self.data}
        options |= {"model": self.model} if name == "train" else {"recipe": self.recipe}
        return options | ({"epochs": self.epochs[name]} if name in self.epochs else {})

    def _step(self, name: str, options: dict[str, Any], say: Callable[[str], None]) -> StepResult:
        made = {result.step_id: result.outputs for result in self.results}
        inputs = {what: _output(made, source, what) for what, source in CHAIN.get(name, {}).items()}
        return execute(self._spec(name, options, inputs), say)

    def _spec(self, name: str, options: dict[str, Any], inputs: dict[str, Artifact] | None = None) -> StepSpec:
        document = {
            "step_id": name,
            "inputs": inputs or {},
            "output_uri": None if self.tracking_uri else str(self.output.resolve() / name),
            "seed": self.seed,
            "tracking": self._tracking(name),
            "options": {"kind": name, **options},
        }
        return StepSpec.model_validate(document)

    def _tracking(self, name: str) -> Tracking | None:
        if self.tracking_uri is None:
            return None
        key = {"dag_id": "tfmot-ops optimize", "run_id": self._run_id, "task_id": name}
        return Tracking(uri=self.tracking_uri, experiment=self.experiment, parent_run_id=self._parent, key=key)

    def _close(self, say: Callable[[str], None]) -> None:
        ended_well = {r.step_id: r.metrics for r in self.results if r.status is Status.OK}
        # What did not run at all counts too: the chain is not what was asked for.
        failed = [name for name in CHAIN if name not in ended_well]
        self._step("close_run", {"steps": ended_well, "failed": failed}, say)


def _output(made: dict[str, dict[str, Artifact]], source: str, what: str) -> Artifact:
    step, _, output = source.partition(":")
    return made[step][output or what]
