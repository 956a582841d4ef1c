"""Constants of the exported file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.tflite.interpreter import make_interpreter

L = keras.layers


@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq"])
def test_a_bias_that_is_equal_for_all_channels_is_rounded_by_the_scale_of_each(recipe: str) -> None:
    inputs = keras.Input((4, 4, 3))
    layer = L.Conv2D(5, 3, bias_initializer=keras.initializers.Constant(3.0))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(layer(inputs))))
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel * np.linspace(1.0, 0.1, 5), bias])
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype(np.float32)
    decoded = core.recipes.decode(recipe)
    net = core.quantize(model, decoded, x)[0] if recipe == "wi8_ai8" else model
    interpreter = make_interpreter(core.export_tflite(net, decoded, x))
    interpreter.allocate_tensors()
    (values,) = (
        interpreter.get_tensor(tensor["index"]) * tensor["quantization_parameters"]["scales"]
        for tensor in interpreter.get_tensor_details()
        if tensor["dtype"] is np.int32 and list(tensor["shape"]) == [5]
    )
    np.testing.assert_allclose(values, 3.0, rtol=1e-3)


@pytest.mark.parametrize("kernel_is_zero", [False, True])
def test_a_channel_of_zeros_keeps_its_bias(kernel_is_zero) -> None:
    # A bias is counted in steps of the channel's scale: on the scale of next to nothing, 3 is more than an int32 holds.
    inputs = keras.Input((4, 4, 8))
    model = keras.Model(inputs, keras.layers.Conv2D(6, 1, name="conv")(inputs))
    kernel, _ = model.get_layer("conv").get_weights()
    kernel[..., slice(None) if kernel_is_zero else 0] = 0.0
    model.get_layer("conv").set_weights([kernel, np.array([3.0, 1.0, -2.0, 0.5, 3.0, 3.0], np.float32)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 8)).astype(np.float32)
    recipe = core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(model, recipe, x)
    answers = core.predict(core.export_tflite(quantized, recipe), x)
    np.testing.assert_allclose(answers[..., 0], 3.0, atol=0.05)
    assert core.agreement(quantized, core.export_tflite(quantized, recipe), x).get("sqnr_db", np.inf) >= 30.0


def _small_qat(calibration: np.ndarray | None) -> tuple[Any, Any]:
    inputs = keras.Input((6,), name="features")
    model = keras.Model(inputs, L.Dense(2, name="head")(L.Dense(4, activation="relu", name="body")(inputs)))
    model.compile("sgd", "mse")
    recipe = core.recipes.decode("wi8_ai8")
    return core.quantize(model, recipe, calibration)[0], recipe


def test_ranges_that_nothing_has_set_are_named_when_the_file_is_made() -> None:
    model, recipe = _small_qat(None)
    with pytest.warns(UserWarning, match="never set: quantize_features, body_relu, head are still at") as told:
        core.export_tflite(model, recipe)
    assert "calibration=" in str(told[0].message)
    assert told[0].filename == __file__, "the warning points to the caller"


@pytest.mark.parametrize("how", ["calibrated", "trained"])
def test_ranges_that_are_set_bring_no_warning(how: str) -> None:
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    model, recipe = _small_qat(x if how == "calibrated" else None)
    if how == "trained":
        model.fit(x, x[:, :2], verbose=0)
    assert core.export_tflite(model, recipe)  # warnings are errors
