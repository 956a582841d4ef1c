"""Training within a step: from the step's options, training plan and data set to the arguments of the core's loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tfmot_ops.contract import TrainingOptions, TrainingPlan
from tfmot_ops.errors import SpecError
from tfmot_ops.steps.resume import StepCheckpoint
from tfmot_ops.tasks.in_order import in_order, keys_in_order

if TYPE_CHECKING:
    from tfmot_ops.core.keras.types import Model
    from tfmot_ops.core.training.train_step import Additions
    from tfmot_ops.data.splits import Dataset
    from tfmot_ops.steps.work import ModelWork

#: The options of a kind that trains.
AnyTraining = TypeVar("AnyTraining", bound=TrainingOptions)
#: Samples with which it is found out what a model's loss takes, and what its outputs are.
_EXAMPLE_SAMPLES = 4


@dataclass(frozen=True)
class Rate:
    """How a kind of step changes the learning rate.

    Attributes:
        given: the recipe's budget for this step; None takes the plan's rate, else the compiled one, times `factor`.
        factor: see `given`; a compiled schedule is not scaled.
    """

    given: float | None = None
    factor: float = 1.0


def check_plan(plan: TrainingPlan) -> None:
    """Refuse a plan that names what does not exist, before anything is trained.

    Raises:
        SpecError: an optimizer, an augmentation or one of their arguments is unknown.
    """
    if plan.optimizer is None and not plan.augmentation:
        return  # nothing is named, and TensorFlow need not be loaded
    from tfmot_ops.core.training.augmentation import augmentation_layer
    from tfmot_ops.core.training.optimizers import planned_optimizer

    if plan.optimizer is not None:
        planned_optimizer(plan.optimizer)
    for augmentation in plan.augmentation:
        augmentation_layer(augmentation)


def train(
    work: ModelWork[AnyTraining],
    model: Model,
    epochs: int,
    callbacks: Sequence[object] = (),
    *,
    rate: Rate = Rate(),
    frozen: Mapping[str, bool] | None = None,
) -> None:
    """Train a compiled model in place on the step's data set; continues from the checkpoint of a killed attempt.

    Args:
        work: the step.
        model: compiled tf_keras model.
        epochs: passes over the training samples; 0 trains nothing.
        callbacks: Keras callbacks.
        rate: how this kind of step changes the learning rate.
        frozen: names of the float model's layers -> whether the plan freezes them; None takes them from `model`.
    """
    from tfmot_ops.core.keras.compiling import compile_parameters
    from tfmot_ops.core.training.freezing import frozen_layers, names_to_freeze
    from tfmot_ops.core.training.loop import fit
    from tfmot_ops.core.training.optimizers import replaced_optimizer
    from tfmot_ops.core.training.stopping import BestEpoch

    if not epochs:
        work.parameters["epochs"] = 0
        return
    options, data, plan = work.options, work.data, work.options.plan
    convert = targets_for(work, model)
    inputs = list(model.input_names)
    x, x_validation = (in_order(samples, inputs, "input") for samples in (data.x_train, data.x_validation))
    checkpoint = StepCheckpoint(work.spec, work.workdir, work.progress.message)
    work.checkpoint = checkpoint
    optimizer, learning_rate = _optimizer(plan, model, rate, work.steps_per_epoch, epochs)
    with ExitStack() as stack:
        names = names_to_freeze(model, plan.frozen) if frozen is None else frozen
        stack.enter_context(frozen_layers(model, names))
        stack.enter_context(replaced_optimizer(model, optimizer, learning_rate, plan.clipping))
        used = compile_parameters(model).get("optimizer.learning_rate")
        work.parameters |= {"epochs": epochs, "learning_rate": f"{used:.6g}" if isinstance(used, float) else str(used)}
        if plan != TrainingPlan():
            work.parameters["training"] = plan.model_dump(mode="json", exclude_defaults=True)
        stopping = plan.early_stopping
        history = fit(
            model,
            x,
            convert(data.y_train),
            (x_validation, convert(data.y_validation)),
            epochs=epochs,
            batch_size=options.batch_size,
            seed=work.spec.seed,
            callbacks=callbacks,
            on_epoch=lambda epoch, of, metrics: work.progress.epoch(work.spec.options.kind, epoch, of, metrics),
            on_restored=lambda epoch, _, metrics: work.progress.restored(epoch, metrics),
            checkpoint=checkpoint.open(),
            data_digest=data.digest,
            weights=sample_weights(plan, data, len(model.outputs)),
            additions=_additions(work, list(model.input_names)),
            best_epoch=BestEpoch(model, stopping, _first_epoch(work, model, epochs), work.say) if stopping else None,
            plan=_identity(work),
        )
    if stopping:
        work.measure({"epochs_trained": len(next(iter(history.values()), []))})


def _first_epoch(work: ModelWork[AnyTraining], model: Model, epochs: int) -> int:
    """The first epoch, from 1, after the pruning schedules of the model's layers have reached their targets."""
    from tfmot_ops.core.graph.ir import layer_paths

    schedules = [layer.pruning_schedule for _, layer in layer_paths(model) if hasattr(layer, "pruning_vars")]
    last_step = max((getattr(schedule, "end_step", 0) for schedule in schedules), default=0)
    return min(epochs, 1 + math.ceil(max(0, last_step) / work.steps_per_epoch))


