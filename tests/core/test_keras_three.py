"""Files of Keras 3, made by Keras 3 in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfmot_ops import core, tfmot_utils
from tfmot_ops.errors import UnsupportedModelError

MAKE = """
import sys
import keras
folder = sys.argv[1]
inputs = keras.Input((8, 8, 1), name="image")
hidden = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(hidden))
model.compile("adam", "sparse_categorical_crossentropy")
model.save(f"{folder}/model.keras")
model.save(f"{folder}/model.h5")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras3")
    env = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True, capture_output=True, env=env)
    return folder


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_file_of_keras_3_is_named_as_one(folder: Path, name: str) -> None:
    for load in (
        core.load_model,
        tfmot_utils.Quantize.load_model,
        lambda path: core.load_model(path, allow_unsafe=True),
    ):
        with pytest.raises(UnsupportedModelError, match="is one of Keras 3") as caught:
            load(str(folder / name))
        assert "saved by Keras 3." in caught.value.received
        assert "TF_USE_LEGACY_KERAS=1" in caught.value.remedy
        assert caught.value.exit_code == 3
