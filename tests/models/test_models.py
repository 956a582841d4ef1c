"""Models by name: they fit the data set, repeat with the seed, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmot_ops.contract import BUILTIN_MODELS
from tfmot_ops.core.keras.compiling import is_compiled
from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.saving.files import save_model
from tfmot_ops.data.splits import load_dataset
from tfmot_ops.errors import SpecError, UnsupportedModelError
from tfmot_ops.models.applications import application_constructors, smallest_side
from tfmot_ops.models.by_name import available_models, build, build_model
from tfmot_ops.tasks.by_name import task_named
from tfmot_ops.tasks.task import Facts

layers = keras.layers


def class_names(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def outputs(model: Any, shape: tuple[int, int, int]) -> np.ndarray:
    return model.predict(np.random.default_rng(0).random((2, *shape), dtype=np.float32), verbose=0)


#: Built-in models for images, and a shape of a sample for each of the others.
FOR_IMAGES = ("resnet8", "mobilenet_like", "ds_cnn", "unet")
SHAPES = {**dict.fromkeys(FOR_IMAGES, (8, 8, 1)), "conv1d": (20, 3), "lstm": (20, 3), "mlp": (6,)}


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (96, 64, 3)], ids=str)
@pytest.mark.parametrize("name", FOR_IMAGES)
def test_built_ins_fit_the_data_set(name: str, shape: tuple[int, int, int]):
    model = build_model(name, shape, 7, seed=0)
    scores = outputs(model, shape)
    assert scores.shape == (2, 7)
    np.testing.assert_allclose(scores.sum(-1), 1.0, atol=1e-5)
    assert not is_compiled(model)


def test_built_ins_are_plain_layers():
    plain = {"InputLayer", "Conv2D", "BatchNormalization", "ReLU", "Add", "GlobalAveragePooling2D", "Dense"}
    assert set(class_names(build_model("resnet8", (8, 8, 1), 10, seed=0))) == plain
    assert set(class_names(build_model("mobilenet_like", (8, 8, 1), 10, seed=0))) == plain | {"DepthwiseConv2D"}


def test_resnet8_has_8_weight_layers_on_its_main_path():
    names = [layer.name for layer in build_model("resnet8", (32, 32, 3), 10, seed=0).layers if layer.count_params()]
    assert len([name for name in names if name == "scores" or ("conv" in name and "shortcut" not in name)]) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_seed_decides_the_weights(name: str):
    first, second, other = (build_model(name, SHAPES[name], 10, seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_like"])
def test_built_ins_learn_the_digits(name: str):
    from tfmot_ops.core.training.loop import fit
    from tfmot_ops.tasks.classification import compile_default

    data = load_dataset("digits")
    model = build_model(name, data.input_shape, data.num_classes, seed=0)
    compile_default(model, 0.005)
    validation = (data.x_validation, data.y_validation)
    history = fit(model, data.x_train, data.y_train, validation, epochs=6, batch_size=32, seed=0)
    assert history["val_accuracy"][-1] > 0.9


# --- tf_keras.applications ---------------------------------------------------------------------------------------


def test_all_71_constructors_are_found():
    constructors = application_constructors()
    assert len(constructors) == 71
    assert {"MobileNetV2", "ConvNeXtTiny", "NASNetMobile", "Xception"} < set(constructors)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "Xception"])
def test_the_smallest_side_is_the_constructors(name: str):
    side, constructor = smallest_side(name), application_constructors()[name]
    constructor(input_shape=(side, side, 3), weights=None, include_top=False)
    with pytest.raises(ValueError, match=f"at least {side}x{side}"):
        constructor(input_shape=(side - 1, side - 1, 3), weights=None, include_top=False)


@pytest.mark.slow
def test_small_grey_images_are_fitted_in_one_flat_graph():
    model = build_model("application:MobileNetV2", (28, 28, 1), 10, seed=0)
    assert class_names(model)[:4] == ["InputLayer", "ZeroPadding2D", "Concatenate", "Conv2D"]
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.get_layer("to_rgb").output_shape == (None, 32, 32, 3)
    assert outputs(model, (28, 28, 1)).shape == (2, 10)


def test_tiny_images_are_repeated_and_lose_nothing():
    model = build_model("application:MobileNet", (9, 12, 3), 4, seed=0)
    prelude = keras.Model(model.inputs, model.get_layer("pad").output)
    image = np.random.default_rng(0).random((1, 9, 12, 3), dtype=np.float32)
    fitted = prelude.predict(image, verbose=0)
    assert fitted.shape == (1, 32, 32, 3)
    assert np.array_equal(fitted[:, 2:29, 4:28], image.repeat(3, axis=1).repeat(2, axis=2))


def test_images_of_the_right_size_are_left_alone():
    model = build_model("application:MobileNet", (40, 32, 3), 4, seed=0)
    assert class_names(model)[:2] == ["InputLayer", "Conv2D"]


def test_other_channels_are_mixed():
    model = build_model("application:MobileNet", (32, 32, 2), 4, seed=0)
    assert outputs(model, (32, 32, 2)).shape == (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 3)], ids=str)
def test_a_constructor_that_skips_the_prelude_is_nested(shape: tuple[int, int, int]):
    model = build_model("application:RegNetX002", shape, 10, seed=0)
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    assert [layer.input_shape for layer in nested] == [(None, 32, 32, 3)]
    assert outputs(model, shape).shape == (2, 10)


def test_preprocessing_is_left_out_or_made_good():
    assert "Rescaling" not in class_names(build_model("application:MobileNetV3Small", (32, 32, 3), 10, seed=0))
    scales = [
        layer.scale
        for layer in build_model("application:EfficientNetB0", (32, 32, 3), 10, seed=0).layers
        if isinstance(layer, layers.Rescaling)
    ]
    assert float(np.prod(scales[:2])) == pytest.approx(1.0)


def test_an_unknown_application_lists_what_exists():
    with pytest.raises(SpecError, match="MobileNetV2") as caught:
        build_model("application:mobilenet_v2", (32, 32, 3), 10, seed=0)
    assert caught.value.received == "'mobilenet_v2'"


# --- saved and registered models ---------------------------------------------------------------------------------


def small(shape: tuple[int | None, ...] = (8, 8, 1), classes: int = 10) -> Any:
    inputs = layers.Input(shape)
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))))


def test_a_saved_model_is_loaded_with_its_weights(tmp_path: Path):
    saved, path = small(), tmp_path / "model.h5"
    save_model(saved, path)
    loaded = build_model(str(path), (8, 8, 1), 10, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(saved.get_weights(), loaded.get_weights(), strict=True))


def test_open_spatial_sizes_fit_any_image(tmp_path: Path):
    save_model(small((None, None, 1)), tmp_path / "model.h5")
    assert outputs(build_model(str(tmp_path / "model.h5"), (8, 8, 1), 10, seed=0), (8, 8, 1)).shape == (2, 10)


@pytest.mark.parametrize(
    ("shape", "classes", "says"),
    [((8, 8, 3), 10, "(None, 8, 8, 3)"), ((9, 8, 1), 10, "(None, 9, 8, 1)"), ((8, 8, 1), 3, "one output (None, 3)")],
    ids=["channels", "size", "classes"],
)
def test_a_saved_model_that_does_not_fit_is_refused(
    tmp_path: Path, shape: tuple[int, int, int], classes: int, says: str
):
    save_model(small(), tmp_path / "model.h5")
    with pytest.raises(UnsupportedModelError) as caught:
        build_model(str(tmp_path / "model.h5"), shape, classes, seed=0)
    assert says in caught.value.required
    assert "(None, 8, 8, 1)" in caught.value.received


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="does not exist"):
        build_model(str(tmp_path / "none.h5"), (8, 8, 1), 10, seed=0)


def test_a_registered_model_is_found_checked_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "tiny_package-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny_package\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[tfmot_ops.models]\ntiny = tiny_module:build\nwrong = tiny_module:build_wrong\n"
    )
    (tmp_path / "tiny_module.py").write_text(
        "from tfmot_ops.core.keras.pinned import keras\n"
        "def build(input_shape, num_classes):\n"
        "    layers = [keras.layers.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]\n"
        "    return keras.Sequential(layers)\n"
        "def build_wrong(input_shape, num_classes):\n"
        "    return build(input_shape, num_classes + 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert outputs(build_model("tiny", (8, 8, 1), 10, seed=0), (8, 8, 1)).shape == (2, 10)
    assert available_models()["tiny"] == "registered as tiny_module:build"
    with pytest.raises(UnsupportedModelError, match="wrong does not fit"):
        build_model("wrong", (8, 8, 1), 10, seed=0)


def test_an_unknown_name_lists_what_exists():
    assert set(BUILTIN_MODELS) < set(available_models())
    with pytest.raises(SpecError, match=r"required: one of .*resnet8.*application:<Name>"):
        build_model("resnet9", (8, 8, 1), 10, seed=0)


@pytest.mark.parametrize(("shape", "classes"), [((), 10), ((8, 0, 1), 10), ((8, 8, 1), 1)])
def test_measures_of_no_classifier_are_refused(shape: Any, classes: int):
    with pytest.raises(SpecError, match="invalid input shape or number of classes"):
        build_model("resnet8", shape, classes, seed=0)


@pytest.mark.parametrize("name", SHAPES)
def test_built_ins_have_the_head_of_the_task(name: str):
    shape = SHAPES[name]
    for task, outputs_, target in (("multilabel", 3, (3,)), ("regression", 2, (2,))):
        model = build(name, task_named(task), Facts(shape, target, outputs_), seed=0)
        values = outputs(model, shape)
        assert values.shape == (2, outputs_)
        assert model.layers[-1].activation.__name__ == ("sigmoid" if task == "multilabel" else "linear")


@pytest.mark.parametrize("shape", [(6,), (20, 3), (8, 12, 1)], ids=str)
def test_the_autoencoder_gives_samples_of_any_shape_again(shape: Any):
    model = build("autoencoder", task_named("reconstruction"), Facts(shape, shape), seed=0)
    assert outputs(model, shape).shape == (2, *shape)


def test_the_unet_gives_a_class_for_each_pixel():
    model = build("unet", task_named("segmentation"), Facts((16, 12, 3), (16, 12), 5), seed=0)
    assert outputs(model, (16, 12, 3)).shape == (2, 16, 12, 5)


@pytest.mark.parametrize(
    ("name", "task", "facts", "says"),
    [
        (
            "resnet8",
            "classification",
            Facts((20, 3), (), 4),
            "use one of conv1d, lstm, autoencoder",
        ),
        ("autoencoder", "classification", Facts((6,), (), 4), r"required: an output \(None, 4\)"),
        ("resnet8", "reconstruction", Facts((8, 8, 1), (8, 8, 1)), "has no head"),
        ("resnet8", "segmentation", Facts((8, 8, 1), (8, 8), 3), "not made for the task segmentation"),
        ("mlp", "regression", Facts({"a": (3,), "b": (4,)}, (1,), 1), r"received: samples of shape a \(None, 3\), b"),
        ("application:MobileNet", "regression", Facts((6,), (1,), 1), "takes images"),
    ],
    ids=["a series", "an autoencoder", "a classifier", "no masks", "two inputs", "an application"],
)
def test_a_built_in_that_is_not_made_for_the_data_is_refused(name: str, task: str, facts: Any, says: str):
    with pytest.raises(SpecError, match=says):
        build(name, task_named(task), facts, seed=0)


def test_a_saved_model_of_another_task_is_refused_with_both_shapes(tmp_path: Path):
    save_model(small(), tmp_path / "model.h5")
    with pytest.raises(UnsupportedModelError) as caught:
        build(str(tmp_path / "model.h5"), task_named("regression"), Facts((8, 8, 1), (2,), 2), seed=0)
    assert "for the task regression, a tf_keras model with one input (None, 8, 8, 1) and one output (None, 2)" in str(
        caught.value
    )
    assert "outputs [(None, 10)]" in caught.value.received
