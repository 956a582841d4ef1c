"""Seeding of the whole process."""

from __future__ import annotations

import tensorflow as tf

from tfmot_ops.core.keras.pinned import keras


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow, and make TensorFlow's ops deterministic, for the whole process.

    Deterministic ops cannot be switched off again, and with them TensorFlow refuses random ops without a seed.

    Args:
        seed: the seed of all generators.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
