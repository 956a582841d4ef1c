"""Limits of a model's memory, checked before it is allocated: a small file can describe layers of any size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras.types import Function
from tfmot_ops.errors import UnsafeModelError
from tfmot_ops.system.memory import FREE_BYTES

#: Bytes of variables for each byte of weights in a file: optimizers have up to two variables for each weight, and
#: float16 weights may become float32.
_MOST_PER_STORED = 6


def limited_variables(name: str, stored: int) -> AbstractContextManager[None]:
    """In this context, a model gets no more variables than the weights in its file justify.

    Args:
        name: of the file, for the message.
        stored: bytes of the weights in the file.

    Raises:
        UnsafeModelError: a variable that is to be created would exceed the limit; it is not created.
    """
    most, created = 4 * FREE_BYTES + _MOST_PER_STORED * stored, 0

    def create(next_creator: Function, **kwargs: Any) -> Any:
        nonlocal created
        shape = tf.TensorShape(kwargs.get("shape"))
        created += (shape.num_elements() or 0) * tf.as_dtype(kwargs.get("dtype") or "float32").size
        if created > most:
            raise UnsafeModelError(
                "the model file is not safe to load",
                required=f"at most {most:,} bytes of variables, as the file holds {stored:,} bytes of weights",
                received=f"a variable {kwargs.get('name')} of shape {shape.as_list()} in {name}, {created:,} bytes "
                "with those before it",
                remedy="build the model from its code, and save it again with its weights",
            )
        return next_creator(**kwargs)

    context: AbstractContextManager[None] = tf.variable_creator_scope(create)
    return context
