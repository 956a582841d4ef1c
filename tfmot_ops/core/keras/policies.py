"""The dtype policy of new layers: Keras gives every layer without a dtype the global policy, which a user may set.

Mixed precision (`mixed_float16`) computes in float16 and keeps the weights in float32. Fake quantisation needs float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from tfmot_ops.core.keras import private
from tfmot_ops.core.keras.pinned import keras

#: Held in the context, as the policy is one for all threads.
_CHANGING = RLock()


@contextmanager
def new_layers_with_policy(policy: Any = "float32") -> Iterator[None]:
    """Give new layers this policy instead of the user's global one, within a context or a decorated function.

    Afterwards the global policy and the global float type (`keras.backend.floatx`) are as they were before.

    Args:
        policy: a dtype policy or its name.
    """
    with _CHANGING:
        float_type = keras.backend.floatx()
        try:
            keras.backend.set_floatx("float32")
            with private.policy_scope(policy):
                yield
        finally:
            keras.backend.set_floatx(float_type)
