"""The networks that are measured, and tfmot's quantisation of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantize_registry

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.models.applications import smallest_side
from tfmot_ops.tfmot_utils import NoOpQuantizeConfig

#: Height and width, in pixels, where the architecture allows it: what handling a graph costs does not depend on them.
SIDE = 64
CLASSES = 10
RECIPE = core.recipes.decode("wi8_ai8")


def build(model: str) -> keras.Model:
    """An untrained network of tf_keras.applications, head included."""
    keras.utils.set_random_seed(0)
    side = max(SIDE, smallest_side(model))
    net: keras.Model = core.application_constructors()[model](
        weights=None, input_shape=(side, side, 3), classes=CLASSES
    )
    return net


def images(net: keras.Model, count: int) -> npt.NDArray[np.float32]:
    """`count` images [N, H, W, 3] of noise in [0, 1]."""
    return np.random.default_rng(0).uniform(size=(count, *net.input_shape[1:])).astype(np.float32)


def annotate(net: keras.Model) -> keras.Model:
    """Every layer annotated for tfmot: with its default where it has one, otherwise to be left as it is.

    Without the latter tfmot refuses a layer that it does not know.
    """
    known = default_8bit_quantize_registry.Default8BitQuantizeRegistry()

    def annotated(layer: Any) -> Any:
        if isinstance(layer, keras.layers.InputLayer):
            return layer
        config = None if known.supports(layer) else NoOpQuantizeConfig()
        return tfmot.quantization.keras.quantize_annotate_layer(layer, config)

    return keras.models.clone_model(net, clone_function=annotated)


def apply_tfmot(annotated: keras.Model) -> keras.Model:
    """The QAT model that tfmot makes of an annotated one."""
    with keras.saving.custom_object_scope({"NoOpQuantizeConfig": NoOpQuantizeConfig}):
        return tfmot.quantization.keras.quantize_apply(annotated)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds, of all threads, that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start
