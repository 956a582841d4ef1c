"""Data as users give it, custom blocks that train, and layers along unusual axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.contract import Outcome
from tfmot_ops.core import keras
from tfmot_ops.core.graph.ir import tensors
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.graph.samples import calibration_batches
from tfmot_ops.errors import CalibrationError, UnsupportedModelError

pytestmark = pytest.mark.slow

L = keras.layers
QAT = core.recipes.decode("wi8_ai8")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8, 8, 4)).astype(np.float32)
TABLE = RNG.normal(size=(16, 3)).astype(np.float32)
LABELS = np.zeros(16, np.float32)


def _same_outputs(model: Any, x: Any) -> None:
    before, after = (np.asarray(each(x, training=False)) for each in (model, core.normalize(model)))
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()


# Rules


@pytest.mark.parametrize("axis", [1, 2, -1, (1, 2), None])
def test_normalization_along_any_axis(axis):
    shape = () if axis is None else (4, 4) if isinstance(axis, tuple) else (4,)
    mean, variance = RNG.normal(size=shape), RNG.uniform(1.0, 4.0, shape)
    inputs = L.Input((4, 4))
    _same_outputs(
        keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Normalization(axis=axis, mean=mean, variance=variance)(inputs)))),
        X[:, 0, :4],
    )


@pytest.mark.parametrize(
    "merge",
    [
        lambda x, constant: tf.concat([x, constant, x * 2.0], -1),
        lambda x, constant: tf.concat([constant, x], axis=-1),
        lambda x, constant: L.Average()([x, constant, x * 2.0]),
    ],
    ids=["concat", "concat by name", "Average"],
)
def test_a_constant_among_tensors_stays(merge):
    inputs = L.Input(batch_shape=(1, 8, 4))
    constant = tf.constant(RNG.normal(size=(1, 8, 4)).astype(np.float32))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(merge(inputs, constant))))
    _same_outputs(model, X[:1, 0])
    core.export_tflite(core.quantize(model, QAT, X[:1, 0])[0], QAT)


@keras.saving.register_keras_serializable("tests")
class DoubledBatchNormalization(L.BatchNormalization):
    def call(self, inputs: Any, training: Any = None) -> Any:
        return 2.0 * super().call(inputs, training=training)


def test_a_subclass_of_batch_normalization_is_not_folded():
    inputs = L.Input((8, 8, 4))
    x = L.ReLU()(DoubledBatchNormalization(name="doubled")(L.Conv2D(4, 3)(inputs)))
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    quantized, reports = core.quantize(model, QAT, X)
    assert [report.path for report in reports if report.outcome is Outcome.KEPT_FLOAT] == ["doubled"]
    # Equal answers have no figure.
    assert core.agreement(quantized, core.export_tflite(quantized, QAT), X).get("sqnr_db", np.inf) >= 20.0


# Custom blocks


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """As ResNets are written; told of training by place and by name."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv, self.norm, self.drop = L.Conv2D(4, 3, padding="same"), L.BatchNormalization(), L.Dropout(0.0)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return tf.nn.relu(self.drop(self.norm(self.conv(inputs), training), training=training) + inputs)


