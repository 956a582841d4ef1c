"""Merges of many tensors: int8 throughout, the same values as in Keras, and reported as what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras
from tfmot_ops.core.quantization.without_rounding import outputs_without_fake_quant

pytestmark = pytest.mark.slow

L = keras.layers
#: (a [N, 8, 8, 4], a function that gives another tensor of as many channels as asked for) -> the merged tensor.
Merge = Callable[[Any, Callable[..., Any]], Any]
ARRAY = np.random.default_rng(1).normal(size=(8, 8, 4)).astype(np.float32)

MERGES: dict[str, Merge] = {
    **{
        f"{cls.__name__} of {count}": lambda a, more, cls=cls, count=count: cls()(
            [a, *(more() for _ in range(count - 1))]
        )
        for cls in (L.Add, L.Multiply, L.Average, L.Maximum, L.Minimum, L.Concatenate)
        for count in (3, 4)[: 2 if cls is L.Add else 1]
    },
    "Add of five": lambda a, more: L.Add()([a, more(), more(), more(), more()]),
    "Add, one twice": lambda a, more: L.Add()([a, a, more()]),
    "Add, one three times": lambda a, _: L.Add()([a, a, a]),
    "Multiply, one twice": lambda a, more: L.Multiply()([a, more(), a]),
    "Average, one twice": lambda a, more: L.Average()([a, a, more()]),
    "Average of one": lambda a, _: L.Average()([a]),
    "Add of other shapes": lambda a, more: L.Add()([more(1), L.GlobalAveragePooling2D(keepdims=True)(a), a]),
    "Add of other ranks": lambda a, more: L.Add()([L.GlobalAveragePooling2D()(a), a, more(1)]),
    "Multiply of other ranks": lambda a, more: L.Multiply()([L.GlobalAveragePooling2D()(a), a, more(1)]),
    "Add before a relu": lambda a, more: L.ReLU()(L.Add()([a, more(), more()])),
    "Add of activations": lambda a, more: L.Add()([L.ReLU()(a), L.Activation("tanh")(more()), L.Softmax()(more())]),
    "Add with a constant": lambda a, more: L.Add()([a, tf.constant(ARRAY[None]), more()]),
    "add_n": lambda a, more: tf.add_n([a, more(), more()]),
    "add_n of two": lambda a, more: tf.add_n([a, more()]),
    "add_n of one": lambda a, _: tf.add_n([a]),
    "add_n of one twice": lambda a, _: tf.add_n([a, a]),
    "add_n with ones": lambda a, _: tf.add_n([a, 3.0 * tf.ones_like(a)]),
    "accumulate_n": lambda a, more: tf.math.accumulate_n([a, more(), more()]),
    "operators": lambda a, more: a + more() + more() * a - more(),
    "sum of a list": lambda a, more: sum([a, more(), more()]),
    "reduce_sum of a stack": lambda a, more: tf.reduce_sum(tf.stack([a, more(), more()]), 0),
    "reduce_mean of a stack": lambda a, more: tf.reduce_mean(tf.stack([a, more(), more()], -1), -1),
    "plus an array": lambda a, _: a + ARRAY,
    "times an array": lambda a, _: ARRAY * a,
    "array minus": lambda a, _: ARRAY - a,
}


def _net(merge: Merge) -> tuple[Any, np.ndarray]:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    a = L.Conv2D(4, 3, padding="same")(inputs)
    merged = merge(a, lambda channels=4: L.Conv2D(channels, 1)(a))
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(merged))), x


@pytest.mark.parametrize("merge", MERGES.values(), ids=list(MERGES))
def test_a_merge_is_int8_and_what_keras_computes(merge: Merge) -> None:
    model, x = _net(merge)
    expected, recipe = model(x, training=False).numpy(), core.recipes.decode("wi8_ai8")
    quantized, reports = core.quantize(model, recipe, x)
    np.testing.assert_allclose(
        outputs_without_fake_quant(quantized, [x]), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    assert not [report for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    data = core.export_tflite(quantized, recipe)
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0), profile.op_counts
    rounded = quantized(x, training=False).numpy()
    # A constant of many numbers is rounded in the file alone.
    assert core.sqnr_db(rounded, core.predict(data, x)) > 30.0
    assert core.sqnr_db(expected, rounded) > 20.0


@pytest.mark.parametrize("name", ["Add of 4", "Multiply of 3", "Average of 3", "add_n", "accumulate_n"])
@pytest.mark.parametrize("recipe", ["wi8_ai8_ptq", "wi8_ai16", "wi8_ai8_aeq"])
def test_a_merge_after_training(recipe: str, name: str) -> None:
    model, x = _net(MERGES[name])
    data = core.export_tflite(model, core.recipes.decode(recipe), x)
    profile = core.profile_tflite(data)
    assert (profile.float_ops, profile.requantize_ops) == (0, 0), profile.op_counts
    assert core.sqnr_db(model(x).numpy(), core.predict(data, x)) > 20.0


def test_a_shared_merge_stays_shared_and_keeps_its_name() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    merge = L.Add(name="merge")
    a, b, c = (L.Dense(4)(inputs) for _ in "abc")
    model = keras.Model(inputs, L.Dense(2)(merge([merge([a, b, c]), b, c])))
    flat = core.normalize(model)
    assert [layer.name for layer in flat.layers if isinstance(layer, L.Add)] == ["merge_of_2", "merge"]
    x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    np.testing.assert_array_equal(flat(x), model(x))
    assert merge._inbound_nodes[0].layer is merge
    assert len(merge._inbound_nodes) == 2
