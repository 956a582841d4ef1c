"""Tensors that are zero, or next to it, for every calibration sample: their files run, and are as good as any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.quantization.ranges import range_variables

pytestmark = pytest.mark.slow

L = keras.layers
Case = tuple[Any, Any]
_RANDOM = np.random.default_rng(0)
_IMAGES = _RANDOM.normal(size=(32, 8, 8, 3)).astype(np.float32)
_SERIES = _RANDOM.normal(size=(32, 16, 3)).astype(np.float32)
_VECTORS = _RANDOM.normal(size=(32, 8)).astype(np.float32)


def _constant(value: Any) -> Any:
    return keras.initializers.Constant(value)


def _beside(make: Callable[[Any], Any], x: Any, value: float = 0.0) -> Case:
    """A layer with a bias that reads a second input, next to one that reads an ordinary tensor."""
    alive, dead = keras.Input(x.shape[1:]), keras.Input(x.shape[1:])
    results = [make(_constant(bias))(tensor) for tensor, bias in ((alive, 0.0), (L.ReLU()(dead), 2.0))]
    answer = L.Dense(3)(L.Flatten()(L.Add()(results)))
    return keras.Model([alive, dead], answer), [x, np.full_like(x, value)]


def _fold(bias: Any) -> Any:
    convolution, norm = L.Conv2D(4, 3, use_bias=False), L.BatchNormalization(beta_initializer=bias)
    return lambda tensor: norm(convolution(tensor))


def _dead_layer(finish: Callable[[Any, Any], Any]) -> Case:
    """A layer whose relu never answers, and what is made of it and of one that does."""
    inputs = keras.Input((8, 8, 3))
    dead = L.Conv2D(4, 3, activation="relu", bias_initializer=_constant(-50.0))(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(finish(L.Conv2D(4, 3)(inputs), dead)))), _IMAGES


def _squeeze(alive: Any, dead: Any) -> Any:
    gate = L.Dense(4, "sigmoid", bias_initializer=_constant(1.5))(L.GlobalAveragePooling2D()(dead))
    return L.Multiply()([alive, L.Reshape((1, 1, 4))(gate)])


def _attention(alive: Any, dead: Any) -> Any:
    keys, values = L.Reshape((36, 4))(dead), L.Reshape((36, 4))(alive)
    return tf.matmul(L.Softmax()(tf.matmul(values, keys, transpose_b=True)), values)


def _difference() -> Case:
    inputs = keras.Input((8,))
    values = L.Dense(6)(inputs)
    nothing = L.Subtract()([values, values])
    return keras.Model(
        inputs, L.Dense(3)(L.Add()([values, L.Dense(6, bias_initializer=_constant(2.0))(nothing)]))
    ), _VECTORS


def _faded(layer: Any, scale: float = 1e-8) -> Case:
    """One channel of a kernel is next to nothing, its bias is not."""
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(layer(inputs))))
    kernel, bias = layer.get_weights()
    if isinstance(layer, L.Conv2D) and not isinstance(layer, L.Conv2DTranspose):
        kernel[..., 0] *= scale
    else:
        kernel[:, :, 0] *= scale
    layer.set_weights([kernel, bias])
    return model, _IMAGES


def _faded_norm(free: bool) -> Case:
    inputs, norm = keras.Input((8, 8, 3)), L.BatchNormalization(beta_initializer=_constant(3.0))
    before = L.Add()([inputs, inputs]) if free else L.Conv2D(3, 3, use_bias=False)(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.ReLU()(norm(before)))))
    norm.set_weights([np.array([1e-9, 1.0, 1.0], np.float32), *norm.get_weights()[1:]])
    return model, _IMAGES


CASES: dict[str, Callable[[], Case]] = {
    "dead input of a Dense": lambda: _beside(lambda bias: L.Dense(4, bias_initializer=bias), _VECTORS),
    "large bias": lambda: _beside(
        lambda bias: L.Dense(4, bias_initializer=_constant(1e4 * bias.value + 1.0)), _VECTORS
    ),
    "dead input of a Conv2D": lambda: _beside(lambda bias: L.Conv2D(4, 3, bias_initializer=bias), _IMAGES),
    "dead input of a Conv1D": lambda: _beside(lambda bias: L.Conv1D(4, 3, bias_initializer=bias), _SERIES),
    "dead input of a depthwise": lambda: _beside(lambda bias: L.DepthwiseConv2D(3, bias_initializer=bias), _IMAGES),
    "dead input of a transposed": lambda: _beside(lambda bias: L.Conv2DTranspose(4, 3, bias_initializer=bias), _IMAGES),
    "dead input of a folded norm": lambda: _beside(_fold, _IMAGES),
    "dead input of a free norm": lambda: _beside(lambda bias: L.BatchNormalization(beta_initializer=bias), _IMAGES),
    "input of 1e-9": lambda: _beside(lambda bias: L.Conv2D(4, 3, bias_initializer=bias), _IMAGES, 1e-9),
    "input of 1e-7": lambda: _beside(lambda bias: L.DepthwiseConv2D(3, bias_initializer=bias), _IMAGES, 1e-7),
    "dead squeeze": lambda: _dead_layer(_squeeze),
    "dead summand": lambda: _dead_layer(lambda alive, dead: L.Add()([alive, dead])),
    "dead part": lambda: _dead_layer(lambda alive, dead: L.Concatenate()([alive, dead])),
    "dead keys": lambda: _dead_layer(_attention),
    "dead tensor standardised": lambda: _dead_layer(
        lambda alive, dead: L.Concatenate()([alive, L.LayerNormalization()(dead)])
    ),
    "difference of equals": _difference,
    "faded channel": lambda: _faded(L.Conv2D(4, 3, bias_initializer=_constant(3.0))),
    "faded depthwise channel": lambda: _faded(L.DepthwiseConv2D(3, bias_initializer=_constant(3.0))),
    "faded transposed channel": lambda: _faded(L.Conv2DTranspose(4, 3, bias_initializer=_constant(3.0))),
    "faded scale folded": lambda: _faded_norm(free=False),
    "faded scale free": lambda: _faded_norm(free=True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_as_good_as_the_quantised_model(case: str) -> None:
    keras.utils.set_random_seed(0)
    model, x = CASES[case]()
    recipe = core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(model, recipe, x)
    file = core.export_tflite(quantized, recipe)
    assert core.agreement(model, quantized, x)["sqnr_db"] >= 33.0
    assert core.agreement(quantized, file, x).get("sqnr_db", np.inf) >= 45.0
    assert core.profile_tflite(file).int8_mac_fraction == 1.0


@pytest.mark.parametrize("recipe", ["wi8_ai8_ptq", "wi8_ai8_ptq_aeq", "wi8_ai16_ptq", "wi8_ai16_ptq_aeq"])
@pytest.mark.parametrize(
    "case",
    [
        *("dead input of a Dense", "large bias", "dead input of a depthwise", "dead input of a transposed"),
        *("input of 1e-9", "dead squeeze", "dead summand", "dead tensor standardised", "difference of equals"),
        *("faded channel", "faded scale free"),
    ],
)
def test_after_training_too(case: str, recipe: str) -> None:
    keras.utils.set_random_seed(0)
    model, x = CASES[case]()
    decoded = core.recipes.decode(recipe)
    assert core.agreement(model, core.export_tflite(model, decoded, x), x)["sqnr_db"] >= 33.0


@pytest.mark.parametrize("width", [0.0, 1e-37, 1e-12, 1e-6])
@pytest.mark.parametrize("case", ["dead input of a Conv2D", "dead squeeze", "dead summand", "difference of equals"])
def test_ranges_that_training_let_shrink(case: str, width: float) -> None:
    keras.utils.set_random_seed(0)
    model, x = CASES[case]()
    recipe = core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(model, recipe, x)
    # A range of [0, 1] is what calibration gives a tensor of zeros.
    found = [pair for layer in quantized.layers if (pair := range_variables(layer)) and float(pair[1]) == 1.0]
    assert found
    for low, high in found:
        low.assign(0.0)
        high.assign(width)
    file = core.export_tflite(quantized, recipe)
    assert core.agreement(model, file, x)["sqnr_db"] >= 33.0


def test_a_part_that_is_dead_leaves_the_range_of_the_others_alone() -> None:
    model, x = CASES["dead part"]()
    quantized, _ = core.quantize(model, core.recipes.decode("wi8_ai8"), x * np.float32(1e-2))
    highs = [float(pair[1]) for layer in quantized.layers if (pair := range_variables(layer))]
    assert max(highs) < 0.5
