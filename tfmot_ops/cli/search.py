"""`tfmot-ops search`: tries the candidates of the ladder until one meets the goals, each as a chain of steps."""

from __future__ import annotations

import contextlib
import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmot_ops import targets
from tfmot_ops.cli import resume
from tfmot_ops.cli.chain import Chain
from tfmot_ops.cli.execute import execute
from tfmot_ops.cli.shared_steps import SharedSteps
from tfmot_ops.contract import (
    ACCURACY,
    Document,
    Headline,
    Limits,
    Status,
    StepResult,
    StepSpec,
    Target,
    TargetRef,
    Tracking,
    TrainingPlan,
)
from tfmot_ops.errors import StepFailedError
from tfmot_ops.search.goals import Goals, judge, require_goals
from tfmot_ops.search.ladder import Candidate, Ladder, Tried, ladder, next_candidate
from tfmot_ops.system import files
from tfmot_ops.system.processes import stop_arrived

#: File in the output folder with what the search has found so far.
STATE = "search.json"
_LARGEST_STATE = 64 * 2**20


class Found(Document):
    """One candidate that was tried.

    Attributes:
        candidate: what was tried.
        metrics: of its file; empty where its chain failed.
        headline: the task's metric.
        seconds: wall time of the steps that ran for it.
        error: why its chain failed; empty where it did not.
        tflite: its file; None where its chain failed.
        run_id: its MLflow run; None without tracking.
    """

    candidate: Candidate
    metrics: dict[str, float]
    headline: Headline
    seconds: float
    error: str = ""
    tflite: Path | None = None
    run_id: str | None = None

    def tried(self, goals: Goals) -> Tried:
        """How the candidate stands to the goals."""
        return Tried(self.candidate, judge(goals, self.metrics, self.headline))

    def verdict(self, goals: Goals) -> str:
        """The goals that the candidate misses, with the values received; or `all goals met`, or its failure."""
        if self.error:
            return f"failed: {self.error.splitlines()[0]}"
        missed = [goal for goal in self.tried(goals).judged if not goal.is_met]
        return "; ".join(f"{goal.required}, received {goal.received}" for goal in missed) or "all goals met"


