"""Train a model of your own with int8 rounding (QAT), with data from a tf.data pipeline, and compare it with PTQ."""

import tensorflow as tf

from tfmot_ops import core
from tfmot_ops.core import keras  # tf_keras: Keras 3 cannot be quantised
from tfmot_ops.data import load_dataset


@keras.utils.register_keras_serializable("examples")
class Residual(keras.layers.Layer):
    """A custom layer: tfmot_ops opens it and quantises what is inside."""

    def __init__(self, filters: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = keras.layers.BatchNormalization()

    def call(self, inputs, training=None):
        return tf.nn.relu(inputs + self.norm(self.conv(inputs), training=training))

    def get_config(self) -> dict:
        return {**super().get_config(), "filters": self.filters}


data = load_dataset("digits")  # images [N, 16, 16, 1] in [0, 1] and labels [N], as NumPy arrays
train = tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train)).shuffle(2000, seed=0).batch(64).prefetch(2)
test = tf.data.Dataset.from_tensor_slices((data.x_test, data.y_test)).batch(64)
calibration = tf.data.Dataset.from_tensor_slices(data.x_calibration).batch(64)  # inputs alone, not trained on

inputs = keras.Input(data.input_shape)
x = keras.layers.Conv2D(16, 3, strides=2, activation="relu")(inputs)
x = Residual(16)(x)
x = keras.layers.Flatten()(x)
model = keras.Model(inputs, keras.layers.Dense(data.num_classes, activation="softmax")(x))
model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", ["accuracy"])
model.fit(train, epochs=5, verbose=0)

ptq = core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), calibration=calibration)  # no further training

recipe = core.recipes.decode("wi8_ai8")
quantized, report = core.quantize(model, recipe, calibration=calibration)
quantized.optimizer.learning_rate = 1e-3
quantized.fit(train, epochs=2, verbose=0)
qat = core.export_tflite(quantized, recipe)

for name, candidate in {"float": model, "PTQ": ptq, "QAT": qat}.items():
    print(f"{name}: accuracy {core.evaluate(candidate, test)['accuracy']:.1%}")
for layer in report:
    print(f"{layer.path}: {layer.outcome} {layer.reason}")
assert core.profile_tflite(qat).int8_mac_fraction == 1.0, "every multiplication is int8"
