"""Images of another size, by every spelling: int8 with one range, or kept in float in the file as the report says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome, Quantization, Recipe, Scope
from tfmot_ops.core import keras
from tfmot_ops.errors import ExportError

pytestmark = pytest.mark.slow

L = keras.layers
V1 = tf.compat.v1.image

RESIZES: dict[str, Callable[[Any], Any]] = {
    "v1.resize_bilinear": lambda x: V1.resize_bilinear(x, (16, 16)),
    "v1.resize_bilinear, half pixels": lambda x: V1.resize_bilinear(x, (16, 16), half_pixel_centers=True),
    "v1.resize_bilinear, corners": lambda x: V1.resize_bilinear(x, (16, 16), align_corners=True),
    "v1.resize_nearest_neighbor": lambda x: V1.resize_nearest_neighbor(x, (16, 16)),
    "v1.resize_nearest_neighbor, corners": lambda x: V1.resize_nearest_neighbor(x, (16, 16), align_corners=True),
    "v1.resize_images": lambda x: V1.resize_images(x, (16, 16)),
    "v1.resize": lambda x: V1.resize(x, (12, 20), method="nearest"),
    "smaller": lambda x: V1.resize_bilinear(x, (5, 4), half_pixel_centers=True),
    "image.resize": lambda x: tf.image.resize(x, (16, 16)),
    "image.resize, nearest": lambda x: tf.image.resize(x, (16, 16), method="nearest"),
    "image.resize, in proportion": lambda x: tf.image.resize(x, (16, 12), preserve_aspect_ratio=True),
    "image.resize_with_pad": lambda x: tf.image.resize_with_pad(x, 12, 10),
    "resize_images of Keras": lambda x: keras.backend.resize_images(x, 2, 2, "channels_last", "bilinear"),
    "UpSampling2D": L.UpSampling2D(interpolation="bilinear"),
    "Resizing": L.Resizing(12, 20),
    "Resizing, cropped": L.Resizing(6, 4, crop_to_aspect_ratio=True),
}


def _net(call: Callable[[Any], Any]) -> tuple[Any, np.ndarray]:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    x = call(L.Conv2D(4, 3, padding="same")(inputs))
    model = keras.Model(inputs, L.Conv2D(2, 1)(x))
    return model, np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)


def _reports(model: Any, recipe: Recipe, x: np.ndarray) -> tuple[Any, list[str]]:
    quantized, reports = core.quantize(model, recipe, x)
    return quantized, [report.path for report in reports if report.outcome is Outcome.KEPT_FLOAT]


@pytest.mark.parametrize("call", RESIZES.values(), ids=list(RESIZES))
def test_int8(call: Callable[[Any], Any]) -> None:
    model, x = _net(call)
    recipe = core.recipes.decode("wi8_ai8")
    quantized, kept = _reports(model, recipe, x)
    assert not kept
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0), profile.op_counts
    # TFLite interpolates between integers, so the rounded result is a step away here and there.
    assert core.sqnr_db(np.asarray(quantized(x)), core.predict(data, x)) > 36.0


@pytest.mark.parametrize("recipe", ["wi8_ai8_ptq", "wi8_ai16", "wi8_ai8_aeq"])
@pytest.mark.parametrize("name", ["v1.resize_bilinear, half pixels", "v1.resize_images"])
def test_after_training(name: str, recipe: str) -> None:
    model, x = _net(RESIZES[name])
    data = core.export_tflite(model, core.recipes.decode(recipe), x)
    assert core.profile_tflite(data).float_ops == 0
    assert core.sqnr_db(np.asarray(model(x)), core.predict(data, x)) > 30.0


@pytest.mark.parametrize("method", ["bicubic", "area", "lanczos3"])
def test_what_tflite_has_no_operation_for_is_refused_by_name(method: str) -> None:
    model, x = _net(lambda x: tf.image.resize(x, (16, 16), method=method))
    recipe = core.recipes.decode("wi8_ai8")
    with pytest.raises(ExportError, match=r"L\.tf\.image\.resize"):
        core.export_tflite(core.quantize(model, recipe, x)[0], recipe)


@keras.saving.register_keras_serializable("tests")
class Raw(L.Layer):
    """What stays closed: raw operations take no symbolic tensors."""

    def call(self, inputs: Any) -> Any:
        return tf.raw_ops.ResizeBilinear(images=inputs, size=[16, 16], half_pixel_centers=True)


@keras.saving.register_keras_serializable("tests")
class RawSlice(L.Layer):
    def call(self, inputs: Any) -> Any:
        return tf.raw_ops.Slice(input=inputs, begin=[0, 1, 1, 0], size=[-1, 4, 4, 4])


@keras.saving.register_keras_serializable("tests")
class RawPad(L.Layer):
    def call(self, inputs: Any) -> Any:
        return tf.raw_ops.PadV2(input=inputs, paddings=[[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=20.0)


@pytest.mark.parametrize(
    "call",
    [
        *(Raw(), RawSlice(), RawPad()),
        lambda x: tf.gather_nd(x, tf.tile([[[0], [3], [5]]], [tf.shape(x)[0], 1, 1]), 1),
        lambda x: tf.concat([x, tf.one_hot(tf.argmax(x, -1), 4)], -1),
    ],
    ids=["resize", "slice", "pad", "gather_nd", "one_hot"],
)
def test_what_is_reported_as_float_is_float_with_a_range_on_each_side(call: Callable[[Any], Any]) -> None:
    """The converter would compute it in int8, its input on the range of its output."""
    model, x = _net(call)
    recipe = core.recipes.decode("wi8_ai8")
    quantized, kept = _reports(model, recipe, x)
    assert kept
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert profile.int8_mac_fraction == 1.0
    assert profile.float_ops > 0
    assert core.sqnr_db(np.asarray(quantized(x)), core.predict(data, x)) > 40.0


@pytest.mark.parametrize("layer", [L.UpSampling2D(interpolation="bilinear"), L.Resizing(12, 12), L.Cropping2D(2)])
def test_a_layer_that_a_scope_keeps_in_float_is_float(layer: Any) -> None:
    layer = type(layer).from_config(layer.get_config() | {"name": "kept"})
    model, x = _net(layer)
    recipe = Recipe(name="scoped", quantization=Quantization(scope=Scope(exclude=("kept",))))
    quantized, kept = _reports(model, recipe, x)
    assert kept == ["kept"]
    data = core.export_tflite(quantized, recipe)
    assert core.profile_tflite(data).float_ops > 0
    # Interpolated values may lie halfway between two integers.
    assert core.sqnr_db(np.asarray(quantized(x)), core.predict(data, x)) > 36.0
