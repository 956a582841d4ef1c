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
    Candidate,
    Found,
    Goals,
    Status,
    StepResult,
    StepSpec,
    Target,
    TargetRef,
    Tracking,
    TrainingPlan,
)
from tfmot_ops.errors import StepFailedError
from tfmot_ops.search.found import best, figures_of, verdict
from tfmot_ops.search.goals import with_limits_as_goals
from tfmot_ops.search.ladder import Ladder, epochs_of, ladder, training_of
from tfmot_ops.search.report import Ended, name_of
from tfmot_ops.search.rungs import walk
from tfmot_ops.system import files
from tfmot_ops.system.processes import stop_arrived

#: File in the output folder with what the search has found so far.
STATE = "search.json"
_LARGEST_STATE = 64 * 2**20


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
        self.goals, target = with_limits_as_goals(self.goals, targets.resolve_target(self.target))
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
            say(f"search: {candidate.name}: {verdict(self.found[-1], self.goals)}")
        self._close(say)
        return self.best

    @property
    def best(self) -> Found | None:
        """The candidate to take; None where none meets all goals."""
        return best(self.found, self.goals, everything=self.everything)

    @property
    def ended(self) -> Ended:
        """What the search found, for its report."""
        return Ended(
            self.name, self.target_name, self.goals, self.found, self.ladder.left_out, everything=self.everything
        )

    def _next(self) -> Candidate | None:
        """The candidate to try next; None where the search is over."""
        if self.best is not None and not self.everything:
            return None
        return walk(self.ladder.candidates, self.found, self.goals, everything=self.everything)[1]

    def _chain(self, candidate: Candidate, target: Target, shared: SharedSteps | None = None) -> Chain:
        return Chain(
            model=self.model,
            dataset=self.dataset,
            recipe=candidate.recipe,
            output=self.output / candidate.name,
            tracking_uri=self.tracking_uri,
            experiment=self.experiment,
            epochs=epochs_of(candidate, self.epochs),
            data=self.data,
            training=training_of(candidate, self.training),
            target=target,
            seed=self.seed,
            within=self.run_id,
            shared=shared,
        )

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
        return name_of(self.model, self.dataset)

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
