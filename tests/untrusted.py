"""Small model files, changed ones among them, and what a process does that loads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
from tf_keras.protobuf import saved_metadata_pb2

from tfmot_ops.core import keras

CHILD = Path(__file__).with_name("untrusted_child.py")
L = keras.layers


def small_model() -> Any:
    """An image, a tensor function, a nested layer; compiled."""
    inputs = L.Input((4, 4, 1), name="image")
    x = L.Conv2D(2, 3, activation="relu", kernel_regularizer="l2", kernel_constraint="max_norm", name="conv")(inputs)
    x = L.TimeDistributed(L.Dense(2, activation="tanh"), name="each")(L.Reshape((-1, 2), name="row")(x * 2.0 + 1.0))
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="scores")(L.Flatten(name="flat")(x)))
    rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", ["accuracy"])
    return model


def changed_h5(source: Path, path: Path, edit: Callable[[Any], None], attribute: str = "model_config") -> Path:
    """A copy of a `.h5` file with a changed description."""
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs[attribute])
        edit(config)
        file.attrs[attribute] = json.dumps(config)
    return path


def changed_keras(source: Path, path: Path, edit: Callable[[Any], None], **more: bytes) -> Path:
    """A copy of a `.keras` file with a changed description, and more members."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    edit(config)
    members |= {"config.json": json.dumps(config).encode(), **more}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def changed_saved_model(source: Path, path: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of a SavedModel in which each layer's description is changed."""
    shutil.copytree(source, path)
    file = path / "keras_metadata.pb"
    metadata = saved_metadata_pb2.SavedMetadata.FromString(file.read_bytes())
    for node in metadata.nodes:
        config = json.loads(node.metadata)
        edit(config)
        node.metadata = json.dumps(config)
    file.write_bytes(metadata.SerializeToString())
    return path


def load_in_a_child(folder: Path, watched: Path, good: Iterable[Path], files: Iterable[Path]) -> dict[str, Any]:
    """What `untrusted_child.py` says of each file, by the file's name.

    Modules in `folder / "modules"` can be imported there.
    """
    request = folder / "request.json"
    named = {"watched": watched, "good": good, "files": files}
    request.write_text(json.dumps({k: str(v) if k == "watched" else list(map(str, v)) for k, v in named.items()}))
    path = os.pathsep.join([str(folder / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])])
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    env = os.environ | {"PYTHONPATH": path, "TMPDIR": str(scratch), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(CHILD), str(request)]
    done = subprocess.run(command, env=env, cwd=scratch, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {Path(answer["path"]).name: answer for answer in answers}
