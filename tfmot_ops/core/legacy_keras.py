"""The only place that pins tf_keras; every other module takes `keras` from here.

TensorFlow 2.16 and later put Keras 3 in the place of `tf.keras` unless TF_USE_LEGACY_KERAS is set before
the first use. tfmot reads the same variable, so the two variables are set first and tensorflow is
imported after them.
"""

from __future__ import annotations

import os
import sys

from tfmot_ops.errors import LegacyKerasError

_ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1", "KERAS_MODULE": "tf_keras"}


def _pin() -> None:
    os.environ.update(_ENVIRONMENT)
    # The log of TensorFlow's C++ side is noise for a user; an explicit setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tensorflow_was_there = "tensorflow" in sys.modules
    import tensorflow as tf

    version = tf.keras.__version__
    if not version.startswith("2."):
        raise LegacyKerasError(
            "tf.keras is Keras 3, so its models and tf_keras models do not mix",
            required="tf_keras (Keras 2) behind tf.keras",
            received=f"Keras {version}" + (", loaded before tfmot_ops" if tensorflow_was_there else ""),
            remedy="import tfmot_ops.core before tensorflow and keras, or start Python with "
            + " ".join(f"{name}={value}" for name, value in _ENVIRONMENT.items()),
        )


_pin()

import tf_keras as keras  # noqa: E402 - only after the pin

__all__ = ["keras"]
