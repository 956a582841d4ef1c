"""The chain of `tfmot-ops optimize`: the same steps as the DAG's, one after the other in this process."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmot_ops.cli import resume
from tfmot_ops.cli.execute import execute
from tfmot_ops.cli.shared_steps import SharedSteps
from tfmot_ops.contract import (
    Artifact,
    ArtifactFormat,
    Device,
    Recipe,
    Status,
    StepResult,
    StepSpec,
    Target,
    TargetRef,
    Tracking,
    TrainingPlan,
)
from tfmot_ops.errors import StepFailedError
from tfmot_ops.system import files
from tfmot_ops.system.processes import stop_arrived

#: Step -> {its input: the step that makes this input}, for the steps between open_run and close_run. `:<output>`
#: follows the step's name where its output is not named like the input.
CHAIN: dict[str, dict[str, str]] = {
    "train": {},
    "prune": {"model": "train"},
    "fine_tune": {"model": "prune", "trained": "train:model"},
    "strip": {"model": "fine_tune"},
    "quantize": {"model": "strip", "trained": "train:model"},
    "evaluate": {
        "tflite": "quantize",
        "model": "strip",
        "quantized": "quantize:model",
        "trained": "train:model",
    },
}

#: Steps that take the training plan.
_TRAINING = ("train", "fine_tune", "quantize")
#: Steps that take the target.
_TARGETED = ("quantize", "evaluate")
#: Placeholder for the output of a step that has not run yet, so that the specs of later steps can be validated.
_TO_COME = Artifact(uri="to-come", sha256="0" * 64, size_bytes=0, format=ArtifactFormat.KERAS_H5)


@dataclass
class Chain:
    """One call of `tfmot-ops optimize`: its arguments and, after `run`, the results of its steps.

    Attributes:
        model: name, path or MLflow URI.
        dataset: name.
        recipe: a recipe, or the name of one.
        output: folder for the TFLite file, and for all artifacts when `tracking_uri` is None.
        tracking_uri: MLflow tracking URI; None records nothing.
        experiment: MLflow experiment.
        epochs: step name -> epochs; a step without an entry takes the recipe's budget.
        data: further options of every step: `batch_size`, `limit`.
        training: training plan; None takes the recipe's.
        target: device that the file is for, see `contract.Target`; None takes the recipe's.
        seed: random seed of every step.
        fresh: run all steps, including those that an earlier call of the same command finished.
        within: id of the MLflow run that contains the parent run; None for a parent run of its own.
        shared: results of other chains, which this one takes over where its steps are given the same.
        key: text that identifies the chain in a later attempt, as the task of a DAG; empty for the arguments above.
        device: on which the steps compute.
        results: results of the steps that ran, in order.
        closed: result of the step that ends the MLflow run of the chain.
    """

    model: str
    dataset: str
    recipe: Recipe | str
    output: Path
    tracking_uri: str | None
    experiment: str = "tfmot_ops"
    epochs: dict[str, int] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: TrainingPlan | None = None
    target: TargetRef | None = None
    seed: int = 0
    fresh: bool = False
    within: str | None = None
    shared: SharedSteps | None = None
    key: str = ""
    device: Device = Device.CPU
    results: list[StepResult] = field(default_factory=list)
    closed: StepResult | None = None
    _key: str = "unknown until it runs"
    _parent: str | None = None

    def run(self, say: Callable[[str], None]) -> StepResult:
        """Run all steps, and close the MLflow parent run even when a step fails.

        If an earlier call of the same command was killed or interrupted, or failed for a reason that a retry may cure,
        this call continues its parent run and skips the steps that are finished.

        Returns:
            The result of the last step that ran: `evaluate`, or the one that failed.

        Raises:
            SpecError: a name or an option is wrong; nothing was written.
            StepFailedError: the output folder or MLflow cannot be used, or the same command runs already.
        """
        self.check()
        files.check_writable(self.output)
        tracking = (self.tracking_uri, self.experiment) if self.tracking_uri is not None else None
        place = self.output.resolve()
        with resume.attempt(self._identity(), place, tracking, self.fresh, say, is_retry=bool(self.key)) as attempt:
            self._key = attempt.key
            opened = self._step("open_run", self._opening(), say)
            if opened.status is Status.FAILED:
                return opened
            self._parent = opened.tracking_run_id
            try:
                self._take_up(attempt, say)
                last = self._run_rest(attempt, say)
            except Exception:
                self._close(say)
                raise
            except BaseException:  # Ctrl-C, SIGTERM
                stop_arrived()
                attempt.interrupted(self._parent)
                raise
            self._close(say)
            if last.status is Status.OK and self.closed is not None and self.closed.status is Status.OK:
                attempt.ended_well()
        return last

    def _take_up(self, attempt: resume.Attempt, say: Callable[[str], None]) -> None:
        if not attempt.parent and not attempt.results:
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in CHAIN:
                spec = self._spec(name, self._options(name), self._inputs(name))
                result = attempt.finished(spec, resume.fetch_from(self.tracking_uri), Path(folder))
                if result is None and self.shared is not None:
                    result = self.shared.find(spec)
                if result is None:
                    break
                self.results.append(result)
        if attempt.parent or self.results:
            done = ", ".join(result.step_id for result in self.results) or "no step"
            say(f"continues {f'run {attempt.parent}' if attempt.parent else 'an earlier start'}; done so far: {done}")

    def _run_rest(self, attempt: resume.Attempt, say: Callable[[str], None]) -> StepResult:
        for name in list(CHAIN)[len(self.results) :]:
            result = self._shared_or_run(name, say)
            self.results.append(result)
            attempt.keep(result)
            if result.status is Status.FAILED:
                break
        return self.results[-1]

    def _shared_or_run(self, name: str, say: Callable[[str], None]) -> StepResult:
        if self.shared is None:
            return self._step(name, self._options(name), say)
        spec = self._spec(name, self._options(name), self._inputs(name))
        result = self.shared.find(spec)
        if result is None:
            result = execute(spec, say, stays=True)
            self.shared.keep(spec, result)
        return result

    def take_over(self, name: str, result: StepResult) -> None:
        """Let the result of a step without inputs stand for this chain's own, where `shared` is given."""
        if self.shared is not None:
            self.shared.keep(self._spec(name, self._options(name)), result)

    def save_tflite(self) -> Path:
        """Copy the TFLite file of the chain to the output folder and verify its sha256.

        Raises:
            StepFailedError: no step made a TFLite file.
            ArtifactError: the TFLite file cannot be read.
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
            files.copy(resume.fetch_from(self.tracking_uri)(artifact, Path(folder)), target)
        return target.resolve()

    def check(self) -> None:
        """Validate the specs of all steps before the first one opens an MLflow run that would be left behind."""
        from tfmot_ops import steps

        steps.check(self._spec("open_run", self._opening()))
        for name, sources in CHAIN.items():
            steps.check(self._spec(name, self._options(name), dict.fromkeys(sources, _TO_COME)))

    @property
    def parent_run_id(self) -> str | None:
        """Id of the chain's MLflow run; None without tracking, or before `run`."""
        return self._parent

    @property
    def plan(self) -> TrainingPlan | None:
        """The training plan: the given one, else the recipe's, which the train step does not get."""
        return self.training or (self.recipe.training if isinstance(self.recipe, Recipe) else None)

    def _opening(self) -> dict[str, Any]:
        return {"parameters": self._parameters()}

    def _parameters(self) -> dict[str, Any]:
        recipe = self.recipe if isinstance(self.recipe, str) else self.recipe.model_dump(mode="json")
        given = {"model": self.model, "dataset": self.dataset, "recipe": recipe, "seed": self.seed}
        plan: dict[str, Any] = (
            {"training": self.plan.model_dump(mode="json", exclude_defaults=True)} if self.plan else {}
        )
        plan |= {"target": self.target.name if isinstance(self.target, Target) else self.target} if self.target else {}
        return {**given, **self.data, **plan, **{f"{step}_epochs": epochs for step, epochs in self.epochs.items()}}

    def _options(self, name: str) -> dict[str, Any]:
        options: dict[str, Any] = {"dataset": self.dataset, **self.data}
        options |= {"model": self.model} if name == "train" else {"recipe": self.recipe}
        options |= {"training": self.plan} if name in _TRAINING and self.plan else {}
        options |= {"target": self.target} if name in _TARGETED and self.target else {}
        return options | ({"epochs": self.epochs[name]} if name in self.epochs else {})

    def _step(self, name: str, options: dict[str, Any], say: Callable[[str], None]) -> StepResult:
        return execute(self._spec(name, options, self._inputs(name)), say, stays=True)

    def _inputs(self, name: str) -> dict[str, Artifact]:
        made = {result.step_id: result.outputs for result in self.results}
        return {what: _output(made, source, what) for what, source in CHAIN.get(name, {}).items()}

    def _identity(self) -> str:
        if self.key:
            return hashlib.sha256(self.key.encode()).hexdigest()[:32]
        place = {"output": str(self.output.resolve()), "uri": self.tracking_uri, "experiment": self.experiment}
        return resume.identity(self._parameters(), {"model": self.model, "dataset": self.dataset}, place)

    def _spec(self, name: str, options: dict[str, Any], inputs: dict[str, Artifact] | None = None) -> StepSpec:
        document = {
            "step_id": name,
            "inputs": inputs or {},
            "output_uri": None if self.tracking_uri else str(self.output.resolve() / name),
            "seed": self.seed,
            "device": self.device,
            "tracking": self._tracking(name),
            "options": {"kind": name, **options},
        }
        return StepSpec.model_validate(document)

    def _tracking(self, name: str) -> Tracking | None:
        if self.tracking_uri is None:
            return None
        key = {"dag_id": "tfmot-ops optimize", "run_id": self._key, "task_id": name}
        parent = self._parent or self.within
        return Tracking(uri=self.tracking_uri, experiment=self.experiment, parent_run_id=parent, key=key)

    def _close(self, say: Callable[[str], None]) -> None:
        ended_well = {r.step_id: r.metrics for r in self.results if r.status is Status.OK}
        # A step that did not run counts as failed: the chain did less than was requested.
        failed = [name for name in CHAIN if name not in ended_well]
        headline = next((r.headline for r in reversed(self.results) if r.headline is not None), None)
        self.closed = self._step("close_run", {"steps": ended_well, "failed": failed, "headline": headline}, say)


def _output(made: dict[str, dict[str, Artifact]], source: str, what: str) -> Artifact:
    step, _, output = source.partition(":")
    return made[step][output or what]
