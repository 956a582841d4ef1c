"""Files of models: every layer is found again, with the shapes that a trace of its call gives."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tf_keras.src.applications import convnext, inception_resnet_v2

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.saving import files as persist
from tfmot_ops.errors import ArtifactError

pytestmark = pytest.mark.slow

L = keras.layers


def _mix(shape: tuple[int | None, ...]) -> Any:
    """Layers whose formulas for a shape differ, on images of known or open size."""
    inputs = keras.Input(shape)
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu")(L.ZeroPadding2D(((0, 1), (1, 2)))(inputs))
    y = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(L.BatchNormalization()(x))
    z = L.SeparableConv2D(8, 3, padding="same", dilation_rate=2)(L.PReLU(shared_axes=[1, 2])(x))
    x = L.Concatenate()([L.Add()([y, z]), L.Multiply()([L.LeakyReLU()(y), L.LayerNormalization()(z)])])
    x = L.Conv2DTranspose(4, 3, strides=2, output_padding=1)(L.MaxPooling2D(2)(x))
    x = L.AveragePooling2D(3, strides=1, padding="same")(L.UpSampling2D(2)(L.Cropping2D(((1, 0), (0, 1)))(x)))
    x = L.Permute((2, 1, 3))(L.SpatialDropout2D(0.1)(L.Activation("tanh")(x)))
    pooled = L.Dense(3)(L.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(inputs, [L.Reshape((-1,))(pooled), L.GlobalMaxPooling2D()(x)])


@pytest.mark.parametrize("shape", [(17, 19, 3), (None, None, 3)])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_loaded_model_has_the_shapes_of_a_traced_one(tmp_path, monkeypatch, shape, quantized) -> None:
    model = _mix(shape)
    model.compile("sgd", "mse")
    if quantized:
        model, _ = core.quantize(model, core.recipes.decode("wi8_ai8"))
    core.save_model(model, tmp_path / "m.h5")
    loaded = core.load_model(tmp_path / "m.h5")
    monkeypatch.setattr(persist, "without_traces", contextlib.nullcontext)
    traced = core.load_model(tmp_path / "m.h5")
    assert len(loaded.layers) > 20
    assert [layer.output_shape for layer in loaded.layers] == [layer.output_shape for layer in traced.layers]
    assert [layer.output_shape for layer in loaded.layers] == [layer.output_shape for layer in model.layers]
    x = np.random.default_rng(0).normal(size=(2, 17, 19, 3)).astype(np.float32)
    for one, other in zip(loaded(x), traced(x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_that_an_application_keeps_to_itself_are_found(tmp_path) -> None:
    inputs = keras.Input((4,))
    x = convnext.StochasticDepth(0.0)(convnext.LayerScale(0.1, 4)(inputs))
    model = keras.Model(inputs, inception_resnet_v2.CustomScaleLayer(0.5)([x, inputs]))
    model.compile("sgd", "mse")
    core.save_model(model, tmp_path / "m.h5")
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(core.load_model(tmp_path / "m.h5")(x), model(x))


@pytest.mark.parametrize(
    ("suffix", "recipe"), [("", "sparse50_wi8_ai8"), (".h5", None), (".keras", "sparse50_wi8_ai8")], ids=str
)
def test_a_trained_model_comes_back_with_its_compile_configuration(tmp_path, suffix, recipe) -> None:
    model = _mix((17, 19, 3))
    model.compile(keras.optimizers.Adam(1e-3), "mse", metrics=[["mae"], ["mse"]])
    if recipe is not None:
        model, _ = core.quantize(model, core.recipes.decode(recipe))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 17, 19, 3)).astype(np.float32)
    y = [rng.normal(size=(4, *shape[1:])).astype(np.float32) for shape in model.output_shape]
    model.fit(x, y, verbose=0)
    core.save_model(model, tmp_path / f"m{suffix}")
    loaded = core.load_model(tmp_path / f"m{suffix}")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


def test_a_layer_of_the_users_with_a_name_of_ours_is_theirs(tmp_path) -> None:
    class Shift(L.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs + 7.0

    model = keras.Sequential([keras.Input((4,)), Shift()])
    core.save_model(model, tmp_path / "m.h5")
    with keras.saving.custom_object_scope({"Shift": Shift}):
        loaded = core.load_model(tmp_path / "m.h5")
    np.testing.assert_array_equal(loaded(np.zeros((1, 4), np.float32)), np.full((1, 4), 7.0))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", ["", ".h5", ".keras"])
def test_code_in_a_file_is_run_only_where_it_is_allowed(tmp_path, suffix) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"m{suffix}"
    inputs = keras.Input((4,))
    # A default is evaluated where the function is made, so the marker's path travels with the code.
    code = L.Lambda(lambda x, where=str(marker): (Path(where).touch(), x)[1])
    keras.Model(inputs, code(inputs)).save(path)
    marker.unlink()
    # A SavedModel comes back as the graph it holds; the others need the code.
    with contextlib.nullcontext() if not suffix else pytest.raises(ArtifactError, match="allow_unsafe"):
        core.load_model(path)
    assert not marker.exists()


class Unsaid(L.Layer):
    """A layer that does not say its arguments."""

    def get_config(self) -> Any:
        raise NotImplementedError("not said")

    def call(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize("name", ["m", "m.h5"])
def test_saving_replaces_what_is_there_and_a_failure_leaves_it(tmp_path, name) -> None:
    for bias in (1.0, 2.0):
        dense = L.Dense(1, bias_initializer=keras.initializers.Constant(bias))
        core.save_model(keras.Sequential([keras.Input((4,)), dense]), tmp_path / name)
    if name.endswith(".h5"):
        with pytest.raises(ArtifactError, match="get_config"):
            core.save_model(keras.Sequential([keras.Input((4,)), Unsaid()]), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert core.load_model(tmp_path / name)(np.zeros((1, 4), np.float32)).numpy() == 2.0


def test_the_best_epoch_that_keras_keeps_of_a_qat_training_goes_on_as_if_never_saved(tmp_path) -> None:
    rng, recipe = np.random.default_rng(0), core.recipes.decode("wi8_ai8")
    x, y = rng.normal(size=(32, 8, 8, 3)).astype(np.float32), rng.integers(0, 3, 32)
    inputs = keras.Input((8, 8, 3), name="image")
    hidden = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3)(inputs)))
    hidden = L.Reshape((36, 4))(L.Add()([hidden, L.DepthwiseConv2D(3, padding="same")(hidden)]))
    scores = L.Dense(3, activation="softmax")(L.Flatten()(L.MultiHeadAttention(2, 4)(hidden, hidden)))
    model = keras.Model(inputs, scores)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    quantized, _ = core.quantize(model, recipe, x)
    best = keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"))
    quantized.fit(x, y, epochs=2, verbose=0, callbacks=[best])
    loaded = core.load_model(tmp_path / "best.keras")
    core.save_model(loaded, tmp_path / "again.keras")
    expected = core.predict(core.export_tflite(quantized, recipe), x)
    for copy in (loaded, core.load_model(tmp_path / "again.keras")):
        # Not byte by byte: the signature has the name of the output, which a reloaded QAT model has lost.
        np.testing.assert_array_equal(core.predict(core.export_tflite(copy, recipe), x), expected)
    for each in (quantized, loaded):
        each.fit(x, y, epochs=1, verbose=0, shuffle=False)
    for one, other in zip(quantized.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
