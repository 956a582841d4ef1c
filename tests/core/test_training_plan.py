"""Parts of a training plan: schedule, optimizer, early stopping, weights, augmentation, distillation, frozen layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Scope
from tfmot_ops.contract.training import Augmentation, Clipping, Distillation, EarlyStopping, LearningRate, Part
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.training.augmentation import augmentation_layer, available_augmentations, require_shape_kept
from tfmot_ops.core.training.checkpoint import Checkpoint
from tfmot_ops.core.training.freezing import frozen_layers, names_to_freeze
from tfmot_ops.core.training.loop import fit
from tfmot_ops.core.training.optimizers import planned_optimizer, rate_schedule, replaced_optimizer
from tfmot_ops.core.training.stopping import BestEpoch
from tfmot_ops.core.training.train_step import (
    INT8_EPSILON,
    Additions,
    Outputs,
    Teacher,
    extended_train_step,
    output_distance,
)
from tfmot_ops.errors import ScopeError, SpecError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.random((48, 6), dtype=np.float32)
Y = np.arange(48) % 3
LOSS = "sparse_categorical_crossentropy"


def small(seed: int = 0, optimizer: Any = "adam") -> Any:
    """A classifier of [N, 6] into three classes."""
    set_seed(seed)
    layers = [L.Dense(8, activation="relu", name="hidden"), L.Dense(3, activation="softmax", name="out")]
    model = keras.Sequential([L.Input((6,)), *layers])
    model.compile(optimizer, LOSS, ["accuracy"])
    return model


def trained(model: Any, epochs: int = 1, **more: Any) -> list[np.ndarray]:
    """The weights after a training."""
    fit(model, X, Y, (X, Y), **{"epochs": epochs, "batch_size": 16, "seed": 1} | more)
    return model.get_weights()


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# --- learning rate, optimizer, clipping --------------------------------------------------------------------------


def rates(plan: LearningRate, steps: list[int]) -> list[float]:
    """The rates of some weight updates of a training of 10 epochs with 20 steps each."""
    schedule = rate_schedule(plan, 0.1, 20, 10)
    return [float(schedule(tf.constant(step, tf.int64))) if callable(schedule) else schedule for step in steps]


def test_a_constant_rate_is_a_number():
    assert rate_schedule(LearningRate(), 0.1, 20, 10) == 0.1


def test_a_rate_falls_along_a_half_cosine_to_its_share():
    plan = LearningRate(schedule="cosine", final_share=0.1)
    assert rates(plan, [0, 100, 200]) == pytest.approx([0.1, 0.055, 0.01], rel=1e-5)


def test_a_rate_changes_with_the_first_step_of_an_epoch():
    plan = LearningRate(schedule="piecewise", factors={2: 0.5, 5: 0.1})
    assert rates(plan, [0, 39, 40, 99, 100, 199]) == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.01, 0.01])


def test_a_warm_up_takes_at_most_half_of_a_training():
    assert rates(LearningRate(warm_up_epochs=50), [99, 199]) == pytest.approx([0.1, 0.1])


def test_a_factor_within_the_warm_up_counts_from_its_epoch():
    plan = LearningRate(schedule="piecewise", warm_up_epochs=2, factors={1: 0.1})
    assert rates(plan, [19, 20]) == pytest.approx([0.05, 0.1 * 0.1 * 21 / 40])


@pytest.mark.parametrize("later", [{}, {"schedule": "cosine"}, {"schedule": "piecewise", "factors": {3: 0.5}}])
def test_a_warm_up_grows_from_the_first_step_and_the_schedule_follows(later: dict[str, Any]):
    plan = LearningRate(warm_up_epochs=2, **later)
    assert rates(plan, [0, 19, 39, 40]) == pytest.approx([0.0025, 0.05, 0.1, 0.1])
    cosine = 0.1 * 0.5 * (1 + np.cos(np.pi * 159 / 160))
    last = {"cosine": cosine, "piecewise": 0.05}.get(later.get("schedule", ""), 0.1)
    assert rates(plan, [199]) == pytest.approx([last], rel=1e-3)


def test_the_compiled_optimizer_is_back_after_a_training_with_another(tmp_path: Path):
    model = small(optimizer=keras.optimizers.SGD(0.5))
    schedule = rate_schedule(LearningRate(schedule="cosine", warm_up_epochs=1), 0.01, 3, 2)
    with replaced_optimizer(model, planned_optimizer(Part(name="AdamW")), schedule, Clipping(global_norm=0.5)):
        assert type(model.optimizer).__name__ == "AdamW"
        assert model.optimizer.global_clipnorm == 0.5
        trained(model, 2)
    assert (type(model.optimizer).__name__, float(model.optimizer.learning_rate)) == ("SGD", 0.5)
    core.save_model(model, tmp_path / "model.h5")
    assert same(core.load_model(tmp_path / "model.h5").get_weights(), model.get_weights())


@pytest.mark.parametrize("make", [keras.optimizers.SGD, keras.optimizers.legacy.SGD])
@pytest.mark.parametrize(
    ("clipping", "largest"),
    [(Clipping(value=1e-3), 1e-3), (Clipping(norm=1e-3), 1e-3), (Clipping(global_norm=1e-3), 1e-3)],
)
def test_clipping_limits_what_one_step_changes(make: Any, clipping: Clipping, largest: float):
    model = small(optimizer=make(1.0))
    before = model.get_weights()
    with replaced_optimizer(model, model.optimizer, None, clipping):
        after = trained(model, batch_size=48)
    changes = [np.abs(new - old) for new, old in zip(after, before, strict=True)]
    assert 0.0 < max(change.max() for change in changes) <= largest * 1.001
    norms = [np.sqrt((change**2).sum()) for change in changes]
    if clipping.norm:
        assert max(norms) == pytest.approx(largest, rel=1e-3)
    if clipping.global_norm:
        assert np.sqrt(np.square(norms).sum()) == pytest.approx(largest, rel=1e-3)


def test_an_optimizer_that_scales_the_loss_keeps_doing_so():
    scaled = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1, clipvalue=0.5))
    model = small(optimizer=scaled)
    with replaced_optimizer(model, model.optimizer, 0.01, Clipping(norm=1.0)):
        inner = model.optimizer.inner_optimizer
        assert (float(inner.learning_rate), inner.clipnorm, inner.clipvalue) == (pytest.approx(0.01), 1.0, None)
        trained(model)
    assert model.optimizer is scaled


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(name="Adm"), "unknown optimizer 'Adm'"),
        (Part(name="Optimizer"), "unknown optimizer 'Optimizer'"),
        (Part(name="Adam", arguments={"momentum": 0.9}), "momentum"),
    ],
)
def test_an_optimizer_that_does_not_exist_is_refused(part: Part, message: str):
    with pytest.raises(SpecError, match=message):
        planned_optimizer(part)


# --- early stopping ----------------------------------------------------------------------------------------------


class Dictated(keras.callbacks.Callback):
    """Reports a metric as it was told, so that the best epoch is known."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self._values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["val_loss"] = self._values[epoch]


