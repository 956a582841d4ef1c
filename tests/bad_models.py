"""Bad model files, the makers of bad files of any kind, and the error that has to refuse each."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from untrusted import changed_h5, changed_keras, small_model

from tfmot_ops import core

#: Nesting that the parsers of JSON and YAML do not follow.
DEEP = 20_000


class Bad(NamedTuple):
    """A bad input: the name of its reader, how it is made, and a part of the message that refuses it."""

    reader: str
    code: int
    words: str
    make: Callable[[Path], Any]


def file_of(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return make


def pipe(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def link(name: str, target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).symlink_to(target)
        return folder / name

    return make


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "model.h5"))
    return folder / "model.h5"


def _cut_graph(folder: Path) -> None:
    (folder / "saved_model.pb").write_text("x")


def folder_of(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def _saved_model(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "saved").mkdir()
        (folder / "saved" / "saved_model.pb").write_bytes(b"")
        change(folder / "saved")
        return folder / "saved"

    return make


# Model files: the good ones are made once, see `good_files`.


def good_files(folder: Path) -> None:
    """Write the good files, which the bad ones are made of, into the folder above those of the tests."""
    model = small_model()
    for suffix in (".h5", ".keras"):
        core.save_model(model, folder / f"good{suffix}")
    dense = core.keras.Sequential([core.keras.layers.Input((8,)), core.keras.layers.Dense(4)])
    (folder / "good.tflite").write_bytes(core.export_tflite(dense, core.recipes.decode("wi16f_afp32_ptq")))


def layer(config: Any, name: str) -> Any:
    return next(item for item in config["config"]["layers"] if item["config"].get("name") == name)


def _edited(suffix: str, edit: Callable[[Any], Any]) -> Callable[[Path], Path]:
    change = changed_h5 if suffix == ".h5" else changed_keras
    return lambda folder: change(folder.parent / f"good{suffix}", folder / f"model{suffix}", edit)


def _with(name: str, **values: Any) -> Callable[[Any], None]:
    return lambda config: layer(config, name)["config"].update(values)


def _instead(class_name: str, **values: Any) -> Callable[[Any], None]:
    """The layer `row`, whose input is [N, 2, 2, 2], becomes another one."""

    def edit(config: Any) -> None:
        found = layer(config, "row")
        found.update(class_name=class_name, config={"name": "row", **values})
        found.pop("module", None)

    return edit


def _on_constants(function: str, *values: Any, **named: Any) -> Callable[[Any], None]:
    config = {"name": "w", "trainable": True, "dtype": "float32", "function": function}
    call = ["_CONSTANT_VALUE", -1, *values, named]
    return lambda model: model["config"]["layers"].append(
        {"class_name": "TFOpLambda", "config": config, "name": "w", "inbound_nodes": [call]}
    )


def _waits(for_layer: str) -> Callable[[Any], None]:
    def edit(config: Any) -> None:
        layer(config, "flat")["inbound_nodes"][0][0][0] = for_layer

    return edit


def _member(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda folder: changed_keras(
        folder.parent / "good.keras", folder / "model.keras", lambda _: None, **{name: content}
    )


def bomb(name: str, suffix: str) -> Callable[[Path], Path]:
    """An archive of 90 kB with a member of 90 MB."""

    def make(folder: Path) -> Path:
        path = folder / f"bomb{suffix}"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, bytes(90 * 2**20))
        return path

    return make


def _hdf5(change: Callable[[Any], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = _edited(".h5", lambda _: None)(folder)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def _endless_weights(file: Any) -> None:
    file.create_dataset("model_weights/more", shape=(10**12,), chunks=(2**20,), dtype="f4")


def _weights_as_npz(folder: Path) -> Path:
    """An archive with its weights in another one, whose 400 kB are 400 MB of zeros."""
    with zipfile.ZipFile(folder.parent / "good.keras") as good:
        members = {name: good.read(name) for name in good.namelist() if name != "model.weights.h5"}
    weights = io.BytesIO()
    np.savez_compressed(weights, **{"_layer_checkpoint_dependencies/conv": np.zeros(4 * 10**8, np.uint8)})
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        for name, data in (members | {"model.weights.npz": weights.getvalue()}).items():
            archive.writestr(name, data)
    return folder / "model.keras"


def _last_layer_first(config: Any) -> None:
    """A chain of 600 layers, each before the one whose result it reads."""
    flat, scores = (layer(config, name) for name in ("flat", "scores"))
    names = ["flat", *(f"more{number}" for number in range(600))]
    more = [
        {"class_name": "Activation", "config": {"name": name, "activation": "linear"}, "name": name}
        | {"inbound_nodes": [[[before, 0, 0, {}]]]}
        for before, name in pairwise(names)
    ]
    scores["inbound_nodes"] = [[[names[-1], 0, 0, {}]]]
    others = [each for each in config["config"]["layers"] if each not in (flat, scores)]
    config["config"]["layers"] = [*others, scores, *reversed(more), flat]


def _link_out(folder: Path) -> None:
    """The folder of the weights is elsewhere, and a pipe is in it."""
    (folder.parent / "elsewhere").mkdir()
    os.mkfifo(folder.parent / "elsewhere" / "variables.index")
    (folder / "variables").symlink_to(folder.parent / "elsewhere")


def _much_room(folder: Path) -> Path:
    """A small model whose layer has 16 * 10^12 values for one sample."""
    layers = core.keras.layers
    parts = [layers.Input((4, 4, 1)), layers.UpSampling2D(10**6), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    core.save_model(core.keras.Sequential(parts), folder / "model.h5")
    return folder / "model.h5"


def _one_value(folder: Path) -> None:
    """A graph with a constant of 10^12 values, of which the file holds one."""
    model = saved_model_pb2.SavedModel()
    graph = model.meta_graphs.add()
    graph.object_graph_def.SetInParent()
    tensor = graph.graph_def.node.add(name="c", op="Const").attr["value"].tensor
    tensor.dtype = types_pb2.DT_FLOAT
    tensor.tensor_shape.dim.add(size=10**12)
    tensor.float_val.append(1.0)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())


MODELS = {
    "constant of 10^12 values": Bad("model", 3, "constants of", _saved_model(_one_value)),
    "output of 10^13 values": Bad("fitting model", 3, "output is too large", _much_room),
    "empty .h5": Bad("model", 4, "cannot be loaded", file_of("model.h5", b"")),
    "empty .keras": Bad("model", 4, "cannot be loaded", file_of("model.keras", b"")),
    "text as .h5": Bad("model", 4, "signature not found", file_of("model.h5", "hello" * 100)),
    "folder as .h5": Bad("model", 4, "SavedModel", folder_of("model.h5")),
    "pipe as .h5": Bad("model", 4, "a pipe, a socket or a device", pipe("model.h5")),
    "pipe as .keras": Bad("model", 4, "a pipe, a socket or a device", pipe("model.keras")),
    "socket as .h5": Bad("model", 4, "a pipe, a socket or a device", _socket),
    "device as .h5": Bad("model", 4, "a pipe, a socket or a device", link("model.h5", "/dev/zero")),
    "device as .keras": Bad("model", 4, "a pipe, a socket or a device", link("model.keras", "/dev/zero")),
    "link to itself": Bad("model", 4, "does not exist", link("model.h5", "model.h5")),
    "pipe in a SavedModel": Bad("model", 4, "a pipe", _saved_model(lambda path: os.mkfifo(path / "fingerprint.pb"))),
    "link out of a SavedModel": Bad("model", 3, "outside of the folder", _saved_model(_link_out)),
    "weights as .npz": Bad("model", 4, "has no model.weights.h5", _weights_as_npz),
    "last layer first": Bad("model", 4, "before those they read", _edited(".h5", _last_layer_first)),
    "empty SavedModel": Bad("model", 4, "cannot be loaded", _saved_model(lambda _: None)),
    "cut SavedModel": Bad("model", 4, "cannot be loaded", _saved_model(_cut_graph)),
    "no model at all": Bad("model", 4, "does not exist", lambda folder: folder / "none.h5"),
    "archive that expands": Bad("model", 3, "bytes in a file of", bomb("model.weights.h5", ".keras")),
    "config that expands": Bad("model", 3, "bytes in a file of", bomb("config.json", ".keras")),
    "version that expands": Bad("model", 3, "bytes in a file of", bomb("metadata.json", ".keras")),
    "weights that expand": Bad("model", 3, "bytes in a file of", _hdf5(_endless_weights)),
    "config nested deep": Bad("model", 4, "cannot be loaded", _member("config.json", b"[" * DEEP)),
    "version nested deep": Bad("model", 4, "cannot be loaded", _member("metadata.json", b"[" * DEEP)),
    "config of bytes": Bad("model", 4, "cannot be loaded", _member("config.json", b"\xff\xfe")),
    "config with a huge number": Bad("model", 4, "cannot be loaded", _member("config.json", b"9" * 10_000)),
    "config that is a list": Bad("model", 4, "describes no model", _member("config.json", b"[]")),
    "config that is null": Bad("model", 4, "describes no model", _member("config.json", b"null")),
    "config that is a number": Bad("model", 4, "describes no model", _member("config.json", b"3")),
    "weights that are text": Bad("model", 4, "cannot be loaded", _member("model.weights.h5", b"hello")),
    "config attribute of a number": Bad("model", 4, "", _hdf5(lambda file: file.attrs.update(model_config=5))),
    "no config attribute": Bad("model", 4, "", _hdf5(lambda file: file.attrs.pop("model_config"))),
    "falsely of Keras 3": Bad("model", 3, "Keras 3", _hdf5(lambda file: file.attrs.update(keras_version="3.1"))),
    "kernel of 10^10 units": Bad("model", 3, "bytes of variables", _edited(".h5", _with("scores", units=10**10))),
    "kernel of 10^8 units": Bad("model", 3, "bytes of variables", _edited(".keras", _with("scores", units=10**8))),
    "10^9 filters": Bad("model", 3, "bytes of variables", _edited(".h5", _with("conv", filters=10**9))),
    "units below 0": Bad("model", 4, "cannot be loaded", _edited(".h5", _with("scores", units=-5))),
    "units of a text": Bad("model", 4, "cannot be loaded", _edited(".keras", _with("scores", units="many"))),
    "units of 400 digits": Bad("model", 3, "bytes of variables", _edited(".h5", _with("scores", units=10**400))),
    "input of 10^12 values": Bad(
        "model",
        3,
        "bytes of variables",
        _edited(".h5", lambda c: c["config"]["layers"][0]["config"].update(batch_input_shape=[None, 10**6, 10**6, 1])),
    ),
    "embedding of 10^12 rows": Bad(
        "model", 3, "bytes of variables", _edited(".h5", _instead("Embedding", input_dim=10**12, output_dim=8))
    ),
    "zeros on load": Bad("model", 3, "on constants", _edited(".h5", _on_constants("zeros", [10**10]))),
    "range on load": Bad("model", 3, "on constants", _edited(".keras", _on_constants("range", 10**10))),
    "fill on load": Bad("model", 3, "on constants", _edited(".h5", _on_constants("fill", [10**11], value=1.0))),
    "layers in a circle": Bad("model", 4, "waits for a result", _edited(".h5", _waits("scores"))),
    "layer that waits for itself": Bad("model", 4, "waits for a result", _edited(".keras", _waits("flat"))),
    "layer that is not there": Bad("model", 4, "no layer has it", _edited(".h5", _waits("nowhere"))),
}
