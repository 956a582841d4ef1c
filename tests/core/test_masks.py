"""Masks: what Keras hands on beside the tensors reaches every call that takes it, in each form of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_schedule import ConstantSparsity

from tfmot_ops import core
from tfmot_ops.contract import Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.pruning.wrappers import wrap_low_magnitude
from tfmot_ops.core.quantization.without_rounding import outputs_without_fake_quant
from tfmot_ops.errors import UnsupportedModelError

pytestmark = pytest.mark.slow

L = keras.layers
FLOAT = Recipe(name="float")
STEPS = 5


def ids() -> np.ndarray:
    values = np.random.default_rng(0).integers(1, 20, (16, STEPS)).astype(np.int32)
    values[:, 3:] = 0
    values[:5, 1:] = 0
    return values


def steps() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(16, STEPS, 3)).astype(np.float32)
    values[:, 3:] = 0
    return values


def embedded() -> tuple[Any, Any]:
    inputs = keras.Input((STEPS,), dtype="int32")
    rows = keras.initializers.RandomUniform(-1.0, 1.0, seed=0)
    return inputs, L.Embedding(20, 8, mask_zero=True, embeddings_initializer=rows)(inputs)


def of_embedded(body: Callable[[Any], Any]) -> Callable[[], Any]:
    def build() -> Any:
        inputs, rows = embedded()
        return keras.Model(inputs, L.Dense(4)(body(rows)))

    return build


def nested() -> Any:
    line = keras.Input((STEPS, 8))
    inner = keras.Model(line, L.LSTM(8, return_sequences=True)(line), name="inner")
    inputs, rows = embedded()
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling1D()(inner(rows))))


def sequential() -> Any:
    return keras.Sequential(
        [
            L.Input((STEPS, 3)),
            L.Masking(),
            L.GRU(8, return_sequences=True),
            L.TimeDistributed(L.Dense(5)),
            L.GlobalAveragePooling1D(),
        ]
    )


MODELS = {
    "lstm": of_embedded(L.LSTM(8)),
    "pooled": of_embedded(L.GlobalAveragePooling1D()),
    # Its parts stand for one layer that hands the mask on.
    "layer_norm": of_embedded(lambda x: L.GlobalAveragePooling1D()(L.LayerNormalization()(x))),
    # A function of TensorFlow hands no mask on; what stands for it has not to, either.
    "dropped": of_embedded(lambda x: L.LSTM(8)(tf.nn.relu(x * 3.0))),
    "both_ways": of_embedded(L.Bidirectional(L.LSTM(4, return_sequences=True))),
    "merged": of_embedded(lambda x: L.GlobalAveragePooling1D()(L.Concatenate()([L.Dropout(0.1)(x), x]))),
    "self_attention": of_embedded(lambda x: L.GlobalAveragePooling1D()(L.MultiHeadAttention(2, 4)(x, x))),
    "attention": of_embedded(lambda x: L.GlobalMaxPooling1D()(L.Attention()([x, L.Dense(8)(x)]))),
    "nested": nested,
    "masking": sequential,
}


def outputs(model: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(model(x, training=False))


@pytest.mark.parametrize("name", MODELS)
def test_every_form_of_a_model_computes_under_the_same_masks(name: str, tmp_path: Any) -> None:
    keras.utils.set_random_seed(0)
    model, x = MODELS[name](), steps() if name == "masking" else ids()
    expected = outputs(model, x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(outputs(core.normalize(model), x), expected, atol=1e-5 * scale)
    assert core.sqnr_db(expected, core.predict(core.export_tflite(model, FLOAT, x), x)) > 60.0
    recipe = core.recipes.decode("wi8_ai8")
    quantized, _ = core.quantize(model, recipe, x)
    np.testing.assert_allclose(outputs_without_fake_quant(quantized, [x]), expected, atol=1e-5 * scale)
    rounded = outputs(quantized, x)
    assert core.sqnr_db(expected, rounded) > 20.0
    core.save_model(quantized, tmp_path / "m.h5")
    np.testing.assert_array_equal(outputs(core.load_model(tmp_path / "m.h5"), x), rounded)
    assert core.sqnr_db(rounded, core.predict(core.export_tflite(quantized, recipe, x), x)) > 20.0


def test_a_pruned_model_keeps_its_masks() -> None:
    model, x = MODELS["lstm"](), ids()
    recipe = core.recipes.decode("sparse1")
    stripped = core.strip(core.prune(model, recipe)[0])
    assert core.sqnr_db(outputs(model, x), outputs(stripped, x)) > 20.0


def masked(body: Callable[[Any], Any]) -> Callable[[], Any]:
    def build() -> Any:
        inputs = keras.Input((STEPS, 3))
        return keras.Model(inputs, L.Dense(4)(body(L.Masking()(inputs))))

    return build


def with_state(x: Any) -> Any:
    line, *state = L.LSTM(4, return_sequences=True, return_state=True)(x)
    return L.LSTM(4)(L.Dense(3)(line), initial_state=state)


#: What a mask goes through, of an embedding or of `Masking`: layers that read it, hand it on, or take none.
CHAINS: dict[str, Callable[[], Any]] = {
    **{name: MODELS[name] for name in ("pooled", "layer_norm", "both_ways", "merged", "self_attention")},
    "a dense layer after an embedding": of_embedded(lambda x: L.GlobalAveragePooling1D()(L.Dense(5)(x))),
    "a convolution": of_embedded(lambda x: L.GlobalAveragePooling1D()(L.Conv1D(5, 3, padding="same")(x))),
    "attention of dense layers": of_embedded(
        lambda x: L.GlobalAveragePooling1D()(L.Attention()([L.Dense(8)(x), L.Dense(8)(x)]))
    ),
    "a dense layer": masked(lambda x: L.GlobalAveragePooling1D()(L.Dense(5)(x))),
    "two recurrent layers": masked(lambda x: L.GRU(4)(L.LSTM(4, return_sequences=True)(x))),
    "a layer for each step": masked(lambda x: L.GlobalAveragePooling1D()(L.TimeDistributed(L.Dense(5))(x))),
    "a cell": masked(lambda x: L.GlobalAveragePooling1D()(L.RNN(L.LSTMCell(4), return_sequences=True)(L.Dense(3)(x)))),
    "a normalised dense layer": masked(
        lambda x: L.GlobalAveragePooling1D()(L.Dropout(0.1)(L.BatchNormalization()(L.Dense(4)(x))))
    ),
    "a state": masked(with_state),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_model_is_the_same_in_every_stage_of_pruning(name: str, tmp_path: Any) -> None:
    keras.utils.set_random_seed(0)
    model = CHAINS[name]()
    x = ids() if model.input.dtype == tf.int32 else steps()
    expected = outputs(model, x)
    pruned, _ = core.prune(model, core.recipes.decode("sparse50"), end_step=10)
    stages = [pruned, core.strip(pruned), core.normalize(core.strip(pruned))]
    wrapped = wrap_low_magnitude(model, pruning_schedule=ConstantSparsity(0.5, 1))
    core.save_model(wrapped, tmp_path / "wrapped.h5")
    stages += [wrapped, core.strip(wrapped), core.load_model(tmp_path / "wrapped.h5")]
    for stage in stages:
        np.testing.assert_allclose(outputs(stage, x), expected, rtol=0, atol=1e-6)


def test_a_wrapped_layer_keeps_its_state_and_its_regulariser() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(4, 5, 3))
    line = L.LSTM(4, stateful=True)(inputs)
    model = keras.Model(inputs, L.Dense(2, activity_regularizer="l2")(line))
    wrapped = wrap_low_magnitude(model, pruning_schedule=ConstantSparsity(0.5, 1))
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    for _ in range(2):
        pairs = [(outputs(model, x), outputs(wrapped, x)) for _ in range(2)]
        assert np.abs(pairs[0][0] - pairs[1][0]).max() > 0.01
        for one, other in pairs:
            np.testing.assert_allclose(other, one, atol=1e-6)
        np.testing.assert_allclose(wrapped.losses, model.losses, rtol=1e-6)
        assert len(wrapped.losses) == 1
        model.reset_states()
        wrapped.reset_states()


def test_a_pruned_model_trains_under_its_masks() -> None:
    keras.utils.set_random_seed(0)
    model, x = CHAINS["a dense layer"](), steps()
    pruned, _ = core.prune(model, core.recipes.decode("sparse50"), end_step=4)
    pruned.compile("sgd", "mse")
    pruned.fit(x, np.zeros((16, 4), np.float32), epochs=6, batch_size=8, verbose=0, callbacks=core.pruning_callbacks())
    expected = outputs(pruned, x)
    np.testing.assert_allclose(outputs(core.strip(pruned), x), expected, atol=1e-6)


def test_masks_are_read_only_where_there_are_any() -> None:
    inputs = keras.Input((STEPS, 3))
    graph = read_graph(keras.Model(inputs, L.BatchNormalization()(L.LSTM(4)(inputs))))
    assert [type(node.layer).__name__ for node in graph.nodes] == ["LSTM", "BatchNormalization"]
    assert all("mask" not in node.kwargs for node in graph.nodes)


class OpaqueMask(L.Layer):
    def call(self, inputs: Any, training: Any = None) -> Any:
        del training
        return inputs

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        del mask
        if keras.backend.is_keras_tensor(inputs):
            raise TypeError("not of symbols")
        return inputs[..., 0] > 0.0


def test_a_mask_that_cannot_be_carried_is_refused_by_name() -> None:
    inputs = keras.Input((STEPS, 3))
    model = keras.Model(inputs, L.LSTM(4)(OpaqueMask(name="opaque")(inputs)))
    with pytest.raises(UnsupportedModelError, match="opaque"):
        read_graph(model)