def stopped(values: list[float], first_epoch: int = 1, **plan: Any) -> tuple[list[np.ndarray], list[str], int]:
    """(weights, messages, epochs trained) of a training with early stopping."""
    model, told = small(), []
    best = BestEpoch(model, EarlyStopping(**plan), first_epoch, told.append)
    arguments = {"epochs": len(values), "batch_size": 16, "seed": 1, "callbacks": [Dictated(values)]}
    history = fit(model, X, Y, (X, Y), **arguments, best_epoch=best)
    return model.get_weights(), told, len(history["loss"])


def test_a_training_stops_and_takes_the_best_epochs_weights():
    weights, told, epochs = stopped([1.0, 0.5, 0.7, 0.6, 0.1], patience=2)
    assert epochs == 4
    assert same(weights, trained(small(), 2))
    assert told == [
        "stops after epoch 4: val_loss has not improved for 2 epochs",
        "takes the weights of epoch 2, with the best val_loss: 0.5",
    ]


def test_a_training_that_does_not_stop_takes_the_best_epochs_weights_too():
    weights, told, epochs = stopped([1.0, 0.5, 0.7], patience=3)
    assert epochs == 3
    assert same(weights, trained(small(), 2))
    assert len(told) == 1


def test_small_changes_and_epochs_that_do_not_count():
    assert stopped([0.1, 1.0, 0.99, 0.98, 0.97], first_epoch=2, patience=2, min_delta=0.1)[2] == 4
    weights, _, _ = stopped([0.1, 1.0, 0.9], first_epoch=3, patience=1)
    assert same(weights, trained(small(), 3))


