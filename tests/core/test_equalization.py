"""Cross-layer equalisation: the float model's outputs stay, and the int8 file loses less where a channel is loud."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tfmot_ops import core
from tfmot_ops.contract import Method, Quantization, Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.graph.equalization import equalize
from tfmot_ops.core.graph.normalize import normalize_graph
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.rebuild import rebuild

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 8, 8, 3)).astype(np.float32)
_L = keras.layers


def build(activation: str = "relu") -> keras.Model:
    """Pairs of each kind: into a depthwise convolution, out of it, through a pooling, and with BatchNormalization."""
    keras.utils.set_random_seed(0)
    inputs = _L.Input((8, 8, 3))
    x = _L.Conv2D(6, 3, activation=activation, bias_initializer="random_normal", name="first")(inputs)
    x = _L.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="random_normal", name="each")(x)
    x = _L.BatchNormalization(gamma_initializer="random_uniform", beta_initializer="random_normal", name="norm")(x)
    x = _L.MaxPooling2D()(_L.Activation(activation)(x))
    x = _L.GlobalAveragePooling2D()(_L.Conv2D(8, 1, name="second")(x))
    return keras.Model(inputs, _L.Dense(4, name="scores")(x))


def make_loud(model: keras.Model) -> keras.Model:
    """One channel of a layer 2**10 times as large, and the weights that read it as much smaller."""
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., 2] *= 1024.0
    bias[2] *= 1024.0
    model.get_layer("first").set_weights([kernel, bias])
    kernel, *rest = model.get_layer("each").get_weights()
    kernel[:, :, 2] /= 1024.0
    model.get_layer("each").set_weights([kernel, *rest])
    return model


def spread(model: keras.Model, name: str, axis: int) -> float:
    """Largest weight of the loudest channel, in those of the quietest one."""
    kernel = np.abs(np.moveaxis(model.get_layer(name).get_weights()[0], axis, 0))
    largest = kernel.reshape(len(kernel), -1).max(axis=1)
    return float(largest.max() / largest.min())


def test_the_outputs_stay_and_the_channels_are_alike():
    model = make_loud(build())
    before = core.predict(model, X)
    graph = normalize_graph(read_graph(model))
    assert equalize(graph) == 3  # first -> each, each -> second, second -> scores
    flat = rebuild(graph)
    np.testing.assert_allclose(core.predict(flat, X), before, atol=1e-4)
    assert spread(model, "first", -1) > 500.0
    assert spread(flat, "first", -1) < 8.0
    assert equalize(normalize_graph(read_graph(flat))) == 0  # nothing is left to do
    np.testing.assert_array_equal(core.predict(model, X), before)


@pytest.mark.parametrize("activation", ["tanh", "relu6"])
def test_a_function_without_such_a_factor_is_left(activation):
    assert equalize(normalize_graph(read_graph(make_loud(build(activation))))) == 0


def test_a_result_that_others_read_is_left():
    inputs = _L.Input((4,))
    first = _L.Dense(5, name="first")(inputs)
    model = keras.Model(inputs, [first, _L.Dense(3)(first)])
    assert equalize(normalize_graph(read_graph(model))) == 0
    shared = _L.Dense(4)
    model = keras.Model(inputs, _L.Dense(3)(shared(shared(inputs))))
    assert equalize(normalize_graph(read_graph(model))) == 0


@pytest.mark.parametrize("method", Method)
def test_an_int8_file_loses_less(method):
    model = make_loud(build())
    found = []
    for flag in (False, True):
        recipe = Recipe(name="mine", quantization=Quantization(method=method, equalize=flag))
        made = core.quantize(model, recipe, X)[0] if method is Method.QAT else model
        found.append(core.agreement(model, core.export_tflite(made, recipe, X), X)["sqnr_db"])
    assert found[1] > found[0] + 6.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "ptq", "activations": "float32"}, "int8 or int16"),
        ({"keep_clusters": True}, "clusters"),
    ],
)
def test_where_it_would_do_nothing_or_harm_it_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Quantization.model_validate({"equalize": True, **fields})