def _identity(work: ModelWork[AnyTraining]) -> str:
    """What the plan adds to the identity of a training: its text, and the model to learn from."""
    plan = work.options.plan
    if plan == TrainingPlan():
        return ""
    trained = work.spec.inputs.get("trained")
    teacher = trained.sha256 if plan.distillation and work.options.learns_from_trained and trained else ""
    return plan.model_dump_json(exclude_defaults=True) + teacher


def _optimizer(plan: TrainingPlan, model: Model, rate: Rate, steps_per_epoch: int, epochs: int) -> tuple[Any, Any]:
    """(optimizer whose class and arguments are used, its learning rate or schedule, or None to leave that)."""
    from tfmot_ops.core.keras.compiling import fresh_optimizer
    from tfmot_ops.core.training.optimizers import compiled_rate, planned_optimizer, rate_schedule

    optimizer = model.optimizer if plan.optimizer is None else planned_optimizer(plan.optimizer, plan.learning_rate)
    if plan.frozen is not None:
        optimizer = fresh_optimizer(optimizer)  # for the weights that are not frozen
    planned = plan.learning_rate
    highest = rate.given or (planned.rate if planned else None)
    if rate.given is None:
        highest = highest or compiled_rate(optimizer)
        # A compiled schedule has no single rate that could be scaled; only an explicit rate replaces it.
        highest = highest and highest * rate.factor
    if planned is None:
        return optimizer, None if highest == compiled_rate(optimizer) else highest
    if highest is None:
        raise SpecError(
            "the training plan's schedule has no rate to start from",
            required="training.learning_rate.rate, for a model that is compiled with a schedule of its own",
            received="no rate",
            remedy="add the highest rate to training.learning_rate",
        )
    return optimizer, rate_schedule(planned, highest, steps_per_epoch, epochs)


def targets_for(work: ModelWork[Any], model: Model) -> Callable[[Any], Any]:
    """Function that turns the data set's targets into those of the model's loss, in the order of its outputs."""
    data = work.data
    if data.task.learns_its_input:
        return lambda targets: targets
    if isinstance(data.y_train, Mapping):
        return lambda targets: in_order(targets, list(model.output_names), "output")
    x = work.first(data.x_train, _EXAMPLE_SAMPLES, model)
    y = data.y_train[:_EXAMPLE_SAMPLES]
    convert = data.task.targets_for(model, x, y, data.facts)
    converted = convert(y)
    if converted.ndim > y.ndim and converted.shape[-1] > 1:
        work.say("the model's loss needs one-hot vectors; the labels are converted")

    from tfmot_ops.data.columns import Lazy

    def of(targets: Any) -> Any:
        if isinstance(targets, Lazy):
            return targets.then(lambda one: convert(one[None])[0], converted.shape[1:], converted.dtype)
        return convert(targets)

    return of


