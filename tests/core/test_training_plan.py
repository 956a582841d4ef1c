"""Parts of a training plan: learning rate, optimizer, clipping, early stopping, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_training import RNG, Stop, X, Y, same, small, trained

from tfmot_ops import core
from tfmot_ops.contract.training import Clipping, EarlyStopping, LearningRate, Part
from tfmot_ops.core import keras
from tfmot_ops.core.training.checkpoint import Checkpoint
from tfmot_ops.core.training.loop import fit
from tfmot_ops.core.training.optimizers import planned_optimizer, rate_schedule, replaced_optimizer
from tfmot_ops.core.training.stopping import BestEpoch
from tfmot_ops.errors import SpecError

L = keras.layers


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    best = BestEpoch(small(), EarlyStopping(metric=metric, patience=2))
    for epoch, value in enumerate([0.5, 0.9]):
        best.on_epoch_end(epoch, {metric: value})
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_sample_of_weight_0_is_not_learnt():
    weights = (Y != 2).astype(np.float32)
    after = trained(small(), batch_size=48, weights=weights)
    twisted = np.where(Y == 2, 0, Y)  # other labels where nothing is learnt
    model = small()
    fit(model, X, twisted, (X, Y), epochs=1, batch_size=48, seed=1, weights=weights)
    for one, other in zip(after, model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