def test_the_direction_is_the_metrics():
    with pytest.raises(SpecError, match="which direction of 'val_score' is better"):
        BestEpoch(small(), EarlyStopping(metric="val_score"))
    BestEpoch(small(), EarlyStopping(metric="val_score", higher_is_better=True))
    model = small()
    best = BestEpoch(model, EarlyStopping(metric="val_accuracy", patience=1))
    best.set_model(model)
    for epoch, value in enumerate([0.5, 0.9, 0.4]):
        best.on_epoch_end(epoch, {"val_accuracy": value})
    assert best.is_over
    assert float(best.variables[0]) == 0.9


@pytest.mark.parametrize(
    ("metric", "higher"),
    [("val_glossy_accuracy", True), ("val_loss_head_accuracy", True), ("val_mean_io_u", True), ("val_auc_loss", False)],
)
def test_the_name_of_an_output_says_nothing_about_the_direction(metric: str, higher: bool):
    model = small()
    best = BestEpoch(model, EarlyStopping(metric=metric, patience=1))
    for epoch, value in enumerate([0.5, 0.9]):
        best.on_epoch_end(epoch, {metric: value}) if epoch == 0 or higher else None
    assert float(best.variables[0]) == (0.9 if higher else -0.5)


def test_wrappers_before_an_outputs_name_are_left_out():
    best = BestEpoch(small(), EarlyStopping(metric="val_box_loss"))
    best.require_metric(["val_prune_low_magnitude_box_loss"])
    best.on_epoch_end(0, {"val_prune_low_magnitude_box_loss": 0.25})
    assert float(best.variables[0]) == -0.25


def test_a_metric_that_is_not_reported_is_refused_before_training():
    model = small()
    before = model.get_weights()
    with pytest.raises(SpecError, match="cannot watch 'val_auc'") as caught:
        trained(model, best_epoch=BestEpoch(model, EarlyStopping(metric="val_auc")))
    assert caught.value.required == "one of loss, accuracy, val_loss, val_accuracy"
    assert same(model.get_weights(), before)


class Stop(Exception):  # noqa: N818 - ends a training as a kill would
    pass


@pytest.mark.parametrize("killed_after", [2, 3, 4])
def test_a_killed_training_with_early_stopping_ends_as_one_that_was_not(killed_after: int, tmp_path: Path):
    values = [1.0, 0.5, 0.7, 0.6, 0.1]
    expected, _, _ = stopped(values, patience=2)

    def attempt(on_epoch: Any) -> Any:
        model, told = small(), []
        best = BestEpoch(model, EarlyStopping(patience=2), 1, told.append)
        checkpoint = Checkpoint(tmp_path / "state.npz", told.append)
        more = {"callbacks": [Dictated(values)], "best_epoch": best, "checkpoint": checkpoint, "on_epoch": on_epoch}
        return trained(model, 5, **more), told

    def kill(epoch: int, *_: Any) -> None:
        if epoch == killed_after:
            raise Stop

    with pytest.raises(Stop):
        attempt(kill)
    weights, told = attempt(None)
    assert same(weights, expected)
    assert told[0] == f"continues after epoch {killed_after} of 5"
    assert told[1] == "stops after epoch 4: val_loss has not improved for 2 epochs"


def test_another_plan_is_another_training(tmp_path: Path):
    told: list[str] = []
    checkpoint = Checkpoint(tmp_path / "state.npz", told.append)
    trained(small(), checkpoint=checkpoint, plan="a")
    trained(small(), checkpoint=checkpoint, plan="b")
    assert told == ["starts from the beginning: the checkpoint is of another training (other training plan)"]


