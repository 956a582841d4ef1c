"""Values of variables as NumPy arrays, of whatever kind the variable is."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_ops.core.keras.types import Array


def value_of(variable: Any) -> Array:
    """The values of a variable as an array of its shape and type.

    The variables of a `tf.distribute` strategy and of mixed precision are neither arrays nor numbers for NumPy and
    Python: `np.asarray` and `float` refuse them, or give an array of one object.

    Args:
        variable: a variable, tensor or array; not within a function that is traced.
    """
    read = getattr(variable, "numpy", None)
    return np.asarray(variable if read is None else read())