@keras.saving.register_keras_serializable("tests")
class Stage(L.Layer):
    """Blocks within a block, and a model."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.blocks = [Block(name=f"block_{index}") for index in range(2)]
        self.head = keras.Sequential([L.Conv2D(4, 1), L.BatchNormalization()], name="head")

    def call(self, inputs: Any, training: Any = None) -> Any:
        for block in self.blocks:
            inputs = block(inputs, training=training)
        return self.head(inputs, training=training)


@keras.saving.register_keras_serializable("tests")
class DropPath(L.Layer):
    def call(self, inputs: Any, training: Any = None) -> Any:
        return inputs * tf.random.uniform([tf.shape(inputs)[0], 1, 1, 1]) if training else inputs


@keras.saving.register_keras_serializable("tests")
class DropBlock(Block):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = DropPath()


@keras.saving.register_keras_serializable("tests")
class TrainsOtherwise(Block):
    def call(self, inputs: Any, training: Any = None) -> Any:
        x = super().call(inputs, training)
        return x * 2.0 if training else x


@keras.saving.register_keras_serializable("tests")
class DrawsNumbers(L.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.normal([4])


@keras.saving.register_keras_serializable("tests")
class AddsLoss(L.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(tf.reduce_mean(inputs))
        return inputs * 2.0


def _with(layer: Any, **kwargs: Any) -> Any:
    keras.utils.set_random_seed(0)
    inputs = L.Input((8, 8, 4))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(layer(inputs, **kwargs))))


def _records(model: Any) -> list[int]:
    """How much Keras has noted in each layer, those within layers too."""
    names = ("_inbound_nodes", "_outbound_nodes", "_losses", "_callable_losses", "_metrics")
    return [len(getattr(layer, name)) for layer in model._flatten_layers() for name in names if hasattr(layer, name)]


def _statistics(model: Any) -> list[np.ndarray]:
    return [weight.numpy() for weight in model.weights if "moving" in weight.name]


@pytest.mark.parametrize("make", [Block, Stage, DropBlock], ids=lambda cls: cls.__name__)
def test_a_custom_block_is_opened_and_trains(make):
    model = _with(make(name="block"))
    before = _records(model)
    _same_outputs(model, X)
    quantized, reports = core.quantize(model, QAT, X)
    assert _records(model) == before
    assert not [report for report in reports if report.outcome is Outcome.KEPT_FLOAT]
    data = core.export_tflite(quantized, QAT)
    profile = core.profile_tflite(data)
    assert (profile.int8_mac_fraction, profile.float_ops, profile.requantize_ops) == (1.0, 0, 0)
    assert core.agreement(quantized, data, X).get("sqnr_db", np.inf) >= 20.0
    statistics = _statistics(quantized)
    quantized.compile("sgd", "mse")
    quantized.train_on_batch(X, TABLE)
    moved = [not np.array_equal(*pair) for pair in zip(statistics, _statistics(quantized), strict=True)]
    assert moved
    assert all(moved)


def test_a_block_told_that_it_does_not_train_keeps_its_statistics():
    quantized, _ = core.quantize(_with(Stage(), training=False), QAT, X)
    before = _statistics(quantized)
    quantized.compile("sgd", "mse")
    quantized.train_on_batch(X, TABLE)
    assert all(np.array_equal(*pair) for pair in zip(before, _statistics(quantized), strict=True))


@pytest.mark.parametrize("make", [TrainsOtherwise, DrawsNumbers, AddsLoss], ids=lambda cls: cls.__name__)
def test_what_no_graph_shows_stays_a_layer(make):
    model = _with(make(name="whole"))
    before = _records(model)
    normal = core.normalize(model)
    assert _records(model) == before
    assert type(normal.get_layer("whole")) is make


@keras.saving.register_keras_serializable("tests")
class Gate(L.Layer):
    """Reads the mask that an Embedding makes."""

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return inputs if mask is None else inputs * tf.cast(mask, inputs.dtype)[..., None]


@keras.saving.register_keras_serializable("tests")
class Recurrent(L.Layer):
    """Holds a layer that reads it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lstm = L.LSTM(4)

    def call(self, inputs: Any) -> Any:
        return self.lstm(inputs) * 2.0


@pytest.mark.parametrize("make", [Gate, Recurrent], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("masks", [True, False])
def test_a_layer_that_reads_a_mask_stays_where_there_are_masks(masks, make):
    inputs = L.Input((5,), dtype="int32")
    x = make()(L.Embedding(9, 4, mask_zero=masks)(inputs))
    _same_outputs(keras.Model(inputs, L.Dense(3)(L.Flatten()(x))), RNG.integers(0, 3, (16, 5)).astype(np.int32))


# Calibration


def _image() -> Any:
    inputs = L.Input((8, 8, 4), name="image")
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(inputs / 255.0 - 0.5)))