# --- weights -----------------------------------------------------------------------------------------------------


def test_weights_are_kerass_sample_weights():
    model, weights = small(optimizer="sgd"), RNG.random(48).astype(np.float32)
    after = trained(model, batch_size=48, weights=weights)
    plain = small(optimizer="sgd")
    plain.train_on_batch(X, Y, sample_weight=weights)
    for one, other in zip(after, plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_sample_of_weight_0_is_not_learnt():
    weights = (Y != 2).astype(np.float32)
    after = trained(small(), batch_size=48, weights=weights)
    twisted = np.where(Y == 2, 0, Y)  # other labels where nothing is learnt
    model = small()
    fit(model, X, twisted, (X, Y), epochs=1, batch_size=48, seed=1, weights=weights)
    for one, other in zip(after, model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


# --- augmentation ------------------------------------------------------------------------------------------------


def test_augmentation_is_seeded_by_the_epoch_and_not_in_the_model(tmp_path: Path):
    def attempt(epochs_killed: int = 0, checkpoint: Checkpoint | None = None) -> Any:
        model = small()
        layer = augmentation_layer(Augmentation(name="GaussianNoise", arguments={"stddev": 0.5}))

        def kill(epoch: int, *_: Any) -> None:
            if epoch == epochs_killed:
                raise Stop

        more = {"additions": Additions(((0, layer),)), "checkpoint": checkpoint, "on_epoch": kill}
        return trained(model, 4, **more)

    whole = attempt()
    assert not same(whole, trained(small(), 4))
    assert same(whole, attempt())
    checkpoint = Checkpoint(tmp_path / "state.npz")
    with pytest.raises(Stop):
        attempt(2, checkpoint)
    assert same(whole, attempt(checkpoint=checkpoint))
    assert [name for name, _ in core.graph.ir.layer_paths(small())] == ["hidden", "out"]


def test_the_model_has_its_own_step_again_after_the_training():
    model = small()
    layer = augmentation_layer(Augmentation(name="Dropout", arguments={"rate": 0.9}))
    with extended_train_step(model, Additions(((0, layer),)), []):
        assert "train_step" in vars(model)
    assert "train_step" not in vars(model)
    assert "compute_loss" not in vars(model)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "Dropout": {"rate": 0.2},
    "GaussianDropout": {"rate": 0.2},
    "GaussianNoise": {"stddev": 0.1},
    "RandomBrightness": {"factor": 0.2},
    "RandomContrast": {"factor": 0.2},
    "RandomFlip": {},
    "RandomRotation": {"factor": 0.2},
    "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomZoom": {"height_factor": 0.2},
    "SpatialDropout1D": {"rate": 0.2},
}


@pytest.mark.parametrize("name", available_augmentations())
def test_every_listed_augmentation_changes_images_and_keeps_their_shape(name: str):
    augmentation = Augmentation(name=name, arguments=ARGUMENTS[name])
    sample = RNG.random((8, 8, 3) if name == "SpatialDropout1D" else (8, 8, 8, 3), dtype=np.float32)
    layer = augmentation_layer(augmentation)
    require_shape_kept(augmentation, layer, sample)
    changed = np.asarray(layer(sample, training=True))
    assert not np.array_equal(changed, sample)
    assert 0.1 < changed.mean() < 0.9  # brightness and contrast count in [0, 1], not in [0, 255]


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"name": "Dense", "arguments": {"units": 3}}, "unknown augmentation 'Dense'"),
        ({"name": "Lambda"}, "unknown augmentation 'Lambda'"),
        ({"name": "RandomFlip", "arguments": {"mode": "around"}}, "RandomFlip of the training plan cannot be made"),
    ],
)
def test_an_augmentation_that_does_not_exist_is_refused(augmentation: dict[str, Any], message: str):
    with pytest.raises(SpecError, match=message):
        augmentation_layer(Augmentation.model_validate(augmentation))


def test_an_augmentation_of_images_does_not_fit_rows():
    augmentation = Augmentation(name="RandomFlip")
    with pytest.raises(SpecError, match="does not fit the inputs") as caught:
        require_shape_kept(augmentation, augmentation_layer(augmentation), X[:4])
    assert "Exception encountered" not in caught.value.received


