"""Checks a model file before it is loaded: loading it must not run foreign code, nor read or write other files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn

import h5py
import tensorflow as tf
from tf_keras.protobuf import saved_metadata_pb2

from tfmot_ops.core.keras.private import saved_model_names as constants
from tfmot_ops.core.saving.safe_calls import calls_of_constants, check_calls
from tfmot_ops.core.saving.safe_configs import unsafe_names
from tfmot_ops.core.saving.safe_graphs import constant_bytes, unsafe_parts
from tfmot_ops.errors import UnsafeModelError
from tfmot_ops.system import files
from tfmot_ops.system.memory import archive_problem, expands_too_far

_REGISTER = (
    "if it is code of your own, name it under the entry-point group tfmot_ops.layers of an installed package, for the "
    "command and the operators, or register it with keras.saving.register_keras_serializable and import it first; a "
    "file that you trust can be loaded by core.load_model(path, allow_unsafe=True)"
)
_TRUST = (
    "save the model again without it; a file that you trust can be loaded by core.load_model(path, allow_unsafe=True)"
)
_COPY = (
    "copy the folder together with what its links lead to (cp -rL) if you trust that; a folder that you trust can be "
    "loaded by core.load_model(path, allow_unsafe=True)"
)


def check_sizes(path: Path) -> None:
    """Refuse a path whose reading may never end, and an archive that expands to far more bytes than it has.

    Args:
        path: `.h5` or `.keras` file, or SavedModel folder.

    Raises:
        UnsafeModelError: the archive expands too far.
        OSError: the path, or one in the folder, is a pipe, a socket or a device.
    """
    if path.is_dir():
        for entry in path.rglob("*"):
            if not entry.is_dir():
                files.require_regular(entry)
        return
    files.require_regular(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            problem = archive_problem(archive, path.stat().st_size)
        if problem is not None:
            _refuse(path, problem, "the list of members")


def check_model_file(path: str | Path) -> int:
    """Check a model file before it is loaded; no part of it is built or run.

    Args:
        path: `.h5` or `.keras` file, or SavedModel folder.

    Returns:
        Bytes of the weights in the file.

    Raises:
        UnsafeModelError: loading the file or running the model could do something other than compute tensors.
        OSError: the file cannot be read.
        ValueError: the file is not a model.
    """
    path = Path(path)
    # The same order of tests by which Keras determines the format.
    if path.name.endswith(".keras") and zipfile.is_zipfile(path):
        return _check_keras(path)
    if path.is_dir():
        return _check_saved_model(path)
    with h5py.File(path, "r") as file:
        for name in ("model_config", "training_config"):
            _check_config(path, name, file.attrs.get(name))
        return check_weights(path, path.name, file, path.stat().st_size)


def _refuse(path: Path, what: str, where: str, *, remedy: str = _TRUST) -> NoReturn:
    raise UnsafeModelError(
        "the model file is not safe to load",
        required="layers of tf_keras, tfmot or tfmot_ops, functions that only compute tensors, and classes and "
        "functions that this process has registered",
        received=f"{what} in {where} of {path}",
        remedy=remedy,
    )


def _check_config(path: Path, source: str, text: str | bytes | None, *, restored_from_graph: bool = False) -> None:
    if text is None:
        return
    config = json.loads(text)
    for finding in unsafe_names(config, restored_from_graph=restored_from_graph):
        _refuse(path, finding.what, f"{source} ({finding.where or 'the model itself'})", remedy=_REGISTER)
    for layer in calls_of_constants(config):
        _refuse(path, f"a call of layer {layer!r} on constants, which is computed while the file is loaded,", source)
    check_calls(config)


def _check_keras(path: Path) -> int:
    """Check a `.keras` archive; returns the bytes of its weights."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith("/") or ".." in PurePosixPath(name.replace("\\", "/")).parts:
                _refuse(path, f"the name {name!r}, which leads out of the archive,", "the list of members")
        _check_config(path, "config.json", archive.read("config.json"))
        weights = "model.weights.h5"
        if weights not in archive.namelist():
            # Keras would read `model.weights.npz`, an archive within the archive, which can expand to any size.
            raise ValueError(f"the archive has no {weights}")
        # Read to memory: h5py seeks, and seeking in a compressed archive member rereads it from its start.
        data = archive.read(weights)
    with h5py.File(io.BytesIO(data), "r") as file:
        return check_weights(path, weights, file, len(data))


