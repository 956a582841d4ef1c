"""Good model files are loaded: what Keras, tfmot and this package make, and what the user's process has registered."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from untrusted import small_model

from tfmot_ops import core
from tfmot_ops.core import keras
from tfmot_ops.core.graph.rules.arithmetic import _ACTIVATIONS, _MERGES
from tfmot_ops.core.saving.safe_configs import unsafe_names
from tfmot_ops.core.saving.safe_graphs import is_symbol_of_tensors
from tfmot_ops.errors import ArtifactError

L = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


class Doubled(L.Layer):
    """A layer of the user's own."""

    def call(self, inputs: Any) -> Any:
        return 2.0 * inputs


def squashed(x: Any) -> Any:
    return tf.tanh(x)


def far(truth: Any, guess: Any) -> Any:
    return tf.reduce_mean(tf.abs(truth - guess), -1)


@pytest.mark.parametrize("suffix", ["", ".h5", ".keras"])
def test_what_the_process_has_registered_is_loaded(tmp_path, suffix) -> None:
    inputs = keras.Input((4,))
    # Keras itself cannot load a function of the user's in a layer of a .h5 file.
    model = keras.Model(inputs, L.Dense(2, None if suffix == ".h5" else squashed)(Doubled()(inputs)))
    model.compile("sgd", far, [far])
    path = tmp_path / f"m{suffix}"
    model.save(path, save_format=None if suffix else "tf")
    with keras.saving.custom_object_scope({"Doubled": Doubled, "squashed": squashed, "far": far}):
        loaded = core.load_model(path)
    np.testing.assert_array_equal(loaded(np.ones((1, 4))), model(np.ones((1, 4))))
    if suffix:
        with pytest.raises(ArtifactError, match="register_keras_serializable"):
            core.load_model(path)


def test_a_layer_that_is_not_registered_comes_from_the_graph(tmp_path) -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(2)(Doubled()(inputs)))
    model.save(tmp_path / "m", save_format="tf")
    np.testing.assert_array_equal(core.load_model(tmp_path / "m")(np.ones((1, 4))), model(np.ones((1, 4))))


def _many_kinds() -> Any:
    inputs = L.Input((8, 4))
    x = L.Bidirectional(L.LSTM(3, return_sequences=True))(inputs)
    x = L.RNN(L.StackedRNNCells([L.GRUCell(3), L.LSTMCell(2)]), return_sequences=True)(x)
    x = L.MultiHeadAttention(2, 2)(x, x)
    x = tf.concat([tf.nn.relu6(x), tf.math.sin(x[:, :, :1]), keras.activations.gelu(x)], -1)
    x = L.Activation(tf.nn.leaky_relu)(tf.clip_by_value(tf.linalg.matmul(x, x, transpose_b=True), -1.0, 1.0))
    x = L.Dense(3, "selu", kernel_initializer=keras.initializers.Constant(0.5))(x)
    x = keras.Sequential([L.Normalization(mean=0.0, variance=1.0), L.Dropout(0.1), L.Dense(2, dtype="mixed_float16")])(
        x
    )
    model = keras.Model(inputs, L.Dense(2, "softmax", kernel_regularizer=keras.regularizers.L1L2(0.1, 0.1))(x))
    metrics = [keras.metrics.AUC(), keras.metrics.TopKCategoricalAccuracy(2), "mae"]
    model.compile(keras.optimizers.legacy.SGD(0.1), keras.losses.Huber(), metrics)
    return model


def _recurrent() -> Any:
    model = keras.Sequential([L.Input((3, 2)), L.LSTM(2), L.Dropout(0.5), L.Dense(2)])
    model.compile("adam", "mse")
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *(("many", ".h5"), ("many", ".keras"), ("recurrent", ""), ("pruned", ""), ("pruned", ".h5")),
        *(("pruned", ".keras"), ("quantized", ""), ("quantized", ".h5"), ("quantized", ".keras")),
    ],
)
def test_good_files_are_loaded(tmp_path, kind, suffix) -> None:
    recipe = core.recipes.decode("sparse50_wi8_ai8")
    make = {
        "many": _many_kinds,
        "recurrent": _recurrent,
        "pruned": lambda: core.prune(small_model(), recipe)[0],
        "quantized": lambda: core.quantize(small_model(), recipe)[0],
    }
    model, path = make[kind](), tmp_path / f"m{suffix}"
    model.save(path, save_format=None if suffix else "tf")
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype(np.float32)
    np.testing.assert_allclose(core.load_model(path)(x), model(x), atol=1e-5)


def test_every_class_of_keras_is_known() -> None:
    kinds = ("layers", "initializers", "regularizers", "constraints", "losses", "metrics", "optimizers")
    refused: dict[str, set[str]] = {"with a module": set(), "by its name alone": set()}
    for module in (*kinds, "optimizers.legacy", "optimizers.schedules"):
        for name, cls in vars(operator.attrgetter(module)(keras)).items():
            if isinstance(cls, type) and hasattr(cls, "from_config"):
                alone = {"class_name": name, "config": {}}
                named = alone | {"module": f"keras.{module}", "registered_name": None}
                for way, config in zip(refused, (named, alone), strict=True):
                    refused[way] |= {name} if list(unsafe_names(config)) else set()
    symbols = {"ClassMethod", "InstanceMethod", "InstanceProperty", "SlicingOpLambda", "TFOpLambda"}
    assert refused["with a module"] - symbols == {"Lambda"}
    # Keras itself does not find these two by their names alone.
    assert refused["by its name alone"] - symbols <= {"Lambda", "PreprocessingLayer", "SpectralNormalization"}


def test_the_functions_that_the_rules_know_are_harmless() -> None:
    symbols = [*_MERGES, *_ACTIVATIONS, "concat", "reshape", "math.reduce_mean", "nn.bias_add"]
    symbols += ["compat.v1.image.resize_bilinear", "image.resize", "__operators__.getitem", "keras.backend.relu"]
    assert [symbol for symbol in symbols if not is_symbol_of_tensors(symbol)] == []
    harmful = ["io.write_file", "io.read_file", "py_function", "numpy_function", "load_op_library", "print", "map_fn"]
    harmful += ["raw_ops.WriteFile", "summary.write", "keras.activations.get", "rpc_server_start", "saved_model.load"]
    harmful += ["data.Dataset", "autograph.to_graph", "debugging.experimental.enable_dump_debug_info", "io.gfile.copy"]
    harmful += ["config.list_physical_devices", "nn.fixed_unigram_candidate_sampler", "compat.v1.py_func"]
    assert [symbol for symbol in harmful if is_symbol_of_tensors(symbol)] == []
