"""Recognises files of Keras 3, which tf_keras cannot read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py

from tfmot_ops.errors import UnsupportedModelError


def refuse_keras_three(path: Path) -> None:
    """Refuse a file that Keras 3 saved; a file that cannot be read is left to those who say what is wrong with it.

    Args:
        path: `.h5` or `.keras` file, or SavedModel folder, which TensorFlow writes alike under either Keras.

    Raises:
        UnsupportedModelError: the file says that Keras 3 saved it.
    """
    version = _version(path)
    if version.partition(".")[0] not in {"", "0", "1", "2"}:
        raise UnsupportedModelError(
            "the model file is one of Keras 3",
            required="a file that tf_keras (Keras 2) saved: .h5, .keras or a SavedModel folder",
            received=f"{path}, saved by Keras {version}",
            remedy="build the model with tf_keras and save it from there: run the script that makes it with the "
            "environment variable TF_USE_LEGACY_KERAS=1 where it uses tensorflow.keras, or with `import tf_keras as "
            "keras` instead of `import keras`; a trained model's get_weights() go into the new one by set_weights()",
        )


def _version(path: Path) -> str:
    """The version of Keras that a file says it was saved by; empty where it does not say it."""
    try:
        if path.suffix == ".keras" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json"))["keras_version"])
        if path.is_file():
            with h5py.File(path, "r") as file:
                version = file.attrs.get("keras_version", "")
                return version.decode(errors="replace") if isinstance(version, bytes) else str(version)
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        pass
    return ""