def check_weights(path: Path, source: str, file: h5py.Group, stored: int) -> int:
    """Refuse weights outside the file, as HDF5 can link to data in any other file, and weights that expand too far.

    Args:
        path: the model file, for messages.
        source: the part of it that holds the weights, for messages.
        file: the open weights.
        stored: bytes of that part.

    Returns:
        Bytes of all weights, as they are read.
    """
    groups, seen, size = [file["/"]], set(), 0
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{source} ({group.name.rstrip('/')}/{name})"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                _refuse(path, f"a link to another file, {link.filename!r},", where)
            if not isinstance(link, h5py.HardLink):
                continue  # a soft link to an object of this file, which is checked at its hard link
            item = group[name]
            if isinstance(item, h5py.Dataset):
                for what in _unsafe_data(item):
                    _refuse(path, what, where)
                size += item.nbytes
                # HDF5 stores nothing of a dataset that was not written, whatever its shape.
                problem = expands_too_far(stored, size)
                if problem is not None:
                    _refuse(path, problem, where)
            elif isinstance(item, h5py.Group) and (address := h5py.h5o.get_info(item.id).addr) not in seen:
                seen.add(address)
                groups.append(item)
    return int(size)


def _unsafe_data(data: h5py.Dataset) -> Iterator[str]:
    if data.external:
        yield f"numbers from another file, {data.external[0][0]!r},"
    if data.is_virtual:
        yield f"numbers from other files, {[source.file_name for source in data.virtual_sources()]},"
    if data.dtype.hasobject:
        yield "objects instead of numbers"


def _check_links(path: Path) -> None:
    """Refuse links out of a folder: what they lead to, such as somebody else's file, would become the weights."""
    inside = path.resolve()
    for each in path.rglob("*"):
        if each.is_symlink() and not each.resolve().is_relative_to(inside):
            what = f"a link to {str(each.resolve())!r}, which is outside of the folder,"
            _refuse(path, what, str(each.relative_to(path)), remedy=_COPY)


def _check_saved_model(path: Path) -> int:
    """Check a SavedModel folder; returns the bytes of its files."""
    _check_links(path)
    meta_graphs = tf.__internal__.saved_model.parse_saved_model(str(path)).meta_graphs
    if not meta_graphs:
        raise ValueError("saved_model.pb holds no graph")
    if len(meta_graphs) != 1 or not meta_graphs[0].HasField("object_graph_def"):
        _refuse(path, "a graph of TensorFlow 1, which runs while it is loaded,", "saved_model.pb")
    stored = sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    problem = expands_too_far(stored, constant_bytes(meta_graphs[0]))
    if problem is not None:
        _refuse(path, f"constants of {problem},", "the graph")
    for part, what in unsafe_parts(meta_graphs[0]):
        _refuse(path, what, f"{part} of the graph")
    for source, identifier, metadata in _metadata(path, meta_graphs[0]):
        is_layer = identifier != constants.METRIC_IDENTIFIER
        _check_config(path, source, metadata, restored_from_graph=is_layer)
    return stored


def _metadata(path: Path, meta_graph: tf.compat.v1.MetaGraphDef) -> Iterator[tuple[str, str, str]]:
    """(source for messages, kind, config as JSON) of each Keras object in a SavedModel."""
    file = path / constants.SAVED_METADATA_PATH
    if file.exists():
        described = saved_metadata_pb2.SavedMetadata.FromString(file.read_bytes())
        for node in described.nodes:
            yield f"{file.name}, {node.node_path}", node.identifier, node.metadata
        return
    # TensorFlow before 2.5 stored the configs in saved_model.pb.
    for index, item in enumerate(meta_graph.object_graph_def.nodes):
        if item.user_object.identifier in constants.KERAS_OBJECT_IDENTIFIERS and item.user_object.metadata:
            yield f"saved_model.pb, object {index}", item.user_object.identifier, item.user_object.metadata
