"""Figures of Keras models and TFLite files, against what NumPy says."""

from __future__ import annotations

import math
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from tfmot_ops.core.keras.pinned import keras
from tfmot_ops.core.measure.agreement import agreement
from tfmot_ops.core.measure.noise import sqnr_db
from tfmot_ops.core.measure.predictions import predict
from tfmot_ops.errors import (
    ArtifactError,
    CalibrationError,
    ExportError,
    SamplesError,
    SpecError,
    StepFailedError,
    UnsupportedModelError,
)
from tfmot_ops.tasks.evaluation import evaluate

X = np.random.default_rng(0).random((21, 6, 6, 2), dtype=np.float32)
layers = keras.layers


def classifier(classes: int = 3) -> Any:
    keras.utils.set_random_seed(1)
    inputs = layers.Input((6, 6, 2))
    hidden = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax" if classes > 1 else "sigmoid")(hidden))


def two_heads() -> Any:
    keras.utils.set_random_seed(1)
    inputs = [layers.Input((6, 6, 2)), layers.Input((4,))]
    flat = layers.Concatenate()([layers.Flatten()(inputs[0]), inputs[1]])
    return keras.Model(inputs, [layers.Dense(3)(flat), layers.Dense(5)(flat)])


def to_tflite(model: Any, io_type: Any = None, batch: int | None = None) -> bytes:
    specs = [tf.TensorSpec([batch, *each.shape[1:]], tf.float32) for each in model.inputs]
    function = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0])).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    # Through a SavedModel the converter reorders several inputs and outputs; without, it warns when it quantises.
    converter.experimental_lower_to_saved_model = io_type is not None
    if io_type is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([X[index : index + 1]] for index in range(len(X)))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io_type
    return converter.convert()


def test_accuracy_is_the_share_of_right_labels():
    model = classifier()
    labels = model.predict(X, verbose=0).argmax(-1)
    wrong = (labels + 1) % 3
    assert evaluate(model, X, labels) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert evaluate(to_tflite(model), X, labels) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert evaluate(model, X, np.where(np.arange(21) < 7, wrong, labels))["accuracy"] == pytest.approx(2 / 3)


def test_a_sigmoid_is_a_classifier_of_two_classes():
    model = classifier(1)
    labels = (model.predict(X, verbose=0)[:, 0] > 0.5).astype(np.int64)
    assert evaluate(model, X, labels)["accuracy"] == 1.0
    assert evaluate(model, X, 1 - labels)["accuracy"] == 0.0


def test_a_float_file_gives_the_models_outputs():
    model = classifier()
    outputs = predict(to_tflite(model), X, batch_size=8)
    assert outputs.shape == (21, 3)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, model.predict(X, verbose=0), atol=1e-6)


@pytest.mark.parametrize("io_type", [tf.int8, tf.uint8, tf.float32], ids=lambda io_type: io_type.name)
def test_a_quantised_file_is_fed_and_read_in_floats(io_type: Any):
    model = classifier()
    outputs = predict(to_tflite(model, io_type), X)
    # A softmax's output has steps of 1/256; the weights' rounding adds its own share.
    np.testing.assert_allclose(outputs, model.predict(X, verbose=0), atol=0.02)
    assert sqnr_db(model.predict(X, verbose=0), outputs) > 25.0


@pytest.mark.parametrize("batch_size", [1, 5, 21, 100])
def test_the_batch_size_does_not_change_the_outputs(batch_size: int):
    data = to_tflite(classifier(), tf.int8)
    assert np.array_equal(predict(data, X, batch_size), predict(data, X))


def test_a_batch_of_1_built_into_the_graph_is_run_sample_by_sample():
    inputs = layers.Input((6, 6, 2), batch_size=1)
    flat = layers.Lambda(lambda x: tf.reshape(x, (1, 72)))(inputs)
    model = keras.Model(inputs, layers.Dense(3)(flat))
    outputs = predict(to_tflite(model, batch=1), X, batch_size=8)
    np.testing.assert_allclose(outputs, np.concatenate([model(row[None]) for row in X]), atol=1e-5)


def test_a_batch_folded_into_another_axis_and_out_again_is_run_sample_by_sample():
    inputs = layers.Input((6, 6, 2))
    line = layers.Conv2D(2, (1, 3), padding="same")(layers.Reshape((1, -1, 2))(inputs))
    model = keras.Model(inputs, layers.Flatten()(line))
    outputs = predict(to_tflite(model, batch=1), X)
    np.testing.assert_allclose(outputs, np.concatenate([model(row[None]) for row in X]), atol=1e-5)


