"""Models of a made-up installed package, each of which fails in its own way; the cells' processes import it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def _net(shape: tuple[int, int, int], classes: int) -> Any:
    from tfmot_ops.core import keras

    layers = keras.layers
    inputs = keras.Input(shape)
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, strides=4, name="conv")(inputs))
    return keras.Model(inputs, layers.Dense(classes, name="scores")(layers.GlobalAveragePooling2D(name="pool")(x)))


def sound(shape: tuple[int, int, int], classes: int) -> Any:
    return _net(shape, classes)


def nests(shape: tuple[int, int, int], classes: int) -> Any:
    """A backbone within a backbone, with a head."""
    from tfmot_ops.core import keras

    layers = keras.layers
    inner = keras.Sequential([layers.Conv2D(4, 3, strides=2, input_shape=(7, 7, 4)), layers.ReLU(name="deep")], "inner")
    inputs = keras.Input((15, 15, 3))
    outer = keras.Model(inputs, inner(layers.Conv2D(4, 3, strides=2)(inputs)), name="outer")
    images = keras.Input(shape)
    x = layers.GlobalAveragePooling2D()(outer(layers.Resizing(15, 15)(images)))
    return keras.Model(images, layers.Dense(classes)(x))


def fickle(shape: tuple[int, int, int], classes: int) -> Any:
    """Sound until the variable says otherwise: a regression to plant."""
    if os.environ.get("TEST_BREAK"):
        raise RuntimeError("planted")
    return _net(shape, classes)


def sleeps(shape: tuple[int, int, int], classes: int) -> Any:
    time.sleep(600)
    return _net(shape, classes)


def allocates(shape: tuple[int, int, int], classes: int) -> Any:
    held = []
    while len(held) < 256:  # 16 GiB
        held.append(b"x" * 2**26)
    return _net(shape, classes)


def dies(shape: tuple[int, int, int], classes: int) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)
    return _net(shape, classes)


def raises(shape: tuple[int, int, int], classes: int) -> Any:
    """Raises in the stage that the variable names: the function that does its work is replaced."""
    from tfmot_ops.sweep.run import check as compat

    work = {
        "normalize": "normalize",
        "prune": "prune",
        "strip": "strip",
        "quantize": "quantize",
        "train": "build_optimizer",
        "reload": "load_model",
        "export": "export_tflite",
        "invoke": "predict",
        "agree": "sqnr_db",
    }
    stage = os.environ["TEST_STAGE"]

    def planted(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"planted in {stage}")

    if stage == "build":
        planted()
    setattr(compat, work[stage], planted)
    return _net(shape, classes)
