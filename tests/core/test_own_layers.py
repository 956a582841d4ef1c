"""Layers of an installed package in a model file, which a command loads that imports no script of the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.errors import UnsafeModelError, UnsupportedModelError

L = keras.layers
LAYER = """
from tfmot_ops.core import keras

class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return inputs + inputs
"""
RUN = """
import sys
import numpy as np
from tfmot_ops import core

model = core.load_model(sys.argv[1])
x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
print("outputs", *model.predict(x, verbose=0)[:, 0])
recipe = core.recipes.decode("wi8_ai8")
pruned, _ = core.prune(model, core.recipes.decode("sparse50"), end_step=1)
quantized, _ = core.quantize(core.strip(pruned), recipe, x)
core.save_model(quantized, sys.argv[1].replace("m.", "q."))
print("file", len(core.export_tflite(core.load_model(sys.argv[1].replace("m.", "q.")), recipe)) > 0)
"""


def install(folder: Path, entries: str) -> None:
    """A package with entry points, as pip leaves it."""
    info = folder / "own_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own_package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[tfmot_ops.layers]\n{entries}\n")
    (folder / "own_module.py").write_text(LAYER)


class Doubled(L.Layer):
    """The layer as the script of the training has it; the file holds its bare name."""

    def call(self, inputs):
        return inputs + inputs


def save(path: Path) -> np.ndarray:
    """Save a compiled model with the layer; the outputs that the other process has to find."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([L.Input((4,)), L.Dense(6, activation="relu"), Doubled(), L.Dense(2)])
    model.compile("sgd", "mse")
    core.save_model(model, path)
    return model.predict(np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32), verbose=0)[:, 0]


@pytest.mark.slow
def test_an_entry_point_makes_a_layer_known_to_every_process(tmp_path: Path) -> None:
    install(tmp_path, "Doubled = own_module:Doubled")
    expected = save(tmp_path / "m.h5")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "m.h5")], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(("outputs", "file")))
    np.testing.assert_allclose([float(value) for value in told["outputs"].split()], expected, rtol=1e-5)
    assert told["file"] == "True"


def test_a_layer_that_nothing_names_is_refused_with_the_way_out(tmp_path: Path) -> None:
    save(tmp_path / "m.h5")
    with pytest.raises(UnsafeModelError, match=r"class Doubled .*model_config") as caught:
        core.load_model(tmp_path / "m.h5")
    assert "entry-point group tfmot_ops.layers" in caught.value.remedy
    assert caught.value.exit_code == 3
    with pytest.raises(UnsupportedModelError, match="Unknown layer: 'Doubled'") as trusted:
        core.load_model(tmp_path / "m.h5", allow_unsafe=True)
    assert "entry-point group tfmot_ops.layers" in trusted.value.remedy
    assert trusted.value.exit_code == 3


def test_a_package_that_cannot_be_imported_is_told_of_and_stops_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "Doubled = own_module:Doubled\nGone = no_such_module:Gone")
    monkeypatch.syspath_prepend(tmp_path)
    expected = save(tmp_path / "m.h5")
    with pytest.warns(UserWarning, match="no layer Gone of no_such_module:Gone: ModuleNotFoundError"):
        model = core.load_model(tmp_path / "m.h5")
    assert type(model.layers[1]).__module__ == "own_module"
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    np.testing.assert_allclose(model.predict(x, verbose=0)[:, 0], expected, rtol=1e-5)
