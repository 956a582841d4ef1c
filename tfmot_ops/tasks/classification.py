"""Classification: the targets are integer labels [N]."""

from __future__ import annotations

from typing import Any

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import TensorLike

_SPARSE_LOSS = "sparse_categorical_crossentropy"


def compile_default(model: keras.Model, learning_rate: float, *, from_logits: bool = False) -> None:
    """Compile `model` in place for class labels [N]: Adam, sparse categorical cross-entropy, accuracy.

    Args:
        model: classifier with one output [N, classes].
        learning_rate: of Adam.
        from_logits: whether the outputs are logits, not probabilities (see `classifier_loss.gives_logits`).
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if from_logits else _SPARSE_LOSS
    model.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=loss, metrics=["accuracy"])


def classifier(x: TensorLike, num_classes: int) -> Any:
    """The head of a classifier: one probability per class, [N, num_classes], from feature maps [N, H, W, C]."""
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.layers.Dense(num_classes, activation="softmax", name="scores")(x)