def test_open_spatial_sizes_take_the_datas():
    inputs = layers.Input((None, None, 2))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3)(inputs)))
    np.testing.assert_allclose(predict(to_tflite(model), X), model.predict(X, verbose=0), atol=1e-5)


def test_several_inputs_and_outputs_are_lists():
    model = two_heads()
    x = [X, X.reshape(21, -1)[:, :4]]
    from_keras, from_file = predict(model, x), predict(to_tflite(model), x)
    assert [each.shape for each in from_keras] == [(21, 3), (21, 5)]
    for one, other in zip(from_keras, from_file, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    nearby = two_heads()
    nearby.set_weights([weight * 1.01 for weight in model.get_weights()])
    assert agreement(model, to_tflite(nearby), x) == {"sqnr_db": pytest.approx(40.0, abs=0.01)}


def test_sqnr_is_in_decibels():
    signal = np.ones(100, np.float32)
    assert sqnr_db(signal, signal * 0.9) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_db(signal, signal * 0.0) == 0.0
    assert sqnr_db(signal, signal) == math.inf
    assert sqnr_db(signal * 0.0, signal) == -math.inf


def test_agreement_of_a_quantised_file_with_its_model():
    model = classifier()
    figures = agreement(model, to_tflite(model, tf.int8), X)
    assert figures["sqnr_db"] > 25.0
    assert figures["top1_agreement"] >= 0.9


def test_equal_outputs_leave_the_infinite_ratio_out():
    model = classifier()
    assert agreement(model, model, X) == {"top1_agreement": 1.0}


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["NaN", "infinity"])
def test_outputs_that_are_no_numbers_make_no_figure(value: float):
    """The file would give class 0 for a row of NaN, and an accuracy of its share of the labels."""
    keras.utils.set_random_seed(1)
    inputs = layers.Input((6, 6, 2))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    x, labels = X.copy(), np.zeros(21, np.int64)
    x[4, 0, 0, 0] = value
    file = to_tflite(model)
    for each, name in ((model, "the model returned"), (file, "the TFLite file returned")):
        for measure in (lambda each=each: evaluate(each, x, labels), lambda each=each: agreement(each, each, x)):
            with pytest.raises(StepFailedError, match=name) as caught:
                measure()
            assert caught.value.exit_code == 4
            assert "1 of 21 samples, the first at index 4" in caught.value.received
        assert evaluate(each, np.delete(x, 4, axis=0), labels[1:])["accuracy"] >= 0.0


def test_a_file_that_does_not_run_is_an_error_of_the_step():
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(to_tflite(classifier(), tf.int8)))
    bias = next(tensor for tensor in file.subgraphs[0].tensors if tensor.type == schema.TensorType.INT32)
    bias.type = schema.TensorType.INT16
    builder = flatbuffers.Builder()
    builder.Finish(file.Pack(builder), b"TFL3")
    with pytest.raises(ExportError, match="the TFLite interpreter cannot run the file") as caught:
        evaluate(bytes(builder.Output()), X, np.zeros(21))
    assert "failed to prepare" in caught.value.received


def test_models_of_different_outputs_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"\(21, 4\)"):
        agreement(classifier(), classifier(4), X)


def test_several_outputs_name_no_class():
    with pytest.raises(SpecError, match="2 outputs"):
        evaluate(two_heads(), [X, X.reshape(21, -1)[:, :4]], np.zeros(21))


@pytest.mark.parametrize("is_file", [False, True], ids=["model", "TFLite file"])
@pytest.mark.parametrize("x", [X[..., :1], X[:, :5], X[:0], X[0], [X, X]], ids=["C", "H", "empty", "rank", "inputs"])
def test_samples_that_do_not_fit_are_refused(x: Any, is_file: bool):
    model = classifier()
    with pytest.raises(SamplesError, match=f"do not fit the {'TFLite file' if is_file else 'model'}") as refused:
        predict(to_tflite(model) if is_file else model, x)
    assert not isinstance(refused.value, CalibrationError)
    assert refused.value.exit_code == 4
    assert "['N', 6, 6, 2]" in refused.value.required


@pytest.mark.parametrize("y", [np.zeros(1), np.zeros(20), np.float32(0.0)], ids=["one", "one too few", "a number"])
def test_labels_that_do_not_fit_are_refused(y: Any):
    with pytest.raises(SamplesError, match="labels do not fit the samples"):
        evaluate(classifier(), X, y)


def test_what_keras_takes_is_not_refused():
    inputs = layers.Input((1,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    assert np.shape(predict(model, np.zeros(5, np.float32))) == (5, 2)


def test_bytes_that_are_no_file_are_refused():
    with pytest.raises(ArtifactError, match="cannot be read"):
        predict(b"no model", X)
