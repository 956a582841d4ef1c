"""Constants of the exported file."""

from __future__ import annotations

import numpy as np
import pytest

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.evaluate import make_interpreter

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
