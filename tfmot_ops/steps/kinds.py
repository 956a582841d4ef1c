"""One function per kind of step."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfmot_ops.contract import (
    ArtifactFormat,
    EvaluateOptions,
    FineTuneOptions,
    ListOptions,
    Method,
    PruneOptions,
    QuantizeOptions,
    Recipe,
    RegisterOptions,
    StripOptions,
    TrainOptions,
    broken_rules,
)
from tfmot_ops.errors import SpecError, StepFailedError
from tfmot_ops.steps import compat as sweep
from tfmot_ops.steps.figures import (
    measure_agreement,
    measure_drop,
    measure_layers,
    measure_run,
    measure_sparse_encoding,
)
from tfmot_ops.steps.on_target import measure_target, require_operations, require_operations_before_training
from tfmot_ops.steps.requirements import (
    is_being_pruned,
    require_float,
    require_pruned,
    require_pruned_layers,
    require_pruning_wrappers,
    require_stripped,
    require_wrappers_of,
)
from tfmot_ops.steps.search import choose
from tfmot_ops.steps.training import Rate, targets_for, train
from tfmot_ops.steps.work import ModelOptions, ModelWork, Work

if TYPE_CHECKING:
    from tfmot_ops.core.keras.types import Model

# QAT starts from trained weights, so a tenth of the learning rate is enough (see `Budget.qat_learning_rate`).
_QAT_RATE = 0.1
#: Default number of epochs for a model that starts from random weights.
_TRAIN_EPOCHS = 10
#: Calibration samples with which it is found out whether a model's outputs are logits.
_SAMPLES_FOR_LOSS = 1024
#: Parameter `test_split`, when the data set has no test set and the model was trained elsewhere.
_DRAWN = "drawn from the data; the model may have seen it"


def _train(work: ModelWork[TrainOptions]) -> None:
    from tfmot_ops import core, models
    from tfmot_ops.core.graph.finite import require_finite_weights
    from tfmot_ops.core.keras.compiling import is_compiled
    from tfmot_ops.core.training.optimizers import planned_optimizer

    options, data = work.options, work.data
    work.say(f"the task is {data.task.name}: {data.task_reason}")
    model = models.build(options.model, data.task, data.facts, work.spec.seed)
    comes_trained = models.comes_trained(options.model)
    require_finite_weights(model)
    require_float("train", model)
    work.parameters["model"] = options.model
    work.say(f"{options.model}: {model.count_params()} weights, {data.train_samples} samples")
    if not is_compiled(model):
        samples = work.first(data.x_calibration, _SAMPLES_FOR_LOSS, model)
        planned = options.plan.learning_rate
        rate = (planned and planned.rate) or options.learning_rate
        choice = data.task.compile(model, data.facts, samples, rate)
        # Keras decides which accuracy the name `accuracy` means when it first sees labels; a model saved before that
        # would be loaded with the wrong metric.
        targets_for(work, model)
        if comes_trained or "logits" in choice:
            work.say(f"the model has no compile configuration; {choice}")
    if options.plan.optimizer is not None:
        model.optimizer = planned_optimizer(options.plan.optimizer, options.plan.learning_rate)
    if comes_trained:
        _report_trained_elsewhere(work)
    callbacks = core.pruning_callbacks() if is_being_pruned(model) else []
    train(work, model, work.epochs(0 if comes_trained else _TRAIN_EPOCHS), callbacks)
    work.measure_float(model)
    work.put_model(model)


def _report_trained_elsewhere(work: ModelWork[TrainOptions]) -> None:
    """Report that a saved model is not trained by default, and may have been trained on the test samples."""
    if work.options.epochs is None:
        work.say("a saved model is measured and not trained; --epochs N trains it")
    if not work.data.has_own_test_set:
        work.parameters["test_split"] = _DRAWN
        work.say(
            f"WARNING: the test split is {_DRAWN} in its training, and then the measured accuracy is too high "
            "for new data; give a data set whose x_test and y_test the model was not trained on"
        )


def _pass_through(work: ModelWork[ModelOptions], model: Model) -> None:
    """Save the step's input as its output, without measuring the model: the step that made the model has done so."""
    work.progress.message(f"{work.spec.step_id}: recipe {work.recipe.name} has no sparsity, the model stays unchanged")
    work.measure({"passed_through": 1})
    work.put_model(model)


