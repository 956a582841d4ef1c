"""The original module's names, row by row."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot

from tfmot_ops import core, tfmot_utils
from tfmot_ops.core import keras

pytestmark = pytest.mark.slow

L = keras.layers


def _model():
    inputs = L.Input((8, 8, 3))
    x = L.Resizing(8, 8)(L.Rescaling(1 / 255)(inputs))
    inner = keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()], name="inner")
    x = inner(x)
    x = L.Multiply()([x, x + 1.0])
    x = L.DepthwiseConv2D(3)(L.ZeroPadding2D()(x))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    model.compile(keras.optimizers.Adam(0.002), "mse", ["mae"])
    return model


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in {"TF_USE_LEGACY_KERAS", "KERAS_MODULE"}}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=clean | environment
    )


def test_environment_forces_tf_keras():
    done = _run(
        "from tfmot_ops import tfmot_utils; import os, tensorflow as tf, tf_keras;"
        "print(os.environ['KERAS_MODULE'], os.environ['TF_USE_LEGACY_KERAS'], tf.keras.Model is tf_keras.Model)"
    )
    assert done.stdout.split() == ["tf_keras", "1", "True"]


def test_a_tensorflow_that_was_loaded_first_imports_tf_keras_too():
    done = _run(
        "import tensorflow; from tfmot_ops.core import keras; from tensorflow.keras.models import Model;"
        "print(Model is keras.Model)"
    )
    assert done.stdout.split() == ["True"], done.stderr


def test_keras_3_in_its_place_is_an_error_that_says_what_to_do():
    done = _run("import tensorflow as tf; tf.keras.layers; import tfmot_ops.core")
    assert done.returncode != 0
    assert "received: Keras 3" in done.stderr
    assert "TF_USE_LEGACY_KERAS=1" in done.stderr


def test_no_op_config_quantises_nothing():
    config = tfmot_utils.NoOpQuantizeConfig()
    layer = L.Dense(2)
    layer.build((None, 3))
    assert config.get_weights_and_quantizers(layer) == []
    assert config.get_activations_and_quantizers(layer) == []
    assert config.get_output_quantizers(layer) == []


def test_bn_config_is_one_8_bit_moving_average():
    (quantizer,) = tfmot_utils.DefaultBNQuantizeConfig().get_output_quantizers(L.BatchNormalization())
    assert isinstance(quantizer, tfmot.quantization.keras.quantizers.MovingAverageQuantizer)
    assert (quantizer.num_bits, quantizer.per_axis, quantizer.symmetric, quantizer.narrow_range) == (
        8,
        False,
        False,
        False,
    )


def test_quantize_returns_both_models_compiled_and_load_model_reads_them(tmp_path):
    model = _model()
    quantized, flat = tfmot_utils.Quantize()(model)
    for result in (quantized, flat):
        assert result.optimizer.get_config() == model.optimizer.get_config()
        assert result.loss == "mse"
    x = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
    assert np.allclose(model.predict(x, verbose=0), flat.predict(x, verbose=0), atol=1e-4)
    with pytest.warns(UserWarning, match="HDF5"):
        quantized.save(tmp_path / "q.h5")
    loaded = tfmot_utils.Quantize.load_model(str(tmp_path / "q.h5"))
    assert np.array_equal(quantized.predict(x, verbose=0), loaded.predict(x, verbose=0))


def test_load_model_reads_a_model_annotated_with_the_configs(tmp_path):
    model = keras.Sequential([L.Input((4,)), L.Dense(3), L.BatchNormalization(), L.Rescaling(2.0)])
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    configs = {
        L.BatchNormalization: tfmot_utils.DefaultBNQuantizeConfig(),
        L.Rescaling: tfmot_utils.NoOpQuantizeConfig(),
    }
    annotated = keras.models.clone_model(model, clone_function=lambda layer: annotate(layer, configs.get(type(layer))))
    scope = {
        "DefaultBNQuantizeConfig": tfmot_utils.DefaultBNQuantizeConfig,
        "NoOpQuantizeConfig": tfmot_utils.NoOpQuantizeConfig,
    }
    with keras.saving.custom_object_scope(scope):
        quantized = tfmot.quantization.keras.quantize_apply(annotated)
    with pytest.warns(UserWarning, match="HDF5"):
        quantized.save(tmp_path / "tfmot.h5")
    loaded = tfmot_utils.Quantize.load_model(str(tmp_path / "tfmot.h5"))
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(quantized.predict(x, verbose=0), loaded.predict(x, verbose=0))


def test_prune_skips_what_it_cannot_and_recurses_and_unprune_undoes():
    model = _model()
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=1, frequency=1)
    pruned = tfmot_utils.prune_low_magnitude(model, pruning_schedule=schedule)
    names = [layer.name for layer in pruned.layers]
    assert "rescaling" in names or any(name.startswith("rescaling") for name in names)
    assert any(
        name.startswith("prune_low_magnitude_conv2d")
        for name in (layer.name for layer in pruned.get_layer("inner").layers)
    )
    x, y = np.ones((8, 8, 8, 3), np.float32), np.ones((8, 2), np.float32)
    pruned.fit(x, y, epochs=2, verbose=0, callbacks=tfmot_utils.get_pruning_callbacks())
    stripped = tfmot_utils.unprune(pruned)
    kernel = stripped.get_layer("inner").layers[0].get_weights()[0]
    assert (kernel == 0).mean() == 0.5
    assert not any("prune" in layer.name for layer in stripped.layers)


def test_prune_takes_exceptions_and_single_layers():
    pruned = tfmot_utils.prune_low_magnitude(_model(), exceptions=["Dense"])
    assert not any(layer.name.startswith("prune_low_magnitude_dense") for layer in pruned.layers)
    assert tfmot_utils.prune_low_magnitude(L.Dense(2)).name.startswith("prune_low_magnitude")
    resizing = L.Resizing(4, 4)
    assert tfmot_utils.prune_low_magnitude(resizing) is resizing
    wrapped, same = tfmot_utils.prune_low_magnitude([L.Dense(2), resizing])
    assert wrapped.name.startswith("prune_low_magnitude")
    assert same is resizing


def test_prune_wraps_what_only_tfmot_knows_and_heeds_its_policy(tmp_path):
    class Policy(tfmot.sparsity.keras.PruningPolicy):
        def allow_pruning(self, layer):
            return not isinstance(layer, L.Dense)

        def ensure_model_supports_pruning(self, model):
            assert isinstance(model, keras.Model)

    model = keras.Sequential([L.Input((8, 4)), L.LSTM(8, name="lstm"), L.Dense(3, name="head")])
    model.compile("adam", "mse")
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=1, frequency=1)
    pruned = tfmot_utils.prune_low_magnitude(model, pruning_schedule=schedule, pruning_policy=Policy())
    assert [layer.name for layer in pruned.layers] == ["prune_low_magnitude_lstm", "head"]
    x, y = np.random.default_rng(0).normal(size=(32, 8, 4)).astype(np.float32), np.zeros((32, 3), np.float32)
    pruned.fit(x, y, epochs=2, verbose=0, callbacks=tfmot_utils.get_pruning_callbacks())
    core.save_model(pruned, tmp_path / "pruned.h5")
    stripped = tfmot_utils.unprune(core.load_model(tmp_path / "pruned.h5"))
    assert [(weight == 0).mean() for weight in stripped.layers[0].get_weights()[:2]] == [0.5, 0.5]


def test_callbacks_add_tensorboard_with_a_folder(tmp_path):
    assert len(tfmot_utils.get_pruning_callbacks()) == 1
    with_board = tfmot_utils.get_pruning_callbacks(str(tmp_path))
    assert isinstance(with_board[1], tfmot.sparsity.keras.PruningSummaries)


def test_applications_are_listed_and_the_list_goes_on(capsys):
    def Broken(**_):  # noqa: N802 - stands where a constructor stands
        raise ValueError("Shape must be rank 4 but is rank 5")

    results = tfmot_utils.test_aplications([Broken, keras.applications.MobileNet])
    assert results == {"Broken": "tensor rank", "MobileNet": None}
    assert capsys.readouterr().out.splitlines() == ["Broken: tensor rank", "MobileNet"]


def test_a_message_is_printed_as_it_is(capsys):
    def Broken(**_):  # noqa: N802 - stands where a constructor stands
        raise ValueError("no [samples, 3] in [/tmp/x]")

    tfmot_utils.test_applications([Broken])
    assert capsys.readouterr().out == "Broken: no [samples, 3] in [/tmp/x]\n"
