"""What a model is besides its weights: frozen layers, own functions, losses, constraints, names, its class."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.graph.rebuild import copy_layer
from tfmot_ops.errors import UnsupportedModelError

pytestmark = pytest.mark.slow

L = keras.layers
INT8 = core.recipes.decode("wi8_ai8")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8, 8, 4)).astype(np.float32)


def _model(*layers: Any, cls: type = keras.Model) -> Any:
    x = inputs = keras.Input((8, 8, 4))
    for layer in layers:
        x = layer(x)
    return cls(inputs, L.Dense(3, name="d")(L.GlobalAveragePooling2D()(x)))


def _reloaded(model: Any, path: Any) -> Any:
    core.save_model(model, path)
    return core.load_model(path)


# --- frozen layers -----------------------------------------------------------------------------------------------


def _freeze_before(model: Any) -> None:
    model.get_layer("c").trainable = model.get_layer("t").trainable = False


def _freeze_after(model: Any) -> None:
    model.get_layer("quant_c").trainable = model.get_layer("quant_t").layer.trainable = False


@pytest.mark.parametrize(("before", "suffix"), [(True, ""), (False, ".h5")])
def test_frozen_kernels_stay_and_are_saved_once(tmp_path, before: bool, suffix: str) -> None:
    model = _model(L.Conv2D(4, 3, activation="relu", name="c"), L.Conv2DTranspose(4, 3, name="t"))
    if before:
        _freeze_before(model)
    model.compile("sgd", "mse")
    quantized, _ = core.quantize(model, INT8, X)
    if not before:
        _freeze_after(quantized)
        quantized.compile("sgd", "mse")
    values = {name: quantized.get_layer(f"quant_{name}").layer.get_weights() for name in "ctd"}
    quantized.fit(X, np.ones((16, 3)), verbose=0)
    for name in "ctd":
        same = all(map(np.array_equal, values[name], quantized.get_layer(f"quant_{name}").layer.get_weights()))
        assert same == (name in "ct")
    weights = [id(weight) for weight in quantized.weights]
    assert len(weights) == len(set(weights))
    assert [weight.name for weight in quantized.trainable_weights] == ["quant_d/kernel:0", "quant_d/bias:0"]
    loaded = _reloaded(quantized, tmp_path / f"m{suffix}")
    np.testing.assert_array_equal(loaded(X), quantized(X))
    assert len(loaded.trainable_weights) == 2


def test_a_frozen_part_of_a_layer_stays_frozen() -> None:
    inputs = keras.Input((10, 3))
    both = L.Bidirectional(L.LSTM(2), name="both")
    model = keras.Model(inputs, L.Dense(2)(both(inputs)))
    both.forward_layer.trainable = False
    copies = core.normalize(model), core.quantize(model, INT8)[0], core.prune(model, core.recipes.decode("sparse50"))[0]
    assert [len(copy.trainable_weights) for copy in copies] == [5, 5, 5]


# --- activations of the user's own -------------------------------------------------------------------------------


def _halved(x: Any) -> Any:
    return tf.nn.relu(x) * 0.5


@pytest.mark.parametrize("cls", [L.Conv2D, L.SeparableConv2D, L.Conv2DTranspose])
@pytest.mark.parametrize(
    "make",
    [lambda: _halved, lambda: lambda x: tf.nn.relu(x) - 1.0, lambda: tf.sin, lambda: L.Activation("swish")],
    ids=["function", "lambda", "tensorflow", "layer"],
)
def test_an_activation_without_a_name_is_kept(make: Any, cls: Any) -> None:
    model = _model(cls(4, 3, activation=make(), name="c"))
    np.testing.assert_allclose(core.normalize(model)(X), model(X), atol=1e-6)
    np.testing.assert_allclose(core.strip(core.prune(model, core.recipes.decode("sparse50"))[0])(X).shape, (16, 3))
    quantized, reports = core.quantize(model, INT8, X)
    assert core.sqnr_db(model(X).numpy(), quantized(X).numpy()) > 20
    assert [report.path for report in reports if report.outcome == "kept_float"] == []


@pytest.mark.parametrize("cls", [L.Conv2D, L.SeparableConv2D, L.Conv2DTranspose])
@pytest.mark.parametrize("make", [L.PReLU, lambda: L.LeakyReLU(0.1), lambda: L.ReLU(4.0)], ids=["prelu", "leaky", "4"])
def test_a_layer_as_activation_is_a_layer_with_its_weights(tmp_path, make: Any, cls: Any) -> None:
    model = _model(cls(4, 3, activation=make(), name="c"))
    for weight in model.get_layer("c").activation.weights:
        weight.assign(RNG.uniform(size=weight.shape))
    np.testing.assert_allclose(core.normalize(model)(X), model(X), atol=1e-6)
    quantized, reports = core.quantize(model, INT8, X)
    assert not [report for report in reports if report.outcome == "kept_float"]
    np.testing.assert_array_equal(_reloaded(quantized, tmp_path / "m.h5")(X), quantized(X))
    assert core.profile_tflite(core.export_tflite(quantized, INT8)).float_ops == 0


def test_a_function_with_the_name_of_one_of_keras_is_refused() -> None:
    def relu(x: Any) -> Any:
        return tf.nn.relu(x) * 0.5

    with pytest.raises(UnsupportedModelError, match=r"'c': its activation 'relu'(.|\n)*rename"):
        core.normalize(_model(L.Conv2D(4, 3, activation=relu, name="c")))


def test_a_layer_that_cannot_be_copied_is_named() -> None:
    class Scale(L.Layer):
        def __init__(self, factor: float, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.factor = factor

        def get_config(self) -> dict[str, Any]:
            return {"name": self.name}

    with pytest.raises(UnsupportedModelError, match=r"'scale'(.|\n)*get_config"):
        copy_layer(Scale(2.0, name="scale"), "scale")


# --- losses and constraints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "swish", "linear"])
@pytest.mark.parametrize("regularizer", ["l2", keras.regularizers.L1L2(0.1, 0.2)], ids=["l2", "l1l2"])
def test_the_result_of_a_layer_is_regularised_as_before(tmp_path, regularizer: Any, activation: str) -> None:
    model = _model(L.Conv2D(4, 3, activation=activation, activity_regularizer=regularizer))
    quantized, _ = core.quantize(model, INT8, X)
    models = model, core.normalize(model), quantized, _reloaded(quantized, tmp_path / "m.h5")
    losses = []
    for each in models:
        each(X)
        losses.append(float(sum(each.losses)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == pytest.approx(losses[0], rel=0.02)
    assert losses[3] == losses[2]
    assert core.profile_tflite(core.export_tflite(quantized, INT8)).requantize_ops == 0


def test_a_regulariser_of_a_result_that_no_file_holds_is_named(caplog) -> None:
    class Fourth(keras.regularizers.Regularizer):
        def __call__(self, x: Any) -> Any:
            return tf.reduce_sum(x**4)

        def get_config(self) -> dict[str, Any]:
            return {}

    model = _model(L.Conv2D(4, 3, activation="relu", activity_regularizer=Fourth(), name="c"))
    with caplog.at_level(logging.WARNING):
        normal = core.normalize(model)
    assert "c: a saved file of the model will not have the activity regulariser" in caplog.text
    model(X)
    normal(X)
    assert float(sum(normal.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-6)


_AXIS = {"kernel_constraint": keras.constraints.MaxNorm(0.1, axis=0), "bias_constraint": "non_neg"}
_AXIS |= {"kernel_regularizer": "l2", "bias_regularizer": "l1"}


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (
            lambda: L.Dense(3, **{**_AXIS, "kernel_regularizer": keras.regularizers.OrthogonalRegularizer(0.1)}),
            (8, 8, 4),
        ),
        (lambda: L.TimeDistributed(L.Dense(3, **_AXIS)), (10, 4)),
        (lambda: L.TimeDistributed(L.Dense(3, activity_regularizer="l2")), (10, 4)),
        (lambda: L.Conv1DTranspose(3, 3, **_AXIS), (10, 4)),
        (lambda: L.Conv2D(8, 3, groups=4, **_AXIS), (8, 8, 4)),
        (
            lambda: L.SeparableConv2D(
                3, 3, depthwise_constraint="max_norm", pointwise_constraint="unit_norm", bias_regularizer="l1"
            ),
            (8, 8, 4),
        ),
    ],
    ids=["dense_on_image", "time_distributed", "activity", "conv1d_transpose", "groups", "separable"],
)
def test_regularisers_and_constraints_of_weights_stay(tmp_path, make: Any, shape: tuple[int, ...]) -> None:
    model = keras.Sequential([keras.Input(shape), make()])
    model.compile("sgd", "mse")
    x = RNG.normal(size=(16, *shape)).astype(np.float32)
    y = np.zeros((16, *model.output_shape[1:]), np.float32)
    normal = core.normalize(model)
    quantized = _reloaded(core.quantize(model, INT8, x)[0], tmp_path / "m.h5")
    constrained = [sum(v.constraint is not None for v in m.trainable_variables) for m in (model, normal, quantized)]
    assert len(set(constrained)) == 1
    for each in (model, normal):
        each.fit(x, y, epochs=2, batch_size=16, verbose=0)
        each(x)  # the losses of a traced step cannot be read
    assert float(sum(normal.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-5)
    np.testing.assert_allclose(normal(x), model(x), atol=1e-6)


# --- the model itself --------------------------------------------------------------------------------------------


class Answer(keras.Model):
    """Trains in its own way."""

    def train_step(self, data: Any) -> Any:
        """Nothing but the answer."""
        del data
        return {"answer": tf.constant(42.0)}


class Wide(keras.Model):
    """Has a constructor of its own."""

    def __init__(self, width: int) -> None:
        inputs = keras.Input((4,))
        super().__init__(inputs, L.Dense(width)(inputs))


def test_a_train_step_of_the_users_own_stays(tmp_path) -> None:
    model = _model(L.Conv2D(4, 3, activation="relu"), cls=Answer)
    model.compile("sgd", "mse")
    quantized, _ = core.quantize(model, INT8, X)
    with keras.saving.custom_object_scope({"Answer": Answer}):
        loaded = _reloaded(quantized, tmp_path / "m.h5")
    for each in (core.normalize(model), quantized, loaded):
        assert type(each) is Answer
        assert each.fit(X, np.ones((16, 3)), verbose=0).history == {"answer": [42.0]}
    assert core.profile_tflite(core.export_tflite(quantized, INT8)).float_ops == 0


def test_what_a_rewritten_model_leaves_out_is_said(caplog) -> None:
    model = _model(L.Conv2D(4, 3))
    model.add_loss(tf.reduce_mean(model.output**2))
    with caplog.at_level(logging.WARNING):
        core.normalize(model)
        core.normalize(Wide(2))
    assert "leaves out what add_loss and add_metric added to the model (add_loss" in caplog.text
    assert "is not of the class Wide" in caplog.text


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [L.Conv2D(4, 3, name="stem/conv"), L.Conv2D(4, 3, name="stem_conv"), L.Conv2D(4, 1, name="b/conv")],
        lambda: [L.Conv2D(4, 3, activation="relu", name="c"), L.Conv2D(4, 3, name="c_relu")],
        lambda: [keras.Sequential([L.Conv2D(4, 3, name=name) for name in ("image", "x")], name="inner")],
    ],
    ids=["slash", "fused", "input"],
)
def test_names_that_would_meet_are_kept_apart(tmp_path, layers: Any) -> None:
    x = inputs = keras.Input((8, 8, 4), name="image" if len(made := layers()) == 1 else None)
    for layer in made:
        x = layer(x)
    model = keras.Model(inputs, L.Flatten()(x))
    normal = core.normalize(model)
    np.testing.assert_allclose(normal(X), model(X), atol=1e-6)
    names = {layer.name for layer in normal.layers}
    assert names >= {layer.name for layer in made if "/" not in layer.name and not isinstance(layer, keras.Model)}
    quantized, _ = core.quantize(model, INT8, X)
    np.testing.assert_array_equal(_reloaded(quantized, tmp_path / "m.h5")(X), quantized(X))


def test_labels_by_the_outputs_names_fit_every_rewritten_model(tmp_path) -> None:
    inputs = keras.Input((8, 8, 4))
    x = L.Flatten()(L.Conv2D(4, 3, activation="relu")(inputs))
    model = keras.Model(inputs, [L.Dense(3, activation="softmax", name="cls")(x), L.Dense(1, name="reg")(x)])
    model.compile(
        "adam",
        loss={"cls": "sparse_categorical_crossentropy", "reg": "mse"},
        loss_weights={"reg": 0.5},
        metrics={"cls": "accuracy", "reg": [keras.metrics.MeanAbsoluteError()]},
    )
    y = {"cls": RNG.integers(0, 3, 16), "reg": RNG.normal(size=(16, 1)).astype(np.float32)}
    expected = set(model.fit(X, y, verbose=0).history)
    pruned, _ = core.prune(model, core.recipes.decode("sparse50"))
    quantized, _ = core.quantize(model, INT8, X)
    for each in (core.normalize(model), pruned, core.strip(pruned), quantized):
        callbacks = core.pruning_callbacks() if each is pruned else []
        assert set(each.fit(X, y, callbacks=callbacks, verbose=0).history) == expected
    # A file has no names of outputs; places do as well there.
    loaded = _reloaded(quantized, tmp_path / "m.h5")
    places = list(y.values())
    assert loaded.evaluate(X, places, verbose=0) == quantized.evaluate(X, places, verbose=0)
    assert core.strip(_reloaded(pruned, tmp_path / "p.h5")).output_names == ["cls", "reg"]


def test_names_of_metrics_have_their_output_once_however_often_a_model_is_saved(tmp_path) -> None:
    """The steps save a model between each two of them, and its wrappers rename its outputs."""
    inputs = L.Input((8, 8, 4))
    flat = L.Flatten()(inputs)
    heads = [L.Dense(3, activation="softmax", name="big"), L.Dense(1, name="big_box")]
    model = keras.Model(inputs, [head(flat) for head in heads])
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    losses = {"big": "sparse_categorical_crossentropy", "big_box": "mse"}
    model.compile("sgd", losses, metrics={"big": accuracy, "big_box": "mae"})
    x, y = X[:16], [np.arange(16) % 3, np.ones(16, np.float32)]
    model.fit(x, y, verbose=0)
    pruned, _ = core.prune(_reloaded(model, tmp_path / "m.h5"), core.recipes.decode("sparse50"), end_step=1)
    pruned.fit(x, y, verbose=0, callbacks=core.pruning_callbacks())
    stripped = core.strip(_reloaded(pruned, tmp_path / "p.h5"))
    stripped.fit(x, y, verbose=0)
    quantized, _ = core.quantize(_reloaded(stripped, tmp_path / "s.h5"), INT8, x)
    names = quantized.fit(x, y, verbose=0).history.keys()
    assert list(names) == ["loss", "big_loss", "big_box_loss", "big_accuracy", "big_box_mae"]
