"""The folders and places that the parameters of a DAG run may name.

A user who may trigger a DAG run may not be allowed to read every file of a worker, or to make it connect to any
server. What the DAG's author wrote in the DAG's file is not checked here, nor what a person gives at a shell.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tfmot_ops.contract import DATASET_OPTIONS
from tfmot_ops.contract.refusal import quoted
from tfmot_ops.errors import SpecError
from tfmot_ops.recipes.files import is_recipe_file
from tfmot_ops.system import environment

#: Places that are allowed unless the deployment names its own: object stores, and MLflow's artifacts.
_OBJECT_STORES = ("s3://", "s3a://", "gs://", "gcs://", "abfs://", "abfss://", "az://", "adl://")
_MLFLOW = ("runs:/", "models:/", "mlflow-artifacts:/")
#: Folder of data sets and models, as the examples of runners mount it.
_DATA_FOLDER = "/data"
#: Kinds of data sets that read files, and their options that are paths.
_FILE_SOURCES = ("audio", "csv", "images", "npz", "tfrecord")
_PATH_OPTIONS = ("labels", "masks", "test")
#: The same for one kind alone: `features` names columns of a CSV file.
_PATH_OPTIONS_OF = {"tfrecord": (*_PATH_OPTIONS, "features")}
_SAVED_SUFFIXES = (".h5", ".hdf5", ".keras")
#: What templates call the parameters of a DAG run, and the configuration that it was triggered with.
_CHOSEN = re.compile(r"\{[{%].*\b(params|dag_run|conf)\b", re.DOTALL)
#: A name of a built-in, an application or something registered, perhaps with options: nothing that is a path.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_@:+ -]*(\.[A-Za-z0-9_@:+ -]+)*(\?.*)?\Z", re.DOTALL)


def allowed() -> tuple[str, ...]:
    """The allowed folders and URI prefixes, from the deployment's variable or the default."""
    named = environment.ALLOWED_PATHS.get()
    if named is None:
        return (_DATA_FOLDER, *_OBJECT_STORES, *_MLFLOW)
    return tuple(filter(None, map(str.strip, named.split(","))))


def check_path(what: str, path: str) -> None:
    """Refuse a path or URI outside of what the deployment allows.

    Args:
        what: what names it, for the message: `dataset`.
        path: from the parameters of a DAG run.

    Raises:
        SpecError: the path is outside, is relative, or leads upwards.
    """
    if any(_is_within(path, place) for place in allowed()):
        return
    raise SpecError(
        f"the deployment does not let a DAG run name this place: {what}",
        required="an absolute path or a URI within one of " + ", ".join(allowed()),
        received=quoted(path),
        remedy="use a file there, or ask the deployment's administrator to add the folder to "
        f"{environment.ALLOWED_PATHS.name}",
    )


def check_places(given: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """Refuse the paths and servers in an operator's arguments that the user who triggered the run has chosen.

    Args:
        given: the arguments `options`, `output_uri`, `tracking_uri` and, for a step with inputs, `inputs`, with their
            templates rendered.
        written: the same arguments as the DAG's author wrote them. Only what a template gave that reads the run's
            parameters or configuration is checked.

    Raises:
        SpecError: the deployment does not allow one of them; names the argument or option.
    """
    options, author = given["options"], written["options"]
    if isinstance(options, Mapping):
        for name, value in options.items():
            if _reads_parameters(author.get(name) if isinstance(author, Mapping) else author):
                _check_option(name, value)
    _check_inputs(given.get("inputs"), written.get("inputs"))
    if given["output_uri"] and _reads_parameters(written["output_uri"]):
        check_path("output_uri", str(given["output_uri"]))
    uri = given["tracking_uri"]
    if uri and _reads_parameters(written["tracking_uri"]) and uri not in environment.tracking_uris():
        raise SpecError(
            "the deployment does not let a DAG run choose an MLflow server",
            required=f"the URI in {environment.TRACKING_URI.name}",
            received=quoted(uri),
            remedy="leave the parameter out",
        )


def _check_inputs(given: object, author: object) -> None:
    """Refuse the URI of an input that a parameter gave, and that the deployment does not allow.

    The results of other steps are inputs too; no template of the author's reads a parameter for them.
    """
    for name, value in given.items() if isinstance(given, Mapping) else ():
        if _reads_parameters(author.get(name) if isinstance(author, Mapping) else author):
            for uri in _uris_of(value):
                check_path(f"input {name}", uri)


def _uris_of(value: object) -> Iterator[str]:
    """The URIs of artifacts within a value: an artifact's fields, or a step's result with its outputs."""
    if isinstance(value, Mapping):
        uri = value.get("uri")
        if isinstance(uri, str):
            yield uri
        for member in value.values():
            yield from _uris_of(member)


def _reads_parameters(written: object) -> bool:
    """Whether a template, or one within a value, reads what the user who triggers a DAG run may choose."""
    if isinstance(written, Mapping):
        return any(map(_reads_parameters, written.values()))
    if isinstance(written, list | tuple):
        return any(map(_reads_parameters, written))
    return isinstance(written, str) and _CHOSEN.search(written) is not None


def _check_option(name: str, value: object) -> None:
    """Refuse an option that names a path which the deployment does not allow."""
    if isinstance(value, Mapping) and name == "parameters":
        for key, member in value.items():
            if key in {"recipe_file", "training_file", "policy_file"}:
                _check_option("recipe", member)
    if not isinstance(value, str):
        return
    if name == "model" and (value.endswith(_SAVED_SUFFIXES) or not _NAME.match(value) or value.startswith(_MLFLOW)):
        check_path(name, value)
    if name == "dataset":
        for path in _paths_of(value):
            check_path(name, path)
    if name in {"recipe", "training", "policy", "target"} and is_recipe_file(value):
        check_path(name, value)


def _paths_of(dataset: str) -> Iterator[str]:
    kind, colon, rest = dataset.partition(":")
    if not colon or kind not in _FILE_SOURCES:
        if not _NAME.match(dataset):
            yield dataset
        return
    # A pattern may have a question mark, too: the sources find their options by the same expression.
    begin = DATASET_OPTIONS.search(rest)
    yield rest[: begin.start()] if begin else rest
    for option in rest[begin.end() :].split("&") if begin else ():
        key, _, value = option.partition("=")
        if key in _PATH_OPTIONS_OF.get(kind, _PATH_OPTIONS):
            yield value


def _is_within(path: str, place: str) -> bool:
    """Whether a path or URI is a place, or lies in it."""
    if ".." in PurePosixPath(path).parts or "::" in path or "\0" in path:
        return False
    if not place.startswith("/"):
        return path.startswith(place) and (place.endswith("/") or path[len(place) :][:1] in {"", "/"})
    local = path.removeprefix("file://")
    if not local.startswith("/"):
        return False
    if not PurePosixPath(local).is_relative_to(place):
        return False
    # A link in the folder may lead out of it, also one that a pattern matches; a folder that is itself a link is the
    # deployment's choice.
    real = [Path(local), *map(Path, glob.iglob(local))]  # noqa: PTH207 - as the sources read a pattern
    return all(path.resolve().is_relative_to(Path(place).resolve()) for path in real)