def _prune(work: ModelWork[PruneOptions]) -> None:
    from tfmot_ops import core

    model, recipe = work.load_model(), work.recipe
    require_float("prune", model)
    require_wrappers_of("prune", model, recipe)
    if recipe.sparsity is None:
        _pass_through(work, model)
        return
    steps = work.epochs(recipe.budget.fine_tune_epochs) * work.steps_per_epoch
    # Without training there is no schedule to follow: the mask is applied at once.
    end_step = max(1, round(steps * recipe.sparsity.ramp_fraction)) if steps else None
    model, layers = core.prune(model, recipe, end_step=end_step)
    require_pruned_layers(layers, recipe)
    work.layers += layers
    work.measure_float(model)
    work.put_model(model)


def _fine_tune(work: ModelWork[FineTuneOptions]) -> None:
    from tfmot_ops import core

    model, recipe = work.load_model(), work.recipe
    require_float("fine_tune", model)
    require_pruning_wrappers("fine_tune", model, recipe)
    # The budget's epochs are for recovering from pruning: without sparsity, only epochs of the options are trained.
    epochs = work.epochs(recipe.budget.fine_tune_epochs if recipe.sparsity else 0)
    callbacks = core.pruning_callbacks() if is_being_pruned(model) else []
    if not recipe.sparsity and not epochs:
        _pass_through(work, model)
        return
    train(work, model, epochs, callbacks, rate=Rate(recipe.budget.fine_tune_learning_rate))
    work.measure_float(model)
    work.put_model(model)


def _strip(work: ModelWork[StripOptions]) -> None:
    from tfmot_ops import core

    model, recipe = work.load_model(), work.recipe
    require_float("strip", model)
    if is_being_pruned(model):
        model = core.strip(model)
        core.assert_sparsity(model, recipe)
    elif recipe.sparsity is None:
        _pass_through(work, model)
        return
    else:
        require_pruned("strip", model, recipe)
    work.measure_float(model)
    work.put_model(model)


def _quantize(work: ModelWork[QuantizeOptions]) -> None:
    from tfmot_ops import core
    from tfmot_ops.core.training.freezing import names_to_freeze

    model, recipe = work.load_model(), work.recipe
    require_float("quantize", model)
    require_stripped("quantize", model)
    require_pruned("quantize", model, recipe)
    if recipe.quantization and recipe.quantization.method is Method.QAT:
        samples = min(recipe.quantization.calibration_samples, work.data.calibration_samples)
        frozen = names_to_freeze(model, work.options.plan.frozen)
        work.say(f"inserting quantisers, calibrating with {samples} samples")
        model, layers = core.quantize(model, recipe, work.calibration(model))
        work.layers += layers
        require_operations_before_training(work, model)
        train(
            work,
            model,
            work.epochs(recipe.budget.qat_epochs),
            rate=Rate(recipe.budget.qat_learning_rate, _QAT_RATE),
            frozen=frozen,
        )
    work.say("exporting to TFLite")
    tflite = core.export_tflite(model, recipe, work.calibration(model))
    require_operations(work, tflite)
    if not work.layers:  # without QAT the converter decides which layers are int8, so the file is inspected
        work.layers += core.report_file(model, tflite)
    core.require_recipe(core.profile_tflite(tflite), recipe, work.layers)
    work.score(tflite, model)
    work.measure_tflite(tflite, model)
    work.score_validation(tflite, model)
    work.put_bytes(tflite, "tflite", ArtifactFormat.TFLITE)
    work.put_model(model)


