"""Prunes, trains, quantises and exports a model under a strategy; prints figures as JSON. Started by test_strategies.

Arguments: number of logical CPU devices, and whether the layers have statistics of the batch (`bn`) or not (`plain`).
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tensorflow as tf

from tfmot_ops import core

K = core.keras
L = K.layers
RECIPE, PTQ = core.recipes.decode("sparse50_wi8_ai8"), core.recipes.decode("wi8_ai8_ptq")
X = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(64, 3)).astype("float32")


def run(strategy, with_statistics: bool):
    K.utils.set_random_seed(0)
    with strategy.scope():
        i = K.Input((8, 8, 3))
        h = L.Conv2D(8, 3)(i)
        h = L.ReLU()(L.BatchNormalization()(h) if with_statistics else h)
        h = L.GlobalAveragePooling2D()(L.PReLU(shared_axes=[1, 2])(L.DepthwiseConv2D(3)(h)))
        model = K.Model(i, L.Dense(3)(h))
        model.compile(K.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
        pruned, _ = core.prune(model, RECIPE, end_step=2)
    pruned.fit(X, Y, batch_size=32, epochs=2, shuffle=False, verbose=0, callbacks=core.pruning_callbacks())
    with strategy.scope():
        stripped = core.strip(pruned)
        quantized, _ = core.quantize(stripped, RECIPE, X)
    core.assert_sparsity(stripped, RECIPE)
    history = quantized.fit(X, Y, batch_size=32, shuffle=False, verbose=0, validation_data=(X, Y)).history
    assert np.isfinite([history["loss"], history["val_loss"], history["val_mae"]]).all()
    core.assert_sparsity(quantized, RECIPE)
    with strategy.scope():
        file = core.export_tflite(quantized, RECIPE)
        core.normalize(model)
        rows = core.layer_sqnr(stripped, quantized, file, X)
    assert file == core.export_tflite(quantized, RECIPE)
    measured = [row.class_name for row in rows if row.qat_to_tflite_db is not None]
    ptq = core.export_tflite(stripped, PTQ, X)
    return measured, (core.predict(quantized, X), core.predict(file, X), core.predict(ptq, X))


def main() -> None:
    devices, with_statistics = int(sys.argv[1]), sys.argv[2] == "bn"
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    layers, expected = run(tf.distribute.get_strategy(), with_statistics)
    assert layers
    mirrored = tf.distribute.MirroredStrategy([f"CPU:{place}" for place in range(devices)])
    for name, strategy in {"mirrored": mirrored, "one_device": tf.distribute.OneDeviceStrategy("CPU:0")}.items():
        measured, found = run(strategy, with_statistics)
        assert measured == layers, (measured, layers)
        both = zip(expected, found, strict=True)
        figures = {
            "strategy": name,
            "to_file": min(core.sqnr_db(found[0], found[1]), 200.0),
            "to_outside": [min(core.sqnr_db(one, other), 200.0) for one, other in both],
        }
        sys.stdout.write(f"{json.dumps(figures)}\n")


if __name__ == "__main__":
    main()
