"""The pinned tf_keras (`tfmot_ops.core.keras.layers` is `tf_keras.layers`), and all uses of private names."""

from typing import Any

from tfmot_ops.core.keras.pinned import keras as _tf_keras


def __getattr__(name: str) -> Any:
    """Every public name of tf_keras is a name of this package."""
    return getattr(_tf_keras, name)


def __dir__() -> list[str]:
    """The names of tf_keras."""
    return dir(_tf_keras)
