"""Which way of finding ranges and of rounding is best: each method on trained nets, with outliers among them.

`python -m benchmarks.ranges ptq` exports each net after training with each method for activation ranges; `qat` trains
it with int8 rounding from the ranges of each method; `rounding` exports it with each algorithm of the AI Edge Quantizer
for weights; `equalize` and `equalize-qat` compare it with and without cross-layer equalisation (`--nets` and `--seeds`
choose). A line is printed for each file: the SQNR in dB of its outputs to those of the trained float net on test data,
and the points of accuracy (in %) that it loses. At the end comes the median of each net and method over the seeds, and
of each method over all nets and seeds. As the nets differ more than the methods, the differences to the first method on
the same net and seed say which is better.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_ops import core
from tfmot_ops.contract import Backend, Method, PtqAlgorithm, Quantization, RangeMethod, Recipe
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.data import load_dataset

Floats = npt.NDArray[np.float32]
_L = keras.layers
#: Label of a method -> fields of the recipe's quantisation.
RANGES: dict[str, dict[str, Any]] = {
    "minmax": {"ranges": RangeMethod.MINMAX},
    "percentile 99.99": {"ranges": RangeMethod.PERCENTILE, "percentile": 99.99},
    "percentile 99.9": {"ranges": RangeMethod.PERCENTILE, "percentile": 99.9},
    "mse": {"ranges": RangeMethod.MSE},
    "moving_average": {"ranges": RangeMethod.MOVING_AVERAGE},
}
ROUNDING = {each.value: {"backend": Backend.AI_EDGE_QUANTIZER, "ptq_algorithm": each} for each in PtqAlgorithm}
EQUALIZED: dict[str, dict[str, Any]] = {"as it is": {}, "equalized": {"equalize": True}}
#: What is asked -> (method of quantisation, methods that are compared).
ASKED = {"ptq": (Method.PTQ, RANGES), "qat": (Method.QAT, RANGES), "rounding": (Method.PTQ, ROUNDING)}
ASKED |= {"equalize": (Method.PTQ, EQUALIZED), "equalize-qat": (Method.QAT, EQUALIZED)}
CALIBRATION, TEST, BATCH = 256, 1000, 64


@dataclass(frozen=True)
class Task:
    """Arrays of a data set: inputs and targets for training and for the test; targets are classes or numbers."""

    x: Floats
    y: npt.NDArray[Any]
    x_test: Floats
    y_test: npt.NDArray[Any]


@dataclass(frozen=True)
class Net:
    """A net and how it is trained.

    Attributes:
        task: (seed) -> its data.
        build: (input shape) -> the untrained net, with linear outputs.
        epochs: of float training.
        change: applied to the trained net.
    """

    task: Callable[[int], Task]
    build: Callable[[tuple[int, ...]], keras.Model]
    epochs: int
    change: Callable[[keras.Model], None] = lambda _: None


def digits(seed: int) -> Task:
    data = load_dataset("digits", seed)
    return Task(data.x_train, data.y_train, data.x_test, data.y_test)


def hot_pixels(seed: int) -> Task:
    """Digits in which one of 2000 pixels is 30 times as bright as white."""
    task, rng = digits(seed), np.random.default_rng(seed)

    def heat(x: Floats) -> Floats:
        return np.where(rng.random(x.shape) < 1 / 2000, np.float32(30.0), x)

    return Task(heat(task.x), task.y, heat(task.x_test), task.y_test)


def fashion(seed: int) -> Task:
    data = load_dataset("fashion_mnist", seed, 4000)
    parts = [np.asarray(part[:]) for part in (data.x_train, data.y_train, data.x_test, data.y_test)]
    return Task(*parts)


def heavy_tailed(seed: int) -> Task:
    """Regression on a target with a heavy tail: exp of a weighted sum of the eight inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4000, 8)).astype(np.float32)
    y = np.exp(x @ np.linspace(-0.6, 0.6, 8, dtype=np.float32))[:, None]
    return Task(x[:3000], y[:3000], x[3000:], y[3000:])


def reconstruction(seed: int) -> Task:
    """Reconstruction: the digits are inputs and targets."""
    task = digits(seed)
    x, x_test = (part.reshape(-1, 64) for part in (task.x, task.x_test))
    return Task(x, x, x_test, x_test)


def conv_block(x: Any, channels: int, name: str) -> Any:
    x = _L.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return _L.ReLU(name=f"{name}_relu")(_L.BatchNormalization(name=f"{name}_norm")(x))


def convolutions(shape: tuple[int, ...]) -> keras.Model:
    inputs = _L.Input(shape)
    x = conv_block(conv_block(inputs, 16, "a"), 16, "b")
    x = _L.Add()([x, _L.Conv2D(16, 1, name="shortcut")(inputs)])
    return keras.Model(inputs, _L.Dense(10)(_L.GlobalAveragePooling2D()(conv_block(x, 32, "c"))))


def depthwise(shape: tuple[int, ...]) -> keras.Model:
    inputs = _L.Input(shape)
    x = conv_block(inputs, 16, "stem")
    for place in range(3):
        y = _L.ReLU(6.0)(_L.BatchNormalization()(_L.Conv2D(48, 1, use_bias=False)(x)))
        y = _L.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = _L.ReLU(6.0)(_L.BatchNormalization()(y))
        y = _L.BatchNormalization()(_L.Conv2D(16, 1, use_bias=False)(y))
        x = _L.Add(name=f"sum_{place}")([x, y])
    return keras.Model(inputs, _L.Dense(10)(_L.GlobalAveragePooling2D()(x)))