def sample_weights(plan: TrainingPlan, data: Dataset, outputs: int) -> Any:
    """Factor of the loss of each training sample or pixel: the data set's weights times those of the classes.

    Args:
        plan: with class weights or none.
        data: with weights of its samples or none.
        outputs: number of outputs of the model, each of which gets the weights.

    Returns:
        A column [N] or [N, H, W], a list of them for several outputs, or None where every factor is 1.

    Raises:
        SpecError: the plan weights classes that the data set does not have.
    """
    from tfmot_ops.tasks.class_weights import weights_by_class, weights_of

    weights = data.weights_train
    if plan.class_weights is not None:
        table = weights_by_class(plan.class_weights, data.task, data.y_train, data.facts)
        weights = weights_of(data.y_train, table, weights)
    return weights if weights is None or outputs == 1 else [weights] * outputs


def _additions(work: ModelWork[AnyTraining], inputs: list[str]) -> Additions:
    from tfmot_ops.core.training.augmentation import augmentation_layer, is_geometric, require_shape_kept
    from tfmot_ops.core.training.train_step import Additions

    data, plan, layers = work.data, work.options.plan, []
    for augmentation in plan.augmentation:
        if is_geometric(augmentation) and data.task.targets_have_places:
            raise SpecError(
                f"the augmentation {augmentation.name} moves the image, and not the targets of the task "
                f"{data.task.name}",
                required="augmentations that move nothing, as the targets have a place in the image",
                received=augmentation.name,
                remedy="leave it out of training.augmentation, or augment the files",
            )
        layer = augmentation_layer(augmentation)
        columns = data.x_train if isinstance(data.x_train, Mapping) else {inputs[0]: data.x_train}
        name = _augmented_input(augmentation.input, list(columns))
        require_shape_kept(augmentation, layer, columns[name][:_EXAMPLE_SAMPLES])
        layers.append((keys_in_order(list(columns), inputs, "input").index(name), layer))
    return Additions(tuple(layers), _teacher(work))


def _augmented_input(name: str | None, names: list[str]) -> str:
    """The name itself, or the only one there is."""
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise SpecError(
            "the training plan augments an input that the data set does not have",
            required="one of " + ", ".join(names),
            received="no name, and there are several inputs" if name is None else repr(name),
            remedy="set `input` in training.augmentation",
        )
    return name


def _teacher(work: ModelWork[AnyTraining]) -> Any:
    """The trained float model of a plan with distillation; None without one, and in the step that trains it."""
    plan = work.options.plan.distillation
    if plan is None or not work.options.learns_from_trained:
        return None
    if "trained" not in work.spec.inputs:
        raise SpecError(
            f"{work.spec.step_id}: the training plan distils, and there is no model to learn from",
            required="the input `trained`: the float model that the train step made",
            received=", ".join(work.spec.inputs),
            remedy="give the step inputs.trained, or leave training.distillation out",
        )
    from tfmot_ops import core
    from tfmot_ops.core.training.train_step import INT8_EPSILON, Teacher

    trained = core.strip(core.load_model(work.path("trained")))
    outputs = work.data.task.outputs_are(trained, work.first(work.data.x_train, _EXAMPLE_SAMPLES, trained))
    settings = f"weight {plan.weight:g}, temperature {plan.temperature:g}"
    work.say(f"learns from the outputs of the trained model {trained.name}, too: {settings}")
    if work.options.has_int8_outputs:
        return Teacher(trained, outputs, plan, INT8_EPSILON)
    return Teacher(trained, outputs, plan)