def _pair(structure: Callable[[Any, Any], Any]) -> Any:
    # The names are in another order than the keys of the structure.
    image, table = L.Input((8, 8, 4), name="z_image"), L.Input((3,), name="a_table")
    return keras.Model(structure(image, table), L.Dense(2)(L.Concatenate()([L.Flatten()(image), table])))


def _list(image: Any, table: Any) -> Any:
    return [image, table]


def _dict(image: Any, table: Any) -> Any:
    return {"img": image, "tab": table}


def _data_set(*parts: Any) -> Any:
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(8)


@pytest.mark.parametrize(
    ("structure", "data"),
    [
        (_list, [X, TABLE]),
        (_list, (X, TABLE)),
        (_list, {"z_image": X, "a_table": TABLE}),
        (_list, _data_set((X, TABLE), LABELS)),
        (_list, _data_set((X, TABLE), LABELS, LABELS)),
        (_list, _data_set({"z_image": X, "a_table": TABLE}, LABELS)),
        (_dict, {"img": X, "tab": TABLE}),
        (_dict, {"img": X, "tab": TABLE, "more": LABELS}),
        (_dict, {"z_image": X, "a_table": TABLE}),
        (_dict, _data_set({"img": X, "tab": TABLE}, LABELS)),
    ],
)
def test_calibration_takes_what_the_model_takes(structure, data):
    graph = read_graph(_pair(structure))
    batches = list(calibration_batches(graph, data, 12))
    got = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    wanted = {4: X[:12], 2: TABLE[:12]}
    for tensor, array in zip(tensors(graph.input_structure), got, strict=True):
        assert np.array_equal(array, wanted[len(tensor.shape)])


@pytest.mark.parametrize("data", [(X, LABELS), (X, LABELS, LABELS), _data_set(X, LABELS), _data_set(X), [X], X])
def test_one_input_with_and_without_labels(data):
    (batch,) = next(iter(calibration_batches(read_graph(_image()), data, 8)))
    assert np.array_equal(batch, X[:8])


@pytest.mark.parametrize("recipe", ["wi8_ai8", "wi8_ai8_ptq"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_images_of_bytes_calibrate_a_float_input(recipe, dtype):
    images, recipe = RNG.integers(0, 255, X.shape).astype(dtype), core.recipes.decode(recipe)
    model = _image()
    if recipe == QAT:
        model, _ = core.quantize(model, recipe, images)
    data = core.export_tflite(model, recipe, images)
    # Equal answers have no figure.
    assert core.agreement(model, data, images.astype(np.float32)).get("sqnr_db", np.inf) >= 20.0


@pytest.mark.parametrize(
    "data",
    [
        [X, TABLE[:9]],
        [X],
        [TABLE, X],
        {"img": X},
        {"image": X, "tab": TABLE},
        [X, TABLE.astype(str)],
        (part for part in (X, TABLE)),
        _data_set((TABLE, X), LABELS),
        "a path",
    ],
    ids=["unequal", "one", "order", "key", "other key", "text", "generator", "labelled", "string"],
)
def test_calibration_that_does_not_fit_says_what_is_taken(data):
    with pytest.raises(CalibrationError, match=r"a_table float32 \[None, 3\](.|\n)*tf.data.Dataset"):
        core.quantize(_pair(_dict), QAT, data)


# Indices and strings


@pytest.mark.parametrize("lookup", [lambda: L.StringLookup(vocabulary=["a", "b"]), lambda: L.Hashing(6)])
def test_layers_that_read_strings_are_refused(lookup):
    inputs = L.Input((3,), dtype="string")
    layer = lookup()
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Embedding(6, 4)(layer(inputs)))))
    with pytest.raises(UnsupportedModelError, match=rf"{layer.name}(.|\n)*before the model"):
        core.quantize(model, QAT)


def test_latency_of_a_table_of_any_size():
    inputs = L.Input((5,), dtype="int32")
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Embedding(2, 4)(inputs))))
    assert core.latency_ms(core.export_tflite(model, core.recipes.decode("wi16f")), runs=2).median > 0.0
