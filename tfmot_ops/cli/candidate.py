"""The step `candidate` of a search in a DAG: a whole chain of steps, which takes over what others have made."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tfmot_ops.cli.chain import Chain
from tfmot_ops.cli.shared_steps import SharedSteps
from tfmot_ops.contract import CandidateOptions, Status, StepResult, StepSpec
from tfmot_ops.errors import SpecError, TfmotOpsError
from tfmot_ops.search.found import figures_of
from tfmot_ops.system import environment
from tfmot_ops.system.versions import installed

#: Steps that candidates with the same pruning share; the step `train` is shared by all candidates.
_PRUNING = ("prune", "fine_tune", "strip")
#: Fields of a result that a DAG does not hand on: tables, which the MLflow runs hold.
_TABLES = {"layers", "versions"}


def run_candidate(spec: StepSpec, say: Callable[[str], None]) -> StepResult:
    """Run the chain of a candidate. A retry with the same key continues an interrupted chain in its MLflow runs.

    Args:
        spec: of the step; its options are `CandidateOptions`.
        say: called with each progress line.

    Returns:
        The metrics of the candidate's file, with `latency_ratio`; its output `tflite`; the MLflow run of the chain; and
        the parameters `candidate`, the name, and `shared`, the results of the steps that prune, by digest.

    Raises:
        SpecError: the chain can never succeed; nothing was written and no run was opened.
    """
    options, started = cast("CandidateOptions", spec.options), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tfmot-ops-candidate-") as folder:
        chain = _chain(spec, options, Path(folder))
        try:
            last = chain.run(say)
        except SpecError:
            raise
        except TfmotOpsError as error:
            from tfmot_ops import steps

            return steps.failed(spec, error, time.monotonic() - started)
    failed = last.error or (chain.closed.error if chain.closed is not None else None)
    ended_well = failed is None
    name = options.recipe if isinstance(options.recipe, str) else options.recipe.name
    made = {result.step_id: result for result in chain.results}
    return StepResult(
        step_id=spec.step_id,
        kind=options.kind,
        spec_sha256=spec.sha256(),
        status=Status.OK if ended_well else Status.FAILED,
        outputs={"tflite": made["quantize"].outputs["tflite"]} if ended_well else {},
        metrics=figures_of(chain.results) if ended_well else {},
        parameters={"candidate": name, "shared": _shared(chain) if ended_well else {}},
        headline=next((result.headline for result in reversed(chain.results) if result.headline), None),
        error=failed,
        versions=installed(),
        duration_s=time.monotonic() - started,
        tracking_run_id=chain.parent_run_id,
    )


def _chain(spec: StepSpec, options: CandidateOptions, folder: Path) -> Chain:
    """The chain of a candidate, with the results that it takes over.

    Raises:
        SpecError: the spec has no tracking, so that the files of the chain's steps have no place.
    """
    tracking = spec.tracking
    if tracking is None:
        raise SpecError(
            "tracking: a candidate of a search needs an MLflow tracking server",
            required="tracking.uri, where the chain's files are stored",
            received="nothing",
            remedy=f"set {environment.TRACKING_URI.name} where the tasks run; "
            "`tfmot-ops search --no-tracking` works without",
        )
    epochs = {"prune": options.fine_tune_epochs, "fine_tune": options.fine_tune_epochs, "quantize": options.qat_epochs}
    data = {"batch_size": options.batch_size, "limit": options.limit, "task": options.task, "metric": options.metric}
    chain = Chain(
        model=options.model,
        dataset=options.dataset,
        recipe=options.recipe,
        output=folder,
        tracking_uri=tracking.uri,
        experiment=tracking.experiment,
        epochs={step: count for step, count in epochs.items() if count is not None},
        data={name: value for name, value in data.items() if value is not None or name == "limit"},
        training=options.training,
        target=options.target,
        seed=spec.seed,
        within=tracking.parent_run_id,
        shared=SharedSteps(dict(options.shared)),
        key=json.dumps(tracking.key, sort_keys=True) if tracking.key else "",
        device=spec.device,
    )
    chain.take_over("train", options.trained)
    return chain


def _shared(chain: Chain) -> dict[str, object]:
    """Digest -> result of each step that prunes, in the form in which a later candidate is given them."""
    results = chain.shared.results if chain.shared is not None else {}
    return {
        digest: result.model_dump(mode="json", exclude=_TABLES)
        for digest, result in results.items()
        if result.kind in _PRUNING
    }
