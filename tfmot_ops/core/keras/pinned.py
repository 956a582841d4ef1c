"""Pins tf_keras (Keras 2) as `tf.keras`; every other module imports `keras` from here.

In TensorFlow 2.16 and later, `tf.keras` is Keras 3 unless TF_USE_LEGACY_KERAS is set before its first use. tfmot reads
the same variable. So the environment variables are set here before tensorflow is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tfmot_ops.errors import LegacyKerasError

_ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1", "KERAS_MODULE": "tf_keras"}


# Hides the info and warning lines of TensorFlow's C++ log, unless the user has set the variable.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.update(_ENVIRONMENT)
_TENSORFLOW_WAS_THERE = "tensorflow" in sys.modules
# tfmot 0.8.1 tries to import this Keras 2 module, which loads all of Keras 3 before it fails. None fails at once.
sys.modules.setdefault("keras.engine", None)  # type: ignore[arg-type]

import tensorflow as tf  # noqa: E402 - only after the pin
import tf_keras as keras  # noqa: E402 - only after the pin


def _check_pin() -> None:
    # `tf.keras` is resolved at its first use, and cannot be changed later in the process.
    if tf.keras.layers.Layer is not keras.layers.Layer:
        raise LegacyKerasError(
            "tf.keras is Keras 3, so its models and tf_keras models do not mix",
            required="tf_keras (Keras 2) as tf.keras",
            received=f"Keras {tf.keras.__version__}" + (", loaded before tfmot_ops" if _TENSORFLOW_WAS_THERE else ""),
            remedy="import tfmot_ops.core before tensorflow and keras, or start Python with "
            + " ".join(f"{name}={value}" for name, value in _ENVIRONMENT.items()),
        )


def _pin_submodules() -> None:
    """Have `import tensorflow.keras.models`, as MLflow has it, find tf_keras too.

    TensorFlow decides where its submodules are when it is imported, which may have been before the pin.
    """
    folder = str(Path(keras.__file__).parent / "api" / "_v2")
    if folder not in tf.__path__:
        tf.__path__.insert(0, folder)


_check_pin()
_pin_submodules()

__all__ = ["keras"]
