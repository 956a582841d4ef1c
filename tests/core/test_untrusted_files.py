"""Model files from strangers: nothing that a file names is called, imported, read or written while it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from untrusted import changed_h5, changed_keras, changed_saved_model, load_in_a_child, small_model

from tfmot_ops import core, tfmot_utils
from tfmot_ops.core import keras
from tfmot_ops.core.saving.safe_configs import unsafe_names
from tfmot_ops.errors import ArtifactError, UnsafeModelError

L = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
STRANGER = {"module": "stranger", "class_name": "function", "config": "f", "registered_name": None}


def op_layer(function: str, *values: Any, **named: Any) -> dict[str, Any]:
    """A function of TensorFlow on constants, which Keras calls while it builds the model."""
    config = {"name": "w", "trainable": True, "dtype": "float32", "function": function}
    call = ["_CONSTANT_VALUE", -1, *values, named]
    return {"class_name": "TFOpLambda", "config": config, "name": "w", "inbound_nodes": [call]}


def function_layer(module: str, name: str, registered_name: str | None, *values: Any) -> dict[str, Any]:
    """A function in the place of a layer, which Keras calls on a constant."""
    call = ["_CONSTANT_VALUE", -1, *values, {}]
    kind = {"class_name": "function", "module": module, "config": name, "registered_name": registered_name}
    return kind | {"name": "w", "inbound_nodes": [call]}


def layer(config: Any, name: str) -> Any:
    """The description of a layer, by its name."""
    return next(item for item in config["config"]["layers"] if item["config"]["name"] == name)


def harms(watched: Path) -> dict[str, Callable[[Any], None]]:
    """Changes of a description, by what they would do."""
    victim, written = str(watched / "victim"), str(watched / "written")
    command = f"echo x > {written}"
    cell = {"class_name": "LSTMCell", "config": {"units": 2}}

    def add(item: dict[str, Any]) -> Callable[[Any], None]:
        return lambda config: config["config"]["layers"].append(item)

    def of(name: str, key: str, value: Any) -> Callable[[Any], None]:
        return lambda config: layer(config, name)["config"].update({key: value})

    def instead(name: str, **values: Any) -> Callable[[Any], None]:
        return lambda config: layer(config, name).update(values)

    def node(op: str) -> dict[str, Any]:
        definition = {"name": "w", "op": op, "input": ["a", "b"]}
        config = {"name": "w", "node_def": definition, "constants": {"0": written, "1": "x"}}
        return op_layer("", 0.0) | {"class_name": "TensorFlowOpLayer", "config": config}

    return {
        "write_file": add(op_layer("io.write_file", written, contents="x")),
        "write_file_v1": add(op_layer("compat.v1.write_file", written, contents="x")),
        "load_library": add(op_layer("load_library", victim)),
        "rmtree": add(op_layer("io.gfile.rmtree", victim)),
        "read_file": add(op_layer("io.read_file", victim)),
        "print": add(op_layer("print", "x", output_stream=f"file://{written}")),
        "map_fn": add(op_layer("map_fn", STRANGER, elems=[1.0])),
        "keras_get_file": add(op_layer("keras.utils.get_file", "x", origin="http://127.0.0.1:9")),
        "command": add(function_layer("os", "system", "QuantizeWrapper", command)),
        "command_by_no_name": add(function_layer("os", "system", None, command)),
        "command_ours": add(function_layer("os", "system", "tfmot_ops>Affine", command)),
        "builtin": add(function_layer("builtins", "exec", "exec", f"open({written!r}, 'w')")),
        "enable_unsafe": add(
            function_layer("tf_keras.src.saving.serialization_lib", "enable_unsafe_deserialization", None)
        ),
        "load_model": add(function_layer("keras.models", "load_model", None, victim)),
        "activation": of("scores", "activation", STRANGER),
        "activation_by_name": of("scores", "activation", STRANGER | {"registered_name": "QuantizeWrapper"}),
        "finder_as_activation": of("scores", "activation", "deserialize"),
        "initializer": of("conv", "kernel_initializer", {**STRANGER, "class_name": "C", "config": {}}),
        "constraint": of("conv", "kernel_constraint", {**STRANGER, "class_name": "C", "config": {}}),
        "dtype": of("conv", "dtype", {**STRANGER, "class_name": "C", "config": {}}),
        "nested": lambda config: layer(config, "each")["config"]["layer"]["config"].update(activation=STRANGER),
        "class": instead("flat", module="stranger", class_name="C", registered_name="C"),
        "class_by_our_name": instead("flat", module="stranger", class_name="f", registered_name="QuantizeWrapper"),
        "class_that_looks_like_a_value": of(
            "conv", "x", {"class_name": "__tuple__", "module": "stranger", "config": {}}
        ),
        "type_spec": lambda config: config["config"]["layers"][0]["config"].update(
            type_spec={"class_name": "__typespec__", "spec_name": "C", **dict(STRANGER, config=[])}
            | {"class_name": "__typespec__"}
        ),
        "lambda": of("scores", "activation", {"class_name": "__lambda__", "config": {"value": ["4wE=", None, None]}}),
        "lambda_layer": instead(
            "flat", class_name="Lambda", config={"function": STRANGER, "function_type": "function"}
        ),
        "wrapper_of_a_cell": instead(
            "flat",
            class_name="ResidualWrapper",
            module="keras.layers",
            registered_name=None,
            config={"cell": cell, "residual_fn": "f", "residual_fn_type": "function", "residual_fn_module": "os"},
        ),
        "vocabulary": instead("flat", class_name="IntegerLookup", config={"name": "flat", "vocabulary": victim}),
        "graph_node": add(node("WriteFile")),
        "class_method": instead(
            "flat",
            class_name="ClassMethod",
            module="tf_keras.src.layers.core.tf_op_layer",
            config={"cls_symbol": "io.TFRecordWriter", "method_name": "__call__"},
        ),
        "attribute": instead(
            "flat",
            class_name="InstanceMethod",
            module="tf_keras.src.layers.core.tf_op_layer",
            config={"attr_name": "__reduce__", "name": "flat"},
        ),
        "saved_model_layer": instead(
            "flat", class_name="ReloadedLayer", module="tf_keras.src.export.export_lib", config={"filepath": victim}
        ),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Any:
    """Every harmful file, and what loading it did."""
    folder = tmp_path_factory.mktemp("files")
    watched = folder / "watched"
    watched.mkdir()
    (watched / "victim").write_text("1\n2\n")
    (folder / "modules").mkdir()
    (folder / "modules" / "stranger.py").write_text(f"open({str(watched / 'imported')!r}, 'w')\ndef f(x): return x\n")
    model, good = small_model(), [folder / "good.h5", folder / "good.keras", folder / "good"]
    for path in good:
        model.save(path, save_format=None if path.suffix else "tf")
    h5, archive, saved = good
    made = []
    for name, edit in harms(watched).items():
        made += [changed_h5(h5, folder / f"{name}.h5", edit), changed_keras(archive, folder / f"{name}.keras", edit)]
    made += [make(folder / name, h5, archive, saved, watched) for name, make in OTHERS.items()]
    return {"folder": folder, "good": good, "answers": load_in_a_child(folder, watched, good, made)}


def _compiled(key: str, value: Any) -> Callable[..., Path]:
    return lambda path, h5, *_: changed_h5(h5, path, lambda config: config.update({key: value}), "training_config")


def _compiled_keras(key: str, value: Any) -> Callable[..., Path]:
    return lambda path, _, archive, *__: changed_keras(
        archive, path, lambda config: config["compile_config"].update({key: value})
    )


def _with_weights(change: Callable[[Any, Path], None]) -> Callable[..., Path]:
    def make(path: Path, h5: Path, _: Path, __: Path, watched: Path) -> Path:
        changed_h5(h5, path, lambda _: None)
        with h5py.File(path, "r+") as file:
            group = file["model_weights/scores/scores"]
            del group["bias:0"]
            change(group, watched / "victim")
        return path

    return make


def _virtual(group: Any, victim: Path) -> None:
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource(str(victim), "numbers", (3,))
    group.create_virtual_dataset("bias:0", layout)


def _objects(group: Any, _: Path) -> None:
    group.create_dataset("bias:0", data=["a", "b", "c"], dtype=h5py.string_dtype())


def _graph(call: Callable[[Any, Path], Any]) -> Callable[..., Path]:
    """A SavedModel with a layer that does something besides computing."""

    def make(path: Path, _: Path, __: Path, ___: Path, watched: Path) -> Path:
        class Own(L.Layer):
            def call(self, inputs: Any) -> Any:
                return call(inputs, watched)

        inputs = L.Input((4,))
        keras.Model(inputs, L.Dense(3)(Own()(inputs))).save(path, save_format="tf")
        (watched / "written").unlink(missing_ok=True)
        return path

    return make


def _after(done: Any, value: Any) -> Any:
    with tf.control_dependencies([done]):
        return tf.identity(value)


def _calls_the_saver(path: Path, _: Path, __: Path, saved: Path, ___: Path) -> Path:
    """The function that restores a model's variables may hold a file operation, but no other one may call it."""
    changed_saved_model(saved, path, lambda _: None)
    file = path / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    library = model.meta_graphs[0].graph_def.library.function
    saver = next(f.signature.name for f in library if "traced_restore" in f.signature.name)
    other = next(f for f in library if "traced" not in f.signature.name)
    other.node_def.add(name="call", op="PartitionedCall").attr["f"].func.name = saver
    file.write_bytes(model.SerializeToString())
    return path


