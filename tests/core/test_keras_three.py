"""Files of Keras 3, made by Keras 3 in a process of its own: what is read gives the outputs that Keras 3 gave."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from tfmot_ops import core, tfmot_utils
from tfmot_ops.core import keras
from tfmot_ops.errors import UnsafeModelError, UnsupportedModelError

MAKE = """
import sys
import keras
import numpy as np
folder, L = sys.argv[1], keras.layers
keras.utils.set_random_seed(0)
def image():
    return keras.Input((8, 8, 3), name="image")
def functional():
    x = inputs = image()
    x = L.Rescaling(2.0, offset=-1.0)(L.ZeroPadding2D(((0, 1), (1, 0)))(x))
    x = L.Conv2D(4, 3, padding="same", kernel_regularizer="l2", name="first")(x)
    x = L.LeakyReLU(negative_slope=0.1)(L.BatchNormalization(momentum=0.9)(x))
    shared = L.Conv2D(4, 1, activation="relu", name="shared")
    x = L.Add()([shared(x), shared(L.DepthwiseConv2D(3, padding="same")(x))])
    x = L.Concatenate()([x, L.SeparableConv2D(3, 3, padding="same", activation="silu")(x)])
    x = L.UpSampling2D(2, interpolation="bilinear")(L.MaxPooling2D(2)(L.SpatialDropout2D(0.1)(x)))
    x = L.PReLU(shared_axes=[1, 2])(L.Conv2DTranspose(4, 3, strides=2)(x))
    x = L.LayerNormalization()(L.AveragePooling2D(2)(x))
    flat = L.Dropout(0.2)(L.GlobalAveragePooling2D()(x))
    outputs = [L.Dense(3, activation="softmax", name="kind")(flat), L.Dense(2, name="box")(L.Flatten()(x))]
    model = keras.Model(inputs, outputs)
    model.compile("adam", ["sparse_categorical_crossentropy", "mse"])
    data = np.random.default_rng(1).random((16, 8, 8, 3))
    model.fit(data, [np.arange(16) % 3, np.ones((16, 2))], verbose=0)
    return model
MODELS = {
    "functional": functional,
    "sequential": lambda: keras.Sequential(
        [image(), L.Conv2D(4, 3, activation="relu"), L.Reshape((36, 4)), L.Conv1D(2, 3), L.Flatten(), L.Dense(3)]
    ),
    "operations": lambda: (lambda x: keras.Model(x, keras.ops.tanh(x) * 2))(image()),
    "hard_sigmoid": lambda: keras.Sequential([image(), L.Conv2D(4, 3, activation="hard_sigmoid")]),
    "half": lambda: keras.Sequential([image(), L.Conv2D(4, 3, dtype="mixed_bfloat16")]),
}
x = np.random.default_rng(0).random((4, 8, 8, 3)).astype("float32")
for name, make in MODELS.items():
    model = make()
    for suffix in (".keras", ".h5"):
        model.save(f"{folder}/{name}{suffix}")
    outputs = model.predict(x, verbose=0)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    np.savez(f"{folder}/{name}.npz", *[np.asarray(each, "float32") for each in outputs])
"""
X = np.random.default_rng(0).random((4, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras3")
    env = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-c", MAKE, str(folder)], check=False, capture_output=True, env=env, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", ["functional", "sequential"])
def test_a_graph_of_layers_that_both_have_gives_the_same_outputs(folder: Path, name: str, suffix: str) -> None:
    with pytest.warns(UserWarning, match=r"file of Keras 3\.[\d.]+: read into tf_keras, and not compiled"):
        model = core.load_model(folder / f"{name}{suffix}")
    assert isinstance(model, keras.Model)
    assert model.input_names[0] == "image"
    found = model.predict(X, verbose=0)
    stored = np.load(folder / f"{name}.npz")
    for one, other in zip(found if isinstance(found, list) else [found], stored.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_is_read_goes_through_the_chain(folder: Path) -> None:
    with pytest.warns(UserWarning, match="not compiled"):
        model = core.load_model(folder / "sequential.keras")
    model.compile("sgd", "mse")
    recipe = core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(model, recipe, X)
    assert core.profile_tflite(core.export_tflite(quantized, recipe)).int8_mac_fraction == 1.0


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", ["operations", "hard_sigmoid", "half"])
def test_what_may_not_be_alike_is_refused_as_a_file_of_keras_3(folder: Path, name: str, suffix: str) -> None:
    for load in (
        core.load_model,
        tfmot_utils.Quantize.load_model,
        lambda path: core.load_model(path, allow_unsafe=True),
    ):
        with pytest.raises(UnsupportedModelError, match="is one of Keras 3") as caught:
            load(str(folder / f"{name}{suffix}"))
        assert "saved by Keras 3." in caught.value.received
        assert "TF_USE_LEGACY_KERAS=1" in caught.value.remedy
        assert caught.value.exit_code == 3


def changed(source: Path, target: Path, edit: tuple[str, object]) -> Path:
    """A copy of the sequential `.keras` file in which the first convolution has another member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                item = next(each for each in config["config"]["layers"] if each["class_name"] == "Conv2D")
                (item if edit[0] in item else item["config"])[edit[0]] = edit[1]
                data = json.dumps(config).encode()
            new.writestr(name, data)
    return target


@pytest.mark.parametrize(
    "edit",
    [
        ("class_name", "Lambda"),
        ("class_name", "TFSMLayer"),
        ("registered_name", "mine>Conv2D"),
        ("activation", {"class_name": "function", "config": "system", "module": "os"}),
        ("activation", "deserialize"),
        ("kernel_regularizer", {"class_name": "Mine", "module": "stranger", "config": {}}),
        ("kernel_constraint", {"class_name": "Mine", "module": "stranger", "config": {}}),
        ("padding", {"class_name": "Mine", "module": "stranger", "config": {}}),
        ("dtype", {"class_name": "Mine", "module": "stranger", "config": {"name": "float64"}}),
        ("unknown", 3),
    ],
    ids=str,
)
def test_a_file_that_says_it_is_of_keras_3_reaches_nothing_else(
    folder: Path, tmp_path: Path, edit: tuple[str, object]
) -> None:
    path = changed(folder / "sequential.keras", tmp_path / "m.keras", edit)
    with pytest.raises(UnsupportedModelError, match="is one of Keras 3"):
        core.load_model(path)
    assert "stranger" not in sys.modules


def test_weights_in_other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    path, held = tmp_path / "m.keras", io.BytesIO()
    with h5py.File(held, "w") as file:
        file["layers"] = h5py.ExternalLink("/etc/passwd", "/")
    with zipfile.ZipFile(folder / "sequential.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in ("metadata.json", "config.json"):
            new.writestr(name, old.read(name))
        new.writestr("model.weights.h5", held.getvalue())
    with pytest.raises(UnsafeModelError, match="a link to another file"):
        core.load_model(path)
