"""Attention masks that are written by hand before a softmax: int8, and masked positions do not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras

pytestmark = pytest.mark.slow

L = keras.layers
QAT = core.recipes.decode("wi8_ai8")
Masked = Callable[[Any, Any], Any]

#: Name -> (type of the mask [N, 9], what is done to the scores [N, 9, 9] before and with the softmax).
SPELLINGS: dict[str, tuple[str, Masked]] = {
    "bool": ("bool", lambda s, m: tf.nn.softmax(s + (1.0 - tf.cast(m, tf.float32))[:, None, :] * -1e9)),
    "int": ("int32", lambda s, m: tf.nn.softmax(s + (1.0 - tf.cast(m[:, tf.newaxis], tf.float32)) * -10000.0)),
    "padding": (
        "int32",
        lambda s, m: L.Activation("softmax")(s + tf.cast(tf.math.equal(m, 0), tf.float32)[:, None] * -1e9),
    ),
    "float": ("float32", lambda s, m: tf.nn.softmax((1.0 - m)[:, None, :] * -1e9 + s, axis=-1)),
    "where": ("bool", lambda s, m: tf.nn.softmax(tf.where(m[:, None, :], s, -1e9))),
    "where not": ("bool", lambda s, m: L.Softmax()(tf.where(tf.logical_not(m)[:, None], tf.constant(-1e30), s))),
    "layer": ("bool", lambda s, m: L.Softmax()(s, mask=m[:, None, :])),
}


def _model(dtype: str, masked: Masked) -> Any:
    inputs, mask = keras.Input((9, 8)), keras.Input((9,), dtype=dtype)
    scores = tf.matmul(L.Dense(8)(inputs), L.Dense(8)(inputs), transpose_b=True) * 8**-0.5
    return keras.Model([inputs, mask], L.Dense(3)(tf.matmul(masked(scores, mask), L.Dense(8)(inputs))))


@pytest.mark.parametrize(("dtype", "masked"), SPELLINGS.values(), ids=list(SPELLINGS))
def test_is_int8_and_masked_positions_do_not_count(dtype: str, masked: Masked) -> None:
    keras.utils.set_random_seed(0)
    model, rng = _model(dtype, masked), np.random.default_rng(0)
    x, valid = rng.normal(size=(32, 9, 8)).astype(np.float32), np.arange(9) < rng.integers(3, 10, 32)[:, None]
    given = [x, valid.astype(np.dtype(dtype))]
    before = model.predict(given, verbose=0)
    assert np.allclose(core.normalize(model).predict(given, verbose=0), before, atol=1e-6)

    quantized, reports = core.quantize(model, QAT, given)
    assert [report for report in reports if report.outcome is Outcome.KEPT_FLOAT] == []
    quantized.compile("sgd", "mse")
    quantized.fit(given, before, verbose=0)  # the range of the scores is not drawn to -1e9
    file = core.export_tflite(quantized, QAT)
    profile = core.profile_tflite(file)
    assert (profile.int8_mac_fraction, profile.float_ops) == (1.0, 0), profile.op_counts
    found = core.predict(file, given)
    assert core.sqnr_db(core.predict(quantized, given), found) >= 35.0
    # Other values at masked steps change nothing at the other steps.
    other = [np.where(valid[..., None], x, -x), given[1]]
    steps = valid.nonzero()
    assert np.array_equal(core.predict(file, other)[steps], found[steps])


def test_large_numbers_that_are_no_mask_are_left() -> None:
    inputs = keras.Input((9, 8))
    softmax = tf.nn.softmax(L.Dense(8)(inputs) + L.Dense(8)(inputs) * -1e9)
    names = [type(layer).__name__ for layer in core.normalize(keras.Model(inputs, softmax)).layers]
    assert "MaskedScores" not in names