def _evaluate(work: ModelWork[EvaluateOptions]) -> None:
    from tfmot_ops import core

    tflite = work.path("tflite").read_bytes()
    model = work.load_model() if "model" in work.spec.inputs else None
    work.measure_tflite(tflite, model)
    measure_run(work, tflite)
    if work.options.recipe is not None and work.recipe.sparsity is not None:
        measure_sparse_encoding(work, tflite)
    details = work.score(tflite, model).details()
    if details:
        work.put_bytes(json.dumps(details).encode(), "details", ArtifactFormat.JSON)
    if model is not None:
        measure_layers(work, core.strip(model), tflite)
        measure_agreement(work, model, tflite)
    measure_drop(work, tflite, model)
    measure_target(work, tflite, model)


def _register(work: Work[RegisterOptions]) -> None:
    """Judge the rules only; `tracking.run` registers the file once this step has succeeded."""
    options = work.options
    problems = broken_rules(options.rules, options.metrics, options.champion, options.headline)
    if problems:
        raise StepFailedError(
            f"{options.name} not registered: {len(problems)} of its gates failed",
            required="every rule of gates and policy to hold",
            received="; ".join(problems),
            remedy="train longer, use a milder recipe, or change the rule",
        )
    work.measure(options.metrics)


def _list(work: Work[ListOptions]) -> None:
    names = catalogue(work.options.what)
    work.put_bytes(json.dumps(names, indent=2).encode(), "list", ArtifactFormat.JSON)
    # The result holds the names too, so that a DAG can expand over them without reading the file.
    work.parameters["list"] = list(names)


def catalogue(what: str) -> dict[str, str]:
    """Name -> one-line description, for all `architectures`, `models`, `datasets`, `recipes`, `targets` or `tasks`.

    Raises:
        SpecError: there is no such catalogue.
    """
    from tfmot_ops import core, data, models
    from tfmot_ops.models import architectures as catalog
    from tfmot_ops.targets import available_targets
    from tfmot_ops.tasks.by_name import available_tasks

    catalogues: dict[str, Callable[[], dict[str, str]]] = {
        "architectures": lambda: {name: entry.family for name, entry in catalog.catalogue().items()},
        "models": models.available_models,
        "datasets": data.available_datasets,
        "targets": available_targets,
        "tasks": available_tasks,
        "recipes": lambda: {name: _in_words(recipe) for name, recipe in core.recipes.presets().items()},
    }
    if what not in catalogues:
        raise SpecError(
            "no such catalogue",
            required="one of " + ", ".join(catalogues),
            received=what,
            remedy="`tfmot-ops list --help` names them",
        )
    return catalogues[what]()


def _in_words(recipe: Recipe) -> str:
    sparsity, quantization = recipe.sparsity, recipe.quantization
    parts = [f"{sparsity.ratio:.0%} zeros"] if sparsity else []
    parts += ["{} of {} in a row".format(*sparsity.n_of_m)] if sparsity and sparsity.n_of_m else []
    if quantization:
        parts.append(f"{quantization.weights} weights, {quantization.activations} activations, {quantization.method}")
    return "; ".join(parts)


def _record(work: Work[Any]) -> None:
    """Do nothing but report: `tracking.run` opens and closes the MLflow parent run."""
    done = "opens" if work.spec.options.kind == "open_run" else "sums up and ends"
    work.say("nothing is recorded in MLflow" if work.spec.tracking is None else f"{done} the chain's MLflow run")


#: Kind -> function that runs it, for each kind that is no chain of other steps. Its argument is a `ModelWork` if the
#: options' `computes_with_a_model` is true, else a `Work`.
KINDS: dict[str, Callable[[Any], None]] = {
    "open_run": _record,
    "train": _train,
    "prune": _prune,
    "fine_tune": _fine_tune,
    "strip": _strip,
    "quantize": _quantize,
    "evaluate": _evaluate,
    "register": _register,
    "list": _list,
    "compat": sweep.compat,
    "summarize": sweep.summarize,
    "forecast": sweep.forecast,
    "choose": choose,
    "close_run": _record,
}
