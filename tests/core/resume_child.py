"""Trainings in a process of their own: `resume_child.py <folder> <case>[,<case>] [<epoch to stop in> | without]`.

The checkpoint of a case is `<case>.npz` in the folder; `without` keeps none. A case ends with `<case>_end.npz`: all
variables of the model and its optimizer, and the history. Told to stop, the process says so in the middle of that
epoch (counted from 0) of the last case, and waits for the kill.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_ops import core
from tfmot_ops.contract.training import Augmentation, Distillation, EarlyStopping
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.training.augmentation import augmentation_layer
from tfmot_ops.core.training.checkpoint import Checkpoint
from tfmot_ops.core.training.loop import fit
from tfmot_ops.core.training.stopping import BestEpoch
from tfmot_ops.core.training.train_step import Additions, Outputs, Teacher
from tfmot_ops.data.splits import load_dataset

EPOCHS, BATCH = 4, 32
L = keras.layers


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def small_model(data: Any, draws: list[Any]) -> Any:
    """Statistics, a depthwise kernel, dropout with and without a seed of its own."""
    inputs = x = L.Input(data.input_shape)
    for layer in draws:
        x = layer(x)
    x = L.Conv2D(8, 3, use_bias=False, name="conv")(x)
    x = L.ReLU()(L.BatchNormalization(momentum=0.9)(x))
    x = L.Dropout(0.2, seed=4)(L.ReLU()(L.DepthwiseConv2D(3)(x)))
    x = L.Dropout(0.3)(L.Dense(32, activation="relu", name="hidden")(L.Flatten()(x)))
    return keras.Model(inputs, L.Dense(data.num_classes, activation="softmax", name="out")(x))


def pruned(data: Any) -> tuple[Any, list[Any]]:
    """Augmentation, a polynomial schedule that ends in the third of four epochs, and one of the learning rate."""
    model = small_model(data, [L.RandomTranslation(0.1, 0.1)])
    rate = keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.9)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", ["accuracy"])
    end_step = round(2.5 * len(data.x_train) / BATCH)
    recipe = core.recipes.decode("sparse80_wi8_ai8")
    return core.prune(model, recipe, end_step=end_step)[0], core.pruning_callbacks()


def quantized(data: Any) -> tuple[Any, list[Any]]:
    """Masks that hold 2 of 4 under quantisers, ranges that follow the training, momentum."""
    model = small_model(data, [])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", ["accuracy"])
    recipe = core.recipes.decode("sparse2of4_wi8_ai8")
    stripped = core.strip(core.prune(model, recipe)[0])
    return core.quantize(stripped, recipe, data.x_calibration)[0], []


def planned(data: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """Augmentation, distillation, weights of the samples, and early stopping, which counts from the second epoch."""
    model = small_model(data, [])
    model.compile(keras.optimizers.AdamW(0.01), "sparse_categorical_crossentropy", ["accuracy"])
    teacher = Teacher(small_model(data, []), Outputs.PROBABILITIES, Distillation(weight=0.3))
    moved = {"height_factor": 0.2, "width_factor": 0.2}
    moves = augmentation_layer(Augmentation(name="RandomTranslation", arguments=moved))
    noise = augmentation_layer(Augmentation(name="GaussianNoise", arguments={"stddev": 0.1}))
    more = {
        "additions": Additions(((0, moves), (0, noise)), teacher),
        "weights": np.linspace(0.5, 1.5, len(data.x_train), dtype=np.float32),
        "best_epoch": BestEpoch(model, EarlyStopping(metric="val_accuracy", patience=5), 2),
        "plan": "of the test",
    }
    return model, [], more


class WaitInEpoch(keras.callbacks.Callback):
    """Stops for good in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._stop, self._epoch = epoch, -1

    def on_epoch_begin(self, epoch: int, _: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, _: Any = None) -> None:
        if (self._epoch, batch) == (self._stop, 2):
            say("waiting")
            time.sleep(600)


def main(folder: Path, cases: list[str], how: str) -> None:
    data = load_dataset("digits", seed=0, limit=200)
    for case in cases:
        set_seed(0)
        model, callbacks, *more = {"pruned": pruned, "quantized": quantized, "planned": planned}[case](data)
        if how.isdecimal() and case == cases[-1]:
            callbacks.append(WaitInEpoch(int(how)))
        history = fit(
            model,
            data.x_train,
            data.y_train,
            (data.x_validation, data.y_validation),
            epochs=EPOCHS,
            batch_size=BATCH,
            seed=1,
            callbacks=callbacks,
            checkpoint=None if how == "without" else Checkpoint(folder / f"{case}.npz", report=say),
            **(more[0] if more else {}),
        )
        values = [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]
        named = {f"variable_{index}": value for index, value in enumerate(values)}
        np.savez(folder / f"{case}_end.npz", **named, **{f"history_{k}": v for k, v in history.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), "".join(sys.argv[3:]))
