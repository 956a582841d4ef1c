"""Calls whose results are lists, tuples, dicts or named tuples, of one tensor or several; and names that clash."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core

K = core.keras
L = K.layers
QAT, PTQ, SPARSE = (core.recipes.decode(name) for name in ("wi8_ai8", "wi8_ai8_ptq", "sparse50_wi8_ai8"))
X = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
#: QAT and file compute the same levels, except for values halfway between two.
SAME, CLOSE = 50.0, 22.0
#: A layer's own output, by TFLite's built-in kernels, which round halves the other way.
LAYER = 35.0

Pair = namedtuple("Pair", "first second")  # noqa: PYI024 - the user's, without types


@K.saving.register_keras_serializable("test_result_structures")
class Dictionary(L.Layer):
    """Two convolutions, returned in a dict with a list of one in it."""

    def build(self, input_shape):
        self.one, self.two = L.Conv2D(4, 1), L.Conv2D(4, 1)
        super().build(input_shape)

    def call(self, inputs):
        return {"b": self.one(inputs), "a": [self.two(inputs)]}


@K.saving.register_keras_serializable("test_result_structures")
class Named(L.Layer):
    """A convolution and a ReLU, returned as a named tuple."""

    def build(self, input_shape):
        self.one = L.Conv2D(4, 1)
        super().build(input_shape)

    def call(self, inputs):
        return Pair(self.one(inputs), tf.nn.relu(inputs))


@K.saving.register_keras_serializable("test_result_structures")
class ClosedList(L.Layer):
    """A list of one result from a layer that is not opened, as it draws random numbers in training."""

    def call(self, inputs, training=None):
        return [inputs + tf.random.normal(tf.shape(inputs)) if training else inputs * 2.0]


@K.saving.register_keras_serializable("test_result_structures")
class PassedOn(L.Layer):
    """The input in a list of one."""

    def call(self, inputs, training=None):
        del training
        return [inputs]


@K.saving.register_keras_serializable("test_result_structures")
class AddMask(L.Layer):
    """Adds a second tensor, given by name."""

    def call(self, inputs, mask=None):
        return inputs + mask


@K.saving.register_keras_serializable("test_result_structures")
class HandsVariable(L.Layer):
    """Hands a variable of its own to an inner layer."""

    def build(self, input_shape):
        self.inner = AddMask()
        self.held = tf.Variable(np.ones(input_shape[1:], "float32"), trainable=False)

    def call(self, inputs):
        return self.inner(inputs, mask=self.held)


def _split_one(h: Any) -> Any:
    return tf.split(h, 1, axis=-1)[0]


def _two_splits(h: Any) -> Any:
    a, b = tf.split(h, 2, axis=-1)
    c, d = tf.split(a + b, 2, axis=-1)
    return c * d


def _many_splits(h: Any) -> Any:
    parts = [part for half in tf.split(h, 2, axis=-1) for part in tf.split(half, 2, axis=-1)]
    return tf.add_n(parts)


def _of_dictionary(h: Any) -> Any:
    results = Dictionary()(h)
    return L.Add()([results["b"], results["a"][0]])


def _of_named(h: Any) -> Any:
    results = Named()(h)
    return results.first + results.second


def _named_like_split(h: Any) -> Any:
    a, b = tf.split(h, 2, axis=-1)
    return L.Concatenate(name="quantize_tf.split_1")([L.Conv2D(4, 1, name="tf.split_1")(a), b])


BODIES: dict[str, Callable[[Any], Any]] = {
    "list of one": _split_one,
    "two splits": _two_splits,
    "four splits": _many_splits,
    "layers named like results": _named_like_split,
    "uneven split": lambda h: L.Concatenate()(tf.split(h, [1, 3], axis=-1)[::-1]),
    "unstack": lambda h: tf.stack(tf.unstack(h, axis=1)[::2], axis=1),
    "unstack of one": lambda h: tf.unstack(h[:, :1], axis=1)[0][:, None],
    "top_k": lambda h: tf.math.top_k(h, 2).values,
    "moments": lambda h: h - tf.nn.moments(h, [1, 2], keepdims=True)[0],
    "dict": _of_dictionary,
    "named tuple": _of_named,
    "closed list of one": lambda h: ClosedList()(h)[0],
    "list of one, passed on": lambda h: PassedOn()(h)[0],
    "variable to inner layer": lambda h: HandsVariable()(h),  # noqa: PLW0108 - a new layer for each model
}


def _model(body: Callable[[Any], Any]) -> Any:
    K.utils.set_random_seed(0)
    i = K.Input((8, 8, 4))
    return K.Model(i, L.Conv2D(3, 1, name="last")(body(L.Conv2D(4, 1, name="first")(i))))


def _sqnr(a: Any, b: Any) -> float:
    return core.sqnr_db(*(np.concatenate([np.ravel(part) for part in _list(core.predict(m, X))]) for m in (a, b)))


def _list(outputs: Any) -> list[Any]:
    return outputs if isinstance(outputs, list) else [outputs]


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_structures_of_results(name: str) -> None:
    model = _model(BODIES[name])
    assert _sqnr(model, core.normalize(model)) > 100.0
    quantized, _ = core.quantize(model, QAT, X)
    file = core.export_tflite(quantized, QAT)
    assert _sqnr(quantized, file) > SAME
    assert _sqnr(model, file) > CLOSE
    assert _sqnr(model, core.export_tflite(model, PTQ, X)) > CLOSE
    assert core.layer_sqnr(model, quantized, file, X)


@pytest.mark.parametrize("name", ["list of one", "two splits", "four splits", "unstack", "top_k", "dict"])
def test_nothing_stays_float_for_the_structure(name: str) -> None:
    quantized, _ = core.quantize(_model(BODIES[name]), QAT, X)
    assert core.profile_tflite(core.export_tflite(quantized, QAT)).float_ops == 0


def test_a_list_of_one_is_the_output() -> None:
    i = K.Input((8, 8, 4))
    model = K.Model(i, tf.split(L.Conv2D(4, 1)(i), 1, axis=-1))
    quantized, _ = core.quantize(model, QAT, X)
    assert _sqnr(quantized, core.export_tflite(quantized, QAT)) > SAME


def test_results_keep_their_ranges_when_saved(tmp_path) -> None:
    quantized, _ = core.quantize(_model(_two_splits), QAT, X)
    core.save_model(quantized, tmp_path / "model.h5")
    loaded = core.load_model(tmp_path / "model.h5")
    np.testing.assert_array_equal(core.predict(loaded, X), core.predict(quantized, X))


# Names


def _named(*names: str) -> Any:
    K.utils.set_random_seed(0)
    i = h = K.Input((8, 8, 4))
    for place, name in enumerate(names):
        h = L.Conv2D(8 + place, 3, padding="same", name=name)(h)
    return K.Model(i, h)


@pytest.mark.parametrize(
    "names",
    [
        ("Conv", "conv", "CONV"),
        ("a>b", "a_b", "a-b", "a.b"),
        ("conv_1", "conv", "conv_1_1"),
        ("L.conv", "conv", "quant_conv"),
    ],
)
def test_names_that_become_equal_in_the_file(names: tuple[str, ...]) -> None:
    model = _named(*names)
    stripped = core.strip(core.prune(model, SPARSE)[0])
    quantized, _ = core.quantize(stripped, SPARSE, X)
    file = core.export_tflite(quantized, SPARSE)  # finds the zeros of each layer by its name
    assert _sqnr(quantized, file) > SAME
    rows = core.layer_sqnr(model, quantized, file, X)
    assert [row.path for row in rows] == list(names)
    assert all(row.qat_to_tflite_db is not None and row.qat_to_tflite_db > LAYER for row in rows)


def test_an_excluded_layer_beside_one_that_differs_in_case() -> None:
    fields = PTQ.model_dump()
    fields["quantization"]["scope"] = {"exclude": ["conv"]}
    recipe = type(PTQ).model_validate(fields)
    file = core.export_tflite(_named("Conv", "conv"), recipe, X)
    kinds = {row.path: str(row.outcome) for row in core.report_file(_named("Conv", "conv"), file)}
    assert kinds == {"Conv": "quantized", "conv": "kept_float"}


def test_calls_of_a_shared_layer_beside_a_layer_of_the_same_number() -> None:
    K.utils.set_random_seed(0)
    i = K.Input((8, 8, 4))
    shared = L.Conv2D(4, 3, padding="same", name="c")
    model = K.Model(i, L.Conv2D(4, 1, name="c_1")(shared(shared(i))))
    quantized, _ = core.quantize(model, QAT, X)
    rows = core.layer_sqnr(model, quantized, core.export_tflite(quantized, QAT), X)
    assert [row.path for row in rows] == ["c", "c#2", "c_1"]
    assert all(row.qat_to_tflite_db is not None and row.qat_to_tflite_db > LAYER for row in rows)


def test_names_of_inputs_in_other_alphabets() -> None:
    i = K.Input((8, 8, 4), name="größe")
    model = K.Model(i, L.Conv2D(3, 1)(i))
    quantized, _ = core.quantize(model, QAT, X)
    assert _sqnr(quantized, core.export_tflite(quantized, QAT)) > SAME
    assert _sqnr(model, core.export_tflite(model, PTQ, X)) > CLOSE
