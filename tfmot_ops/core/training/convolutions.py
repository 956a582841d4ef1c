"""Works around a fault of TensorFlow's oneDNN, which corrupts memory while it trains certain strided convolutions.

Seen with TensorFlow 2.21 on CPUs with AVX512: the gradient of a 1x1 convolution with a stride of 2 on images of 60x60
with 2 to 12 channels ends the process with SIGSEGV or SIGABRT; with 16 channels it does not. With a kernel of size 1, a
stride only skips elements of the input. So the input is sliced first, and the convolution runs without a stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import tensorflow as tf

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.keras.types import Layer, TensorLike

#: With at least this many input channels the fault was not seen.
_SAFE_CHANNELS = 16
_CLASSES = (keras.layers.Conv1D, keras.layers.Conv2D)
#: Held while Keras' method is replaced, which affects all threads.
_PATCHING = RLock()


@contextmanager
def strides_as_slices() -> Iterator[None]:
    """In this context, Keras computes a strided convolution of kernel size 1 on a slice of its input."""
    with _PATCHING:
        own = [cls for cls in _CLASSES if "convolution_op" in vars(cls)]
        before = {cls: cls.convolution_op for cls in _CLASSES}
        for cls in _CLASSES:
            cls.convolution_op = _replacement(before[cls])
        try:
            yield
        finally:
            for cls in _CLASSES:
                if cls in own:
                    cls.convolution_op = before[cls]
                else:
                    del cls.convolution_op


def _replacement(original: Any) -> Any:
    def convolution_op(layer: Layer, inputs: TensorLike, kernel: TensorLike) -> Any:
        if not _is_affected(layer, kernel):
            return original(layer, inputs, kernel)
        every = tuple(slice(None, None, stride) for stride in layer.strides)
        return tf.nn.convolution(inputs[(..., *every, slice(None))], kernel, padding="VALID")

    return convolution_op


def _is_affected(layer: Layer, kernel: TensorLike) -> bool:
    is_strided = max(layer.kernel_size) == 1 and max(layer.strides) > 1 and layer.data_format == "channels_last"
    return is_strided and int(kernel.shape[-2]) < _SAFE_CHANNELS