@pytest.mark.parametrize("name", ["RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"])
def test_a_series_is_no_image(name: str):
    augmentation = Augmentation(name=name, arguments=ARGUMENTS[name])
    with pytest.raises(SpecError) as caught:
        require_shape_kept(augmentation, augmentation_layer(augmentation), RNG.random((4, 8, 3), np.float32))
    assert caught.value.required == "a batch of images [N, H, W, C]"


@pytest.mark.parametrize(("name", "lowest", "highest"), [("RandomContrast", -1, 1), ("RandomBrightness", 0, 255)])
def test_inputs_that_a_layer_would_clip_are_refused(name: str, lowest: int, highest: int):
    augmentation = Augmentation(name=name, arguments={"factor": 0.2})
    sample = np.linspace(lowest, highest, 4 * 8 * 8).reshape(4, 8, 8, 1)
    with pytest.raises(SpecError, match="which it would clip"):
        require_shape_kept(augmentation, augmentation_layer(augmentation), sample)


# --- distillation ------------------------------------------------------------------------------------------------


LOGITS = RNG.normal(size=(16, 3)).astype(np.float32)
OTHER = RNG.normal(size=(16, 3)).astype(np.float32)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_the_distance_of_classes_is_the_divergence_at_the_temperature():
    taught, learned = softmax(LOGITS / 3.0), softmax(OTHER / 3.0)
    expected = 9.0 * (taught * np.log(taught / learned)).sum(axis=-1).mean()
    assert float(output_distance(LOGITS, OTHER, Outputs.LOGITS, 3.0)) == pytest.approx(expected, rel=1e-5)
    from_shares = output_distance(softmax(LOGITS), softmax(OTHER), Outputs.PROBABILITIES, 3.0)
    assert float(from_shares) == pytest.approx(expected, rel=1e-4)


