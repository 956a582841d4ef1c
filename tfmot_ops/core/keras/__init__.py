"""The pinned tf_keras (`tfmot_ops.core.keras.layers` is `tf_keras.layers`), and all uses of private names.

- `pinned` sets tf_keras as `tf.keras`; `private` is the only module that uses private names; `types` has the types.
- `compiling` copies a compile configuration, `policies` sets dtype policies, `seeds` seeds the process.
- `batches`, `weights`, `values`, `wrapped`, `identity`: small helpers for batches, weights, variables, wrappers and
  keys.
"""

from typing import Any

from tfmot_ops.core.keras.pinned import keras as _tf_keras


def __getattr__(name: str) -> Any:
    """Every public name of tf_keras is a name of this package."""
    return getattr(_tf_keras, name)


def __dir__() -> list[str]:
    """The names of tf_keras."""
    return dir(_tf_keras)