def swish(shape: tuple[int, ...]) -> keras.Model:
    inputs = _L.Input(shape)
    x = _L.Conv2D(24, 3, strides=2, activation="swish")(inputs)
    x = _L.Conv2D(24, 3, activation="swish")(x)
    return keras.Model(inputs, _L.Dense(10)(_L.Dense(48, activation="swish")(_L.Flatten()(x))))


def dense(outputs: int) -> Callable[[tuple[int, ...]], keras.Model]:
    def build(shape: tuple[int, ...]) -> keras.Model:
        inputs = _L.Input(shape)
        x = _L.Flatten()(inputs)
        for _ in range(2):
            x = _L.Dense(48, activation="relu")(x)
        return keras.Model(inputs, _L.Dense(outputs)(x))

    return build


def loud_channel(model: keras.Model) -> None:
    """Make one channel of block `a` 40 times as large, and its weights in block `b` as much smaller: equal outputs."""
    norm, conv = model.get_layer("a_norm"), model.get_layer("b_conv")
    for variable in (norm.gamma, norm.beta):
        values = variable.numpy()
        values[3] *= 40.0
        variable.assign(values)
    kernel = conv.kernel.numpy()
    kernel[:, :, 3] /= 40.0
    conv.kernel.assign(kernel)


NETS = {
    "convolutions, digits": Net(digits, convolutions, 8),
    "convolutions, one loud channel": Net(digits, convolutions, 8, loud_channel),
    "depthwise, Fashion-MNIST": Net(fashion, depthwise, 2),
    "swish, digits": Net(digits, swish, 8),
    "dense, hot pixels": Net(hot_pixels, dense(10), 12),
    "dense, heavy-tailed number": Net(heavy_tailed, dense(1), 12),
    "dense, reconstruction": Net(reconstruction, dense(64), 20),
}


def trained(net: Net, seed: int) -> tuple[keras.Model, Task]:
    set_seed(seed)
    task = net.task(seed)
    model = net.build(task.x.shape[1:])
    classes = task.y.ndim == 1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if classes else "mse"
    model.compile(keras.optimizers.Adam(2e-3), loss, ["accuracy"] if classes else None)
    model.fit(task.x, task.y, batch_size=BATCH, epochs=net.epochs, verbose=0)
    net.change(model)
    return model, task


def exported(model: keras.Model, task: Task, recipe: Recipe, seed: int) -> bytes:
    calibration = task.x[:CALIBRATION]
    if recipe.quantization is not None and recipe.quantization.method is Method.QAT:
        set_seed(seed)
        model, _ = core.quantize(model, recipe, calibration)
        model.optimizer.learning_rate = 2e-4
        model.fit(task.x, task.y, batch_size=BATCH, epochs=2, verbose=0)
    return core.export_tflite(model, recipe, calibration)


def measure(net: str, seed: int, asked: str) -> dict[str, tuple[float, float | None]]:
    """Method -> (SQNR in dB, points of accuracy lost, None without classes)."""
    model, task = trained(NETS[net], seed)
    x, y = task.x_test[:TEST], task.y_test[:TEST]
    accuracy = core.evaluate(model, x, y)["accuracy"] if y.ndim == 1 else None
    found: dict[str, tuple[float, float | None]] = {}
    trains, methods = ASKED[asked]
    for method, fields in methods.items():
        recipe = Recipe(name=asked, quantization=Quantization(method=trains, **fields))
        data = exported(model, task, recipe, seed)
        lost = None if accuracy is None else 100.0 * (accuracy - core.evaluate(data, x, y)["accuracy"])
        found[method] = core.agreement(model, data, x)["sqnr_db"], lost
        shown = "" if lost is None else f", {lost:.2f} points lost"
        print(f"{net}, seed {seed}, {method}: {found[method][0]:.1f} dB{shown}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(ASKED))
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS), metavar="NET")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    started = time.process_time()
    rows = [(net, seed, measure(net, seed, options.what)) for net in options.nets for seed in range(options.seeds)]
    print(f"{time.process_time() - started:.0f} CPU-s\n")
    methods = list(ASKED[options.what][1])
    print(f"| net | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for net in options.nets:
        of_net = [found for of, _, found in rows if of == net]
        _print_row(net, [_median(found[method] for found in of_net) for method in methods])
    _print_row("all", [_median(found[method] for _, _, found in rows) for method in methods])
    first = methods[0]
    gains = {method: [found[method][0] - found[first][0] for _, _, found in rows] for method in methods}
    _print_row(f"median difference to {first}", [f"{statistics.median(gains[method]):+.1f} dB" for method in methods])
    _print_row(f"largest loss to {first}", [f"{min(gains[method]):+.1f} dB" for method in methods])


def _median(figures: Iterable[tuple[float, float | None]]) -> str:
    pairs = list(figures)
    points = [lost for _, lost in pairs if lost is not None]
    shown = f"{statistics.median(sqnr for sqnr, _ in pairs):.1f} dB"
    return shown + (f", {statistics.median(points):.1f}" if points else "")


def _print_row(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