def test_the_distance_of_labels_is_the_divergence_of_each():
    p, q = (1.0 / (1.0 + np.exp(-values / 2.0)) for values in (LOGITS, OTHER))
    expected = 4.0 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert float(output_distance(LOGITS, OTHER, Outputs.LABEL_LOGITS, 2.0)) == pytest.approx(expected, rel=1e-4)
    shares = [1.0 / (1.0 + np.exp(-values)) for values in (LOGITS, OTHER)]
    assert float(output_distance(*shares, Outputs.LABEL_PROBABILITIES, 2.0)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("outputs", Outputs)
def test_equal_outputs_have_no_distance(outputs: Outputs):
    values = softmax(LOGITS)
    assert float(output_distance(values, values, outputs, 4.0)) == pytest.approx(0.0, abs=1e-5)
    assert float(output_distance(values, softmax(OTHER), outputs, 4.0)) > 1e-3


def test_probabilities_that_int8_rounds_to_0_are_not_far_from_small_ones():
    taught = np.array([[0.999, 0.0009, 0.0001]], np.float32)
    rounded = np.array([[255 / 256, 0.0, 0.0]], np.float32)
    assert float(output_distance(taught, rounded, Outputs.PROBABILITIES, 4.0, INT8_EPSILON)) < 1e-3
    assert float(output_distance(taught, rounded, Outputs.PROBABILITIES, 4.0)) > 0.1


def test_a_student_learns_the_teachers_classes_without_labels():
    teacher = small(seed=3)
    teacher.set_weights([3.0 * weight for weight in teacher.get_weights()])
    labels = teacher.predict(X, verbose=0).argmax(axis=1)
    student = small(seed=1, optimizer=keras.optimizers.Adam(0.02))
    before = teacher.get_weights()
    additions = Additions(teacher=Teacher(teacher, Outputs.PROBABILITIES, Distillation(weight=1.0, temperature=2.0)))
    fit(student, X, np.zeros(48, np.int64), (X, Y), epochs=60, batch_size=16, seed=1, additions=additions)
    assert (student.predict(X, verbose=0).argmax(axis=1) == labels).mean() > 0.9
    assert same(teacher.get_weights(), before)
    assert len(student.trainable_variables) == 4


class OwnStep(keras.Model):
    """A model whose step computes the compiled loss without `compute_loss`."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compiled_loss(y, self(x, training=True))
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {"loss": loss}


def test_a_step_that_cannot_learn_from_a_teacher_is_refused():
    inputs = L.Input((6,))
    model = OwnStep(inputs, L.Dense(3, activation="softmax")(inputs))
    model.compile("sgd", LOSS)
    additions = Additions(teacher=Teacher(small(), Outputs.PROBABILITIES, Distillation()))
    with pytest.raises(SpecError, match="cannot learn from another model"):
        fit(model, X, Y, None, epochs=1, batch_size=16, seed=1, additions=additions)


def test_the_validation_is_measured_by_the_compiled_loss_alone():
    teacher, student = small(seed=3), small(optimizer=keras.optimizers.SGD(1e-9))
    plain = student.evaluate(X, Y, verbose=0)[0]
    additions = Additions(teacher=Teacher(teacher, Outputs.PROBABILITIES, Distillation(weight=0.9)))
    history = fit(student, X, Y, (X, Y), epochs=1, batch_size=16, seed=1, additions=additions)
    assert history["val_loss"][0] == pytest.approx(plain, rel=1e-4)
    assert history["loss"][0] == pytest.approx(plain, rel=1e-4)  # so that both curves can be compared


# --- frozen layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", "pruned", "quantised"])
def test_frozen_layers_keep_their_weights(kind: str):
    model, recipe = small(), core.recipes.decode("sparse50_wi8_ai8")
    if kind != "float":
        model = core.prune(model, recipe)[0]
    if kind == "quantised":
        model = core.quantize(core.strip(model), recipe, X)[0]

    def kernels() -> dict[str, np.ndarray]:
        inner = [getattr(layer, "layer", layer) for layer in model.layers]
        return {layer.name: layer.get_weights()[0] for layer in inner if layer.name in {"hidden", "out"}}

    before = kernels()
    own = model.optimizer
    names = names_to_freeze(model, Scope(include=("hidden",)))
    with frozen_layers(model, names), replaced_optimizer(model, keras.optimizers.SGD(0.1)):
        trained(model, callbacks=core.pruning_callbacks() if kind == "pruned" else [])
    after = kernels()
    assert np.array_equal(np.where(after["hidden"], before["hidden"], 0.0), after["hidden"])
    assert not np.array_equal(before["out"], after["out"])
    assert all(layer.trainable for layer in model.layers)
    assert model.optimizer is own
    trained(model)
    assert not np.array_equal(after["hidden"], kernels()["hidden"])


def test_the_layers_that_quantising_makes_of_one_are_frozen_with_it():
    inputs = L.Input((6, 4))
    x = L.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    inner = keras.Sequential([L.Input((6, 4)), L.Dense(5, name="deep"), L.Dense(5, name="deep_2")], name="inner")
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="out")(L.Flatten()(inner(x))))
    names = names_to_freeze(model, Scope(include=("mha", "inner/deep")))
    quantized, _ = core.quantize(model, core.recipes.decode("wi8_ai8"), RNG.random((16, 6, 4), np.float32))
    with frozen_layers(quantized, names):
        trainable = {variable.name.partition("/")[0] for variable in quantized.trainable_variables}
    assert {name.removeprefix("quant_") for name in trainable} == {"deep_2", "out"}


def test_layers_that_were_frozen_before_stay_so():
    model = keras.Sequential([L.Input((6, 4)), L.Bidirectional(L.LSTM(3), name="both"), L.Dense(2)])
    model.layers[0].forward_layer.trainable = False
    before = [variable.name for variable in model.trainable_variables]
    with frozen_layers(model, names_to_freeze(model, Scope(include=("both",)))):
        assert len(model.trainable_variables) == 2
    assert [variable.name for variable in model.trainable_variables] == before


def test_a_selector_that_matches_no_layer_is_refused():
    with pytest.raises(ScopeError, match="'hiden' matches no layer"):
        names_to_freeze(small(), Scope(include=("hiden",)))