def _metadata(**values: Any) -> Callable[..., Path]:
    def edit(config: Any) -> None:
        if config["name"] == "flat":
            config.update(values | {"must_restore_from_config": True})

    return lambda path, _, __, saved, ___: changed_saved_model(saved, path, edit)


OTHERS: dict[str, Callable[..., Path]] = {
    "loss.h5": _compiled("loss", {"class_name": "deserialize_keras_object", "config": {"config": STRANGER}}),
    "metric.h5": _compiled("metrics", [[{"class_name": "MeanMetricWrapper", "config": {"name": "a", "fn": STRANGER}}]]),
    "optimizer.h5": _compiled("optimizer_config", STRANGER),
    "loss.keras": _compiled_keras("loss", {"output": STRANGER}),
    "metric.keras": _compiled_keras("metrics", [STRANGER | {"module": "builtins", "config": "eval"}]),
    "optimizer.keras": _compiled_keras("optimizer", STRANGER | {"class_name": "C", "config": {}}),
    "outside.keras": lambda path, _, archive, *__: changed_keras(
        archive, path, lambda _: None, **{"assets/../../../written": b"x"}
    ),
    "link.h5": _with_weights(lambda group, victim: group.update({"bias:0": h5py.ExternalLink(str(victim), "/x")})),
    "external.h5": _with_weights(
        lambda group, victim: group.create_dataset("bias:0", (3,), "u1", external=[(str(victim), 0, 3)])
    ),
    "virtual.h5": _with_weights(_virtual),
    "objects.h5": _with_weights(_objects),
    "graph_writes": _graph(lambda x, watched: _after(tf.io.write_file(str(watched / "written"), "x"), x)),
    "graph_reads": _graph(
        lambda x, watched: x + tf.cast(tf.strings.length(tf.io.read_file(str(watched / "victim"))), x.dtype)
    ),
    "graph_prints": _graph(lambda x, watched: _after(tf.print(x, output_stream=f"file://{watched / 'written'}"), x)),
    "graph_of_python": _graph(lambda x, _: tf.ensure_shape(tf.numpy_function(lambda y: y, [x], x.dtype), x.shape)),
    "graph_saver": _calls_the_saver,
    "metadata_function": _metadata(class_name="TFOpLambda", config=op_layer("io.write_file")["config"]),
    "metadata_finder": _metadata(activity_regularizer={"class_name": "deserialize_keras_object", "config": {}}),
    "metadata_type": _metadata(build_input_shape={"class_name": "TypeSpec", "type_spec": "my.Spec", "serialized": []}),
}
NAMES = [name + suffix for name in harms(Path("/x")) for suffix in (".h5", ".keras")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_a_harmful_file_is_refused_before_anything_happens(files, name) -> None:
    answer = files["answers"][name]
    assert (answer["error"], answer["seen"]) == ("UnsafeModelError", []), answer["message"]
    assert name in answer["message"]
    assert "allow_unsafe=True" in answer["message"]


def test_a_refusal_says_what_it_is_and_where_it_stands(files) -> None:
    told = {name: files["answers"][name]["message"] for name in ("write_file.h5", "nested.keras", "graph_writes")}
    assert "function tf.io.write_file in model_config (config.layers[8] 'w')" in told["write_file.h5"]
    assert "function 'f' of module 'stranger' in config.json (config.layers[" in told["nested.keras"]
    assert "'each'.config.layer.config.activation)" in told["nested.keras"]
    assert "operation WriteFile (node " in told["graph_writes"]


def test_the_original_load_model_refuses_too(files) -> None:
    path = files["folder"] / "activation.h5"
    with pytest.raises(UnsafeModelError, match="stranger"):
        tfmot_utils.Quantize.load_model(str(path))


@pytest.mark.slow
def test_a_refused_model_ends_a_command_with_3(files, tmp_path) -> None:
    arguments = ["--model", str(files["folder"] / "write_file.h5"), "--dataset", "digits", "--recipe", "wi8_ai8_ptq"]
    command = [sys.executable, "-m", "tfmot_ops.cli", "optimize", *arguments, "--no-tracking"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ, check=False
    )
    assert done.returncode == 3, done.stderr[-2000:]
    assert "tf.io.write_file" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_damaged_description_is_an_artifact_error(files, tmp_path) -> None:
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        core.load_model(changed_h5(files["good"][0], tmp_path / "m.h5", lambda config: config.pop("config")))


def test_a_description_of_any_depth_is_read() -> None:
    config: Any = {"class_name": "function", "module": "os", "config": "system"}
    for _ in range(5000):
        config = [config]
    assert [finding.what for finding in unsafe_names(config)] == ["function 'system' of module 'os'"]


def test_a_long_vocabulary_is_looked_through_in_little_memory() -> None:
    words: dict[str, Any] = {"class_name": "StringLookup", "config": {"vocabulary": ["word"] * 300_000}}
    tracemalloc.start()
    try:
        assert list(unsafe_names(words)) == []
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # a part of its own for each word takes many times that
    finally:
        tracemalloc.stop()
