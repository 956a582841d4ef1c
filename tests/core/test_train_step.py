"""Parts of a training plan that change the training step: augmentation, distillation, frozen layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_training import LOSS, RNG, Stop, X, Y, same, small, trained

from tfmot_ops import core
from tfmot_ops.contract import Scope
from tfmot_ops.contract.training import Augmentation, Distillation
from tfmot_ops.core import keras
from tfmot_ops.core.training.augmentation import augmentation_layer, available_augmentations, require_shape_kept
from tfmot_ops.core.training.checkpoint import Checkpoint
from tfmot_ops.core.training.freezing import frozen_layers, names_to_freeze
from tfmot_ops.core.training.loop import fit
from tfmot_ops.core.training.optimizers import replaced_optimizer
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


# --- augmentation ------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
