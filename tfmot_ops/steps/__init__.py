"""The steps: each takes a StepSpec, calls the core, and returns a StepResult.

Each kind of step is one function in `kinds`; a new kind needs one options model in the contract and one function
there. Steps exchange files only, so each can run on another machine: a step loads its input files, works, measures
the model it made, and saves it.

Every step that makes a model converts it to TFLite (float32 until the quantize step) to measure size, sparsity and
latency, so that the figures of all steps are comparable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tfmot_ops import targets
from tfmot_ops.contract import EvaluateOptions, Status, StepError, StepOptions, StepResult, StepSpec, TrainingOptions
from tfmot_ops.errors import SpecError, StepFailedError, TfmotOpsError
from tfmot_ops.recipes.names import resolve
from tfmot_ops.steps.kinds import KINDS, catalogue
from tfmot_ops.steps.training import check_plan
from tfmot_ops.steps.work import ModelWork, Progress, Work
from tfmot_ops.store import Store
from tfmot_ops.system.environment import REQUIRE_GPU
from tfmot_ops.system.uri_secrets import hide, hide_in
from tfmot_ops.system.versions import installed

__all__ = ["Progress", "catalogue", "check", "failed", "run_step"]


def check(spec: StepSpec) -> None:
    """Refuse a spec that can never succeed, before an MLflow run or a file is created for it.

    Raises:
        SpecError: an input is missing, or a name (model, data set, recipe, target, optimizer, augmentation) is
            unknown, or a program that the target needs is not installed.
    """
    required = spec.options.requires
    missing = [name for name in required if name not in spec.inputs]
    if missing:
        raise SpecError(
            f"inputs: {spec.options.kind} needs an artifact that the spec does not give",
            required=", ".join(required),
            received=", ".join(spec.inputs) or "no inputs",
            remedy=f"add inputs.{missing[0]}, an output of the step before",
        )
    recipe = spec.options.named_recipe
    if isinstance(recipe, str):
        from tfmot_ops import core

        core.recipes.decode(recipe)
    if isinstance(spec.options, TrainingOptions):
        check_plan(spec.options.plan)
    _check_target(spec.options)
    _check_names(spec)


def _check_target(options: StepOptions) -> None:
    if options.named_target is None:
        return
    target = targets.resolve_target(options.named_target)
    if options.named_recipe is not None:
        targets.adapted(resolve(options.named_recipe), target)
    if isinstance(options, EvaluateOptions):
        targets.require_tools(target)


def _check_names(spec: StepSpec) -> None:
    task, metric = getattr(spec.options, "task", None), getattr(spec.options, "metric", None)
    if task is not None or metric is not None:
        from tfmot_ops.tasks.by_name import task_named

        task_named(task or "own", metric)
    dataset, model = getattr(spec.options, "dataset", None), spec.options.named_model
    # Other names with a colon (`npz:<path>`, `models:/...`) are checked by the function that loads them.
    name = dataset.partition("?")[0] if dataset is not None else None
    if name is not None and ":" not in name:
        from tfmot_ops.data.sources.by_name import available_datasets

        _check_name("dataset", "data set", name, available_datasets())
    if model is not None and model.startswith("application:"):
        from tfmot_ops.models.applications import application_constructor

        application_constructor(model.partition(":")[2])
    elif model is not None and ":" not in model and not Path(model).exists():
        from tfmot_ops.models.by_name import available_models

        _check_name("model", "model", model, available_models())


def _check_name(name: str, kind: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise SpecError(
            f"options.{name}: unknown {kind} name",
            required="one of " + ", ".join(sorted(known)),
            received=value,
            remedy=f"tfmot-ops list {name}s prints the names; a file needs to exist where the step runs",
        )


def run_step(
    spec: StepSpec,
    store: Store,
    workdir: Path,
    progress: Progress,
    record: Callable[[StepResult], StepResult] = lambda result: result,
) -> StepResult:
    """Run one step in this process.

    The Keras session is cleared and every seed is set first, so a step gives the same numbers whether
    it has a process of its own or follows another one in the same process.

    Args:
        spec: what to do.
        store: where inputs are read and outputs are written.
        workdir: local folder for temporary files.
        progress: receives messages, epochs and models while the step runs.
        record: records the result and returns it, possibly with additions; the training's checkpoint is deleted after
            that, as a retry needs it if the result cannot be recorded or the process is killed.

    Returns:
        The result with status `ok`.

    Raises:
        TfmotOpsError: the step could not be done; its class says whether a retry may help.
    """
    started = time.perf_counter()
    workdir.mkdir(parents=True, exist_ok=True)
    if spec.options.computes_with_a_model:
        from tfmot_ops import core
        from tfmot_ops.core.keras.seeds import set_seed

        _check_device()
        core.keras.backend.clear_session()
        set_seed(spec.seed)
    work: Work[StepOptions] = (ModelWork if spec.options.computes_with_a_model else Work)(
        spec, store, workdir, progress
    )
    KINDS[spec.options.kind](work)
    duration_s = time.perf_counter() - started
    if isinstance(work, ModelWork):
        # Also a metric, as the summary of a chain shows metrics only.
        work.measure({"duration_s": duration_s})
    result = StepResult(
        step_id=spec.step_id,
        kind=spec.options.kind,
        spec_sha256=spec.sha256(),
        status=Status.OK,
        outputs=work.outputs,
        metrics=work.metrics,
        parameters=hide_in(work.parameters),
        headline=work.headline if isinstance(work, ModelWork) else work.given_headline,
        layers=tuple(work.layers),
        versions=installed(),
        duration_s=duration_s,
    )
    result = record(result)
    if isinstance(work, ModelWork) and work.checkpoint is not None:
        work.checkpoint.remove()
    return result


def _check_device() -> None:
    import tensorflow as tf

    if REQUIRE_GPU.get() and not tf.config.list_physical_devices("GPU"):
        raise StepFailedError(
            "the step needs a GPU, and there is none",
            required="a GPU that TensorFlow sees",
            received=f"{tf.config.list_physical_devices()}",
            remedy="check the driver with `tfmot-ops doctor --device gpu`, or set device to cpu",
        )


def failed(spec: StepSpec, error: Exception, duration_s: float) -> StepResult:
    """The result of a step that raised `error` after `duration_s` seconds."""
    code = error.exit_code if isinstance(error, TfmotOpsError) else TfmotOpsError.exit_code
    return StepResult(
        step_id=spec.step_id,
        kind=spec.options.kind,
        spec_sha256=spec.sha256(),
        status=Status.FAILED,
        error=StepError(type=type(error).__name__, message=hide(str(error), *spec.uris().values()), exit_code=code),
        versions=installed(),
        duration_s=duration_s,
    )