@dataclass
class Search:
    """One call of `tfmot-ops search`: its arguments and, after `run`, what it found.

    Attributes:
        model, dataset, epochs, data, training, seed, tracking_uri, experiment: as for `Chain`.
        target: the device. Its limits are goals too.
        goals: what the file has to be.
        output: folder with one folder per candidate.
        max_candidates: how many candidates may be tried.
        max_seconds: wall time after which no further candidate is started.
        everything: try every candidate that the target allows, also after one has met the goals.
        found: the candidates that were tried, in order.
        ladder: the candidates, and those that were left out; empty before `run`.
        run_id: the MLflow run of the search; None without tracking.
    """

    model: str
    dataset: str
    goals: Goals
    output: Path
    tracking_uri: str | None
    target: TargetRef = "litert_cpu"
    experiment: str = "tfmot_ops"
    epochs: dict[str, int] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: TrainingPlan | None = None
    seed: int = 0
    max_candidates: int = 8
    max_seconds: float = math.inf
    everything: bool = False
    fresh: bool = False
    found: list[Found] = field(default_factory=list)
    ladder: Ladder = field(default_factory=lambda: Ladder([]))
    run_id: str | None = None
    _identity: str = ""

    def run(self, say: Callable[[str], None]) -> Found | None:
        """Try candidates until one meets the goals.

        A search that was killed goes on where it was: finished candidates and shared steps are not run again. Nor are
        they for other goals, as what a candidate costs does not depend on the goals.

        Returns:
            The first candidate that meets all goals; None without one.

        Raises:
            SpecError: an argument is wrong; nothing was written.
            StepFailedError: the output folder or MLflow cannot be used, or the same search runs already.
        """
        target = self._with_limits_as_goals()
        require_goals(self.goals)
        self.ladder = ladder(self.goals, target, self.training)
        for candidate in self.ladder.candidates:
            self._chain(candidate, target).check()
        files.check_writable(self.output)
        with files.lock(self.output / ".search.lock") as alone:
            if not alone:
                raise StepFailedError(
                    "another search runs already in this output folder",
                    required="one search at a time for an output folder",
                    received=f"another process that holds {self.output / '.search.lock'}",
                    remedy="wait until it ends, stop it, or give another --output",
                )
            try:
                return self._search(target, say)
            except BaseException:  # Ctrl-C, SIGTERM, a step that was refused
                stop_arrived()
                if self.run_id is not None and self.tracking_uri is not None:
                    from tfmot_ops.tracking.chain import end_as_killed

                    with contextlib.suppress(Exception):
                        end_as_killed(self.tracking_uri, self.run_id)
                raise

    def _search(self, target: Target, say: Callable[[str], None]) -> Found | None:
        started = time.monotonic()
        shared = self._taken_up(target, say)
        if self.run_id is None:
            self.run_id = self._open(say)
        self._write(shared)
        while len(self.found) < self.max_candidates and time.monotonic() - started < self.max_seconds:
            candidate = self._next()
            if candidate is None:
                break
            say(f"search: trying {candidate.name}: {candidate.tries}")
            self.found.append(self._try(candidate, target, shared, say))
            self._write(shared)
            say(f"search: {candidate.name}: {self.found[-1].verdict(self.goals)}")
        self._close(say)
        return self.best

    @property
    def best(self) -> Found | None:
        """The first candidate that was tried and meets all goals; None without one."""
        return next((each for each in self.found if each.tried(self.goals).meets_all), None)

    def _next(self) -> Candidate | None:
        """The candidate to try next; None where the search is over."""
        if not self.everything:
            tried = [each.tried(self.goals) for each in self.found]
            return None if self.best else next_candidate(self.ladder.candidates, tried)
        done = {each.candidate.name for each in self.found}
        return next((each for each in self.ladder.candidates if each.name not in done), None)

    def _with_limits_as_goals(self) -> Target:
        """The target without its limits, beyond which a step fails: each becomes a goal where the search has none."""
        target = targets.resolve_target(self.target)
        pairs = {"max_flash": "flash_bytes", "max_ram": "ram_bytes"}
        pairs |= {"min_npu_share": "npu_share", "max_latency": "inference_ms"}
        taken = {
            goal: getattr(target.limits, limit) for goal, limit in pairs.items() if getattr(self.goals, goal) is None
        }
        self.goals = self.goals.model_copy(update={name: value for name, value in taken.items() if value is not None})
        return target.model_copy(update={"limits": Limits()})

    def _chain(self, candidate: Candidate, target: Target, shared: SharedSteps | None = None) -> Chain:
        return Chain(
            model=self.model,
            dataset=self.dataset,
            recipe=candidate.recipe,
            output=self.output / candidate.name,
            tracking_uri=self.tracking_uri,
            experiment=self.experiment,
            epochs=self._epochs(candidate),
            data=self.data,
            training=self.training if candidate.recipe.training is None else None,
            target=target,
            seed=self.seed,
            within=self.run_id,
            shared=shared,
        )

    def _epochs(self, candidate: Candidate) -> dict[str, int]:
        """The epochs that the user gave; those of pruning are for recipes that prune."""
        return {
            step: count for step, count in self.epochs.items() if candidate.zeros or step not in {"prune", "fine_tune"}
        }

    def _try(self, candidate: Candidate, target: Target, shared: SharedSteps, say: Callable[[str], None]) -> Found:
        started = time.monotonic()
        chain = self._chain(candidate, target, shared)
        last = chain.run(say)
        metrics = figures_of(chain.results)
        headline = next((result.headline for result in reversed(chain.results) if result.headline), ACCURACY)
        tflite = chain.save_tflite() if last.status is Status.OK else None
        error = last.error.message if last.error is not None else ""
        return Found(
            candidate=candidate,
            metrics=metrics,
            headline=headline,
            seconds=time.monotonic() - started,
            error=error,
            tflite=tflite,
            run_id=chain.parent_run_id,
        )

    def _open(self, say: Callable[[str], None]) -> str | None:
        if self.tracking_uri is None:
            return None
        options = {"kind": "open_run", "name": self.name, "parameters": self._parameters() | self._goals()}
        return execute(self._spec("open_run", options, None), say, stays=True).tracking_run_id

    def _close(self, say: Callable[[str], None]) -> None:
        """Record the chosen candidate's figures on the search's own MLflow run, and end it."""
        if self.run_id is None:
            return
        metrics = {"evaluate": self.best.metrics} if self.best else {}
        headline = self.found[0].headline if self.found else None
        failed = [] if self.best else ["search"]
        options = {"kind": "close_run", "steps": metrics, "failed": failed, "headline": headline}
        execute(self._spec("close_run", options, self.run_id), say, stays=True)

    def _spec(self, step: str, options: dict[str, Any], parent: str | None) -> StepSpec:
        key = {"dag_id": "tfmot-ops search", "run_id": f"{self._identity}-{uuid.uuid4().hex[:8]}", "task_id": step}
        tracking = Tracking(uri=str(self.tracking_uri), experiment=self.experiment, parent_run_id=parent, key=key)
        return StepSpec.model_validate({"step_id": step, "seed": self.seed, "tracking": tracking, "options": options})

    @property
    def name(self) -> str:
        """What the search is called in MLflow."""
        return f"search {Path(self.model).name} {self.dataset.rpartition('/')[2]}"

    @property
    def target_name(self) -> str:
        """Name or file of the target."""
        return self.target.name if isinstance(self.target, Target) else self.target

    def _parameters(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "dataset": self.dataset,
            "target": self.target_name,
            "seed": self.seed,
            **self.data,
            **({"training": self.training.model_dump(mode="json")} if self.training else {}),
            **{f"{step}_epochs": count for step, count in self.epochs.items()},
        }

    def _goals(self) -> dict[str, Any]:
        return self.goals.model_dump(mode="json", exclude_none=True)

    def _taken_up(self, target: Target, say: Callable[[str], None]) -> SharedSteps:
        """The results of an earlier start of this search, which was killed, or had other goals or another budget."""
        place = {"output": str(self.output.resolve()), "uri": self.tracking_uri, "experiment": self.experiment}
        given = self._parameters() | {"device": target.model_dump(mode="json")}
        self._identity = resume.identity(given, {"model": self.model, "dataset": self.dataset}, place)
        state = self._read()
        shared = SharedSteps({digest: StepResult.model_validate(result) for digest, result in state["shared"].items()})
        shared.on_change = lambda: self._write(shared)
        shared.forget_missing(resume.fetch_from(self.tracking_uri))
        self.run_id = state["run_id"] if state["goals"] == self._goals() else None
        # One that failed, as for a full disk, is tried again.
        earlier = [Found.model_validate(each) for each in state["found"]]
        self.found = [each for each in earlier if each.tflite is not None and each.tflite.is_file()]
        if self.found:
            say(f"search: continues; tried so far: {', '.join(each.candidate.name for each in self.found)}")
        return shared

    def _read(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"identity": self._identity, "goals": {}, "shared": {}, "found": [], "run_id": None}
        try:
            state: dict[str, Any] = json.loads(files.read_limited(self.output / STATE, _LARGEST_STATE))
        except (OSError, ValueError):
            return empty
        return empty if self.fresh or state.get("identity") != self._identity else state

    def _write(self, shared: SharedSteps) -> None:
        state = {
            "identity": self._identity,
            "goals": self._goals(),
            "run_id": self.run_id,
            "shared": {digest: result.model_dump(mode="json") for digest, result in shared.results.items()},
            "found": [each.model_dump(mode="json") for each in self.found],
        }
        files.write(self.output / STATE, json.dumps(state, indent=1))


def figures_of(results: list[StepResult]) -> dict[str, float]:
    """The metrics of a chain's file, with `latency_ratio`: its latency to the float32 TFLite file's."""
    by_step = {result.step_id: result.metrics for result in results}
    metrics = dict(by_step.get("evaluate", {}))
    float_ms = by_step.get("train", {}).get("latency_ms")
    if float_ms and "latency_ms" in metrics:
        metrics["latency_ratio"] = metrics["latency_ms"] / float_ms
    return metrics
