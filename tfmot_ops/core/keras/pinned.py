"""The only place that pins tf_keras; every other module takes `keras` from here.

TensorFlow 2.16 and later have Keras 3 as `tf.keras` unless TF_USE_LEGACY_KERAS is set before
the first use. tfmot reads the same variable, so the two variables are set first and tensorflow is
imported after them.
"""

from __future__ import annotations

import os
import sys

from tfmot_ops.errors import LegacyKerasError

_ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1", "KERAS_MODULE": "tf_keras"}


# The log of TensorFlow's C++ side is noise for a user; an explicit setting wins.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.update(_ENVIRONMENT)
_TENSORFLOW_WAS_THERE = "tensorflow" in sys.modules
# tfmot 0.8.1 looks for this module of Keras 2, and loads all of Keras 3 to find that it is not there. None says so.
sys.modules.setdefault("keras.engine", None)  # type: ignore[arg-type]

import tensorflow as tf  # noqa: E402 - only after the pin
import tf_keras as keras  # noqa: E402 - only after the pin


def _check_pin() -> None:

    # `tf.keras` is resolved at its first use; once resolved to Keras 3 it stays so for the process.
    if tf.keras.layers.Layer is not keras.layers.Layer:
        raise LegacyKerasError(
            "tf.keras is Keras 3, so its models and tf_keras models do not mix",
            required="tf_keras (Keras 2) behind tf.keras",
            received=f"Keras {tf.keras.__version__}" + (", loaded before tfmot_ops" if _TENSORFLOW_WAS_THERE else ""),
            remedy="import tfmot_ops.core before tensorflow and keras, or start Python with "
            + " ".join(f"{name}={value}" for name, value in _ENVIRONMENT.items()),
        )


_check_pin()

__all__ = ["keras"]
