"""Calls that put constants among the values they pass on: one range for both, or a refusal that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras
from tfmot_ops.errors import UnsupportedModelError

pytestmark = pytest.mark.slow

L = keras.layers
AROUND = [[0, 0], [1, 1], [1, 1], [0, 0]]
RECIPES = ["wi8_ai8", "wi8_ai8_ptq", "wi8_ai16", "wi8_ai8_aeq"]


def _pad(value: float) -> Callable[[Any], Any]:
    return lambda x: tf.pad(x, AROUND, constant_values=value)


CALLS: dict[str, Callable[[Any], Any]] = {
    "padding with 5": _pad(5.0),
    "padding with -20": _pad(-20.0),
    "padding of compat.v1": lambda x: tf.compat.v1.pad(x, AROUND, "CONSTANT", None, 9.0),
    "padding before a pool": lambda x: L.MaxPooling2D(3, 2)(_pad(5.0)(x)),
    "padding beside another reader": lambda x: L.Add()([_pad(-20.0)(x), L.ZeroPadding2D()(x)]),
    "padding of a relu": lambda x: _pad(-3.0)(L.ReLU()(x)),
    "concatenation with a fill": lambda x: tf.concat([x, tf.fill([tf.shape(x)[0], 8, 8, 1], 20.0)], -1),
    "stack with ones": lambda x: tf.reshape(tf.stack([x, 9.0 * tf.ones_like(x)], -1), [-1, 8, 8, 8]),
    "maximum above": lambda x: tf.maximum(x, 20.0),
    "maximum below": lambda x: tf.maximum(x, -1e9),
    "where": lambda x: tf.where(np.eye(8, dtype=bool)[None, :, :, None], x, 20.0),
    "clip": lambda x: tf.clip_by_value(x, 2.0, 40.0),
    # These bring none.
    "padding by reflection": lambda x: tf.pad(x, AROUND, "REFLECT"),
    "padding with zeros": keras.backend.spatial_2d_padding,
    "a larger image": lambda x: tf.image.pad_to_bounding_box(x, 1, 1, 10, 10),
    "turned round": lambda x: tf.roll(tf.reverse(x, [1]), 1, 2),
}


def _net(call: Callable[[Any], Any]) -> tuple[Any, np.ndarray]:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    x = call(L.Conv2D(4, 3, padding="same")(inputs))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x))), np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype(
        np.float32
    )


def _file(model: Any, recipe: str, x: np.ndarray) -> tuple[Any, bytes]:
    decoded = core.recipes.decode(recipe)
    net = core.quantize(model, decoded, x)[0] if recipe == "wi8_ai8" else model
    return net, core.export_tflite(net, decoded, x)


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_training_and_file_agree_in_int8(call: Callable[[Any], Any]) -> None:
    model, x = _net(call)
    recipe = core.recipes.decode("wi8_ai8")
    quantized, reports = core.quantize(model, recipe, x)
    assert not [report for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert (profile.float_ops, profile.requantize_ops) == (0, 0), profile.op_counts
    assert core.sqnr_db(quantized(x).numpy(), core.predict(data, x)) > 40.0
    assert core.sqnr_db(model(x).numpy(), core.predict(data, x)) > 30.0


@pytest.mark.parametrize("recipe", RECIPES[1:])
@pytest.mark.parametrize("name", ["padding with 5", "padding with -20", "padding of a relu", "where", "maximum below"])
def test_after_training(name: str, recipe: str) -> None:
    model, x = _net(CALLS[name])
    _, data = _file(model, recipe, x)
    assert core.sqnr_db(model(x).numpy(), core.predict(data, x)) > 35.0


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize("value", [5.0, -20.0])
def test_a_fixed_range_is_requantised_where_a_constant_leaves_it(gate: str, value: float) -> None:
    model, x = _net(lambda x: _pad(value)(L.Activation(gate)(x)))
    quantized, data = _file(model, "wi8_ai8", x)
    assert core.profile_tflite(data).requantize_ops == 1
    assert core.sqnr_db(quantized(x).numpy(), core.predict(data, x)) > 40.0


def test_a_fixed_range_stays_where_the_constant_is_in_it() -> None:
    model, x = _net(lambda x: tf.concat([L.Activation("sigmoid")(x), tf.ones_like(x)], -1))
    _, data = _file(model, "wi8_ai8", x)
    assert core.profile_tflite(data).float_ops == 0
    assert core.sqnr_db(model(x).numpy(), core.predict(data, x)) > 30.0


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("value", [-1e9, -np.inf, 3e38])
def test_a_constant_that_leaves_nothing_of_the_values_is_refused_by_name(value: float, recipe: str) -> None:
    model, x = _net(_pad(value))
    with pytest.raises(UnsupportedModelError, match=r"pad.*its constant .*(1e\+09|inf|3e\+38)"):
        _file(model, recipe, x)


@pytest.mark.parametrize(
    "call",
    [_pad(1000.0), lambda x: tf.where(x > 0.0, x, -1e9)],
    ids=["padding", "where"],
)
def test_what_is_far_from_the_values_is_seen_by_calibration(call: Callable[[Any], Any]) -> None:
    model, x = _net(call)
    for recipe in ("wi8_ai8", "wi8_ai8_ptq"):
        with pytest.raises(UnsupportedModelError, match="too far from the values beside it"):
            _file(model, recipe, x)


def test_far_padding_is_refused_without_calibration_too() -> None:
    model, _ = _net(_pad(-1e9))
    with pytest.raises(UnsupportedModelError, match="constant -1e"):
        core.quantize(model, core.recipes.decode("wi8_ai8"))


def test_far_constants_do_no_harm_in_float() -> None:
    model, x = _net(_pad(-1e9))
    _, data = _file(model, "wi8_afp32", x)
    assert core.sqnr_db(model(x).numpy(), core.predict(data, x)) > 30.0
    with pytest.raises(UnsupportedModelError, match="a number that float16 holds"):
        _file(model, "wi16f", x)


POOLS: dict[str, Callable[[Any], Any]] = {
    "layer": L.MaxPooling2D(3, 2),
    "layer of two": L.MaxPooling2D(2, 1),
    "global": L.GlobalMaxPooling2D(keepdims=True),
    "function": lambda x: tf.nn.max_pool2d(x, 3, 2, "VALID"),
    "both": lambda x: L.Concatenate()(
        [L.MaxPooling2D(3, 2)(x), tf.nn.max_pool2d(x, [1, 3, 3, 1], [1, 2, 2, 1], "VALID")]
    ),
}


@pytest.mark.parametrize("value", [-1e9, -np.inf])
@pytest.mark.parametrize("name", POOLS)
def test_padding_below_all_values_before_a_maximum(name: str, value: float) -> None:
    model, x = _net(lambda x: POOLS[name](_pad(value)(x)))
    np.testing.assert_allclose(core.normalize(model)(x), model(x), atol=1e-6)
    for recipe in RECIPES if name == "layer" else RECIPES[:2]:
        net, data = _file(model, recipe, x)
        assert core.sqnr_db(np.asarray(net(x)), core.predict(data, x)) > 35.0
        assert core.sqnr_db(model(x).numpy(), core.predict(data, x)) > 30.0


def test_padding_wider_than_the_window_is_no_edge() -> None:
    wide = [[0, 0], [2, 2], [2, 2], [0, 0]]
    model, _ = _net(lambda x: L.MaxPooling2D(3, 2)(tf.pad(x, wide, constant_values=-1e9)))
    with pytest.raises(UnsupportedModelError, match="constant"):
        core.quantize(model, core.recipes.decode("wi8_ai8"))
