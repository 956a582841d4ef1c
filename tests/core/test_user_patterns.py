"""How users put models together: shared parts, dicts, old files, patterns of zeros; what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Quantization, Recipe, Schedule, Sparsity
from tfmot_ops.core import keras
from tfmot_ops.core.quantization.without_rounding import outputs_without_fake_quant
from tfmot_ops.errors import UnsupportedModelError

pytestmark = pytest.mark.slow

L = keras.layers
SPARSE = core.recipes.decode("sparse50_wi8_ai8")


def _images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16, *(shape or (8, 8, 3)))).astype(np.float32)


def _siamese() -> Any:
    """An encoder called twice, and a third time within another nested model; dicts on both sides."""
    encoder = keras.Sequential(
        [L.Input((8, 8, 3)), L.Conv2D(8, 3, activation="relu", name="conv"), L.GlobalAveragePooling2D()], name="encoder"
    )
    image = keras.Input((8, 8, 3))
    classifier = keras.Model(image, L.Dense(3, name="scores")(encoder(image)), name="classifier")
    inputs = {name: keras.Input((8, 8, 3), name=name) for name in ("right", "left")}
    a, b = encoder(inputs["left"]), encoder(inputs["right"])
    return keras.Model(inputs, {"distance": L.Dense(1)(L.Subtract()([a, b])), "label": classifier(inputs["left"])})


def _shared_layers() -> Any:
    inputs = keras.Input((8, 8, 3))
    conv, relu = L.Conv2D(8, 3, padding="same", name="shared"), L.ReLU()
    x = L.Conv2D(8, 1)(inputs)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(relu(conv(relu(conv(x)))))))


def _several_inputs() -> Any:
    image, table = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="table")
    x = L.GlobalMaxPooling2D()(L.Conv2D(8, 3, activation="relu")(image))
    x = L.Concatenate()([x, L.Dense(4, activation="relu")(table)])
    return keras.Model([image, table], [L.Dense(3, activation="softmax")(x), L.Dense(1)(x)])


def _preprocessing() -> Any:
    """Augmentation takes part in training only: calibration and comparison see the images as they are."""
    x = inputs = keras.Input((8, 8, 3))
    for layer in (L.Resizing(16, 16), L.CenterCrop(12, 12), L.Rescaling(1 / 127.5, -1)):
        x = layer(x)
    x = L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    for layer in (L.RandomFlip(seed=1), L.RandomRotation(0.1, seed=2), L.RandomContrast(0.2, seed=3)):
        x = layer(x)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(x))))


def _multiplier_and_groups() -> Any:
    inputs = keras.Input((8, 8, 4))
    x = L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(inputs)
    x = L.Conv2D(16, 3, groups=2, activation="relu", name="grouped")(x)
    x = L.SeparableConv2D(8, 3, depth_multiplier=2)(x)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


def _through_the_chain(model: Any, recipe: Recipe) -> bytes:
    x = tf.nest.map_structure(lambda tensor: _images(*tensor.shape[1:]), model.input)
    stripped = core.strip(core.prune(model, recipe)[0])
    quantized, _ = core.quantize(stripped, recipe, x)
    ordered = [x[name] for name in quantized.input_names] if isinstance(x, dict) else tf.nest.flatten(x)
    reference = tf.nest.flatten(stripped(x, training=False))
    for a, b in zip(reference, tf.nest.flatten(outputs_without_fake_quant(quantized, ordered)), strict=True):
        assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()
    quantized.compile("sgd", "mse")
    quantized.train_on_batch(x, tf.nest.map_structure(lambda y: np.zeros(y.shape, np.float32), stripped(x)))
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0), profile.op_counts
    # A file takes its inputs in the model's order.
    answers = core.predict(quantized, x), core.predict(data, ordered if len(ordered) > 1 else ordered[0])
    flat = [np.concatenate([np.ravel(part) for part in tf.nest.flatten(each)]) for each in answers]
    assert core.sqnr_db(*flat) >= 20.0
    assert set(core.assert_sparsity(quantized, recipe))
    return data


@pytest.mark.parametrize(
    "make",
    [_siamese, _shared_layers, _several_inputs, _preprocessing, _multiplier_and_groups],
    ids=lambda f: f.__name__[1:],
)
def test_fully_int8(make: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    _through_the_chain(make(), SPARSE)


def _initializer(name: str) -> dict[str, Any]:
    return {"class_name": name, "config": {}}


def _old_layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    kernel = {"kernel_initializer": _initializer("GlorotUniform"), "bias_initializer": _initializer("Zeros")}
    none = dict.fromkeys(("kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint"))
    common = {**kernel, **none, "use_bias": True} if kind in {"Conv2D", "Dense"} else {}
    return {"class_name": kind, "config": {"name": name, "trainable": True, **common, **config}}


def _old_file(path: Path, version: str) -> dict[str, np.ndarray]:
    """A file as Keras 2.2 wrote it for a sequential model, and Keras 2.3 and 2.4 for a functional one."""
    conv = _old_layer(
        *("Conv2D", "conv"), batch_input_shape=[None, 8, 8, 3], dtype="float32", filters=8, kernel_size=[3, 3],
        strides=[1, 1], padding="valid", data_format="channels_last", dilation_rate=[1, 1], activation="relu",
    )  # fmt: skip
    flat = _old_layer("Flatten", "flat", data_format="channels_last")
    dense = _old_layer("Dense", "scores", units=3, activation="softmax")
    layers = [conv, flat, dense]
    config: dict[str, Any] = {"class_name": "Sequential", "config": {"name": "old", "layers": layers}}
    if version != "2.2.4":
        image = {"name": "image", "batch_input_shape": [None, 8, 8, 3], "dtype": "float32", "sparse": False}
        before = [{"class_name": "InputLayer", "config": image}]
        calls = ["", "image", "conv", "flat"]
        layers = [
            {**layer, "name": layer["config"]["name"], "inbound_nodes": [[[call, 0, 0, {}]]] if call else []}
            for layer, call in zip([*before, *layers], calls, strict=True)
        ]
        ends = {"input_layers": [["image", 0, 0]], "output_layers": [["scores", 0, 0]]}
        kind = {"2.3.1": "Model", "2.4.0": "Functional"}[version]
        config = {"class_name": kind, "config": {"name": "old", "layers": layers, **ends}}
    optimizer = {"lr": 0.01, "momentum": 0.5, "decay": 0.0, "nesterov": False}
    if version == "2.4.0":
        optimizer = {"name": "SGD", "learning_rate": optimizer.pop("lr"), **optimizer}
    training = {
        "optimizer_config": {"class_name": "SGD", "config": optimizer},
        "loss": "categorical_crossentropy",
        "metrics": ["accuracy"],
        "sample_weight_mode": None,
        "loss_weights": None,
    }
    rng = np.random.default_rng(0)
    weights = {
        "conv": {"conv/kernel:0": rng.normal(size=(3, 3, 3, 8)), "conv/bias:0": np.zeros(8)},
        "flat": {},
        "scores": {"scores/kernel:0": rng.normal(size=(288, 3)), "scores/bias:0": np.zeros(3)},
    }
    with h5py.File(path, "w") as file:
        file.attrs.update(keras_version=version.encode(), backend=b"tensorflow")
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["training_config"] = json.dumps(training).encode()
        group = file.create_group("model_weights")
        group.attrs.update(keras_version=version.encode(), backend=b"tensorflow")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, values in weights.items():
            part = group.create_group(name)
            part.attrs["weight_names"] = [each.encode() for each in values]
            for each, value in values.items():
                part.create_dataset(each, data=value.astype(np.float32))
    return weights["conv"]


@pytest.mark.parametrize("version", ["2.2.4", "2.3.1", "2.4.0"])
def test_a_file_of_old_years(version: str, tmp_path: Path) -> None:
    weights = _old_file(tmp_path / "old.h5", version)
    model = core.load_model(tmp_path / "old.h5")
    assert np.allclose(model.get_layer("conv").get_weights()[0], weights["conv/kernel:0"])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert model.optimizer.get_config()["momentum"] == 0.5
    _through_the_chain(model, SPARSE)


def test_a_subclassed_part_that_branches_on_values_is_refused_with_its_path_and_a_remedy() -> None:
    class Part(keras.Model):
        def call(self, inputs: Any) -> Any:
            if tf.reduce_sum(inputs) > 0.0:
                return inputs * 2.0
            return inputs

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Part(name="part")(L.Dense(3)(inputs)))
    ptq = core.recipes.decode("wi8_ai8_ptq")
    for use in (core.normalize, lambda m: core.quantize(m, SPARSE), lambda m: core.export_tflite(m, ptq)):
        with pytest.raises(UnsupportedModelError, match=r"'part'(.|\n)*subclassed(.|\n)*functional API"):
            use(model)


def _dense_net() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([L.Input((16,)), L.Dense(32, activation="relu", name="wide"), L.Dense(4, name="scores")])
    model.compile("sgd", "mse")
    return model


def test_blocks_are_zero_as_one_to_the_int8_file() -> None:
    recipe = Recipe(name="blocks", sparsity=Sparsity(ratio=0.5, block=(4, 4)), quantization=Quantization())
    profile = core.profile_tflite(_through_the_chain(_dense_net(), recipe))
    assert max(profile.sparsity.values()) >= 0.49
    stripped = core.strip(core.prune(_dense_net(), recipe)[0])
    # One block wide: tfmot cannot prune the kernel of the second layer.
    assert set(core.assert_sparsity(stripped, recipe)) == {"wide"}
    kernel = stripped.get_layer("wide").get_weights()[0]
    zeros = (kernel == 0).reshape(4, 4, 8, 4).sum(axis=(1, 3))
    assert set(np.unique(zeros)) == {0, 16}
    assert (zeros == 16).mean() == 0.5


# Of the polynomial, after step 23 of 40: 0.75 - 0.5 * (17 / 40) ** 3.
@pytest.mark.parametrize(("schedule", "on_its_way"), [(Schedule.CONSTANT, 0.75), (Schedule.POLYNOMIAL, 0.712)])
def test_a_schedule_reaches_its_ratio(schedule: Schedule, on_its_way: float) -> None:
    sparsity = Sparsity(ratio=0.75, schedule=schedule, initial_ratio=0.25)
    recipe = Recipe(name="scheduled", sparsity=sparsity)
    pruned, _ = core.prune(_dense_net(), recipe, end_step=40)
    x, y = _images(16), np.zeros((16, 4), np.float32)
    found = []
    for _ in range(2):
        pruned.fit(x, y, batch_size=4, epochs=6, verbose=0, callbacks=core.pruning_callbacks())
        found.append(core.layer_sparsity(core.strip(pruned))["wide"])
    assert found == pytest.approx([on_its_way, 0.75], abs=0.01)
