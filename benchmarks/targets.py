"""Targets: what each target's tools say of three nets, and what QAT with one scale per kernel gives back.

`python -m benchmarks.targets cost` prints a row for each target and net (untrained, PTQ): flash, RAM, the NPU's share,
and how many of 200 samples' outputs equal TFLite's reference kernels in TFLite Micro.
`python -m benchmarks.targets per-tensor [--seeds 3]` trains two nets on Fashion-MNIST (10,000 images) and prints the
accuracy of the float model and of the int8 file by PTQ and by QAT, with a scale per channel and with one per kernel.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, cast

import numpy as np

from tfmot_ops import core, targets
from tfmot_ops.contract import SHIPPED_TARGETS
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.tflite.interpreter import raw_inputs
from tfmot_ops.data import load_dataset
from tfmot_ops.models import build_model

SAMPLES = 200
#: Net -> its input shape and number of classes: images of CIFAR's and MNIST's size, and a second of log-mel bands.
NETS = {"resnet8": ((32, 32, 3), 10), "mobilenet_like": ((28, 28, 1), 10), "ds_cnn": ((49, 10, 1), 12)}
TRAINED = ("resnet8", "mobilenet_like")
IMAGES, EPOCHS, QAT_EPOCHS, BATCH = 10_000, 6, 2, 64


def cost() -> None:
    rng = np.random.default_rng(0)
    print("target, net: flash / RAM in kB, on the NPU, estimated ms, equal outputs")
    for net, (shape, classes) in NETS.items():
        model = build_model(net, shape, classes, seed=0)
        x = rng.random((SAMPLES, *shape), dtype=np.float32)
        for name in SHIPPED_TARGETS:
            target = targets.resolve_target(name)
            recipe = targets.adapted(core.recipes.decode("wi8_ai8_ptq"), target)
            data = core.export_tflite(model, recipe, x)
            measured = {"arena_bytes": float(core.arena_bytes(data)), "latency_ms": core.latency_ms(data).median}
            found, _ = targets.cost_on(target, data, measured, raw_inputs(data, x))
            print(
                f"{name}, {net}: {found['target_flash_bytes'] / 1000:.1f} / {found['target_ram_bytes'] / 1000:.1f},"
                f" {found.get('npu_share', float('nan')):.1%}, {found.get('target_inference_ms', float('nan')):.3f},"
                f" {found.get('tflm_equal_outputs', float('nan')):.2%}"
            )


def per_tensor(seeds: int) -> None:
    found: dict[tuple[str, str], list[float]] = {}
    for net in TRAINED:
        for seed in range(seeds):
            started = time.process_time()
            for what, accuracy in _accuracies(net, seed).items():
                found.setdefault((net, what), []).append(100.0 * accuracy)
                print(f"{net} seed {seed} {what}: {100.0 * accuracy:.2f}", flush=True)
            print(f"{net} seed {seed}: {time.process_time() - started:.0f} CPU-s", flush=True)
    for (net, what), values in found.items():
        print(f"{net} {what}: mean {statistics.mean(values):.2f}")


def _accuracies(net: str, seed: int) -> dict[str, float]:
    data = load_dataset("fashion_mnist", seed, IMAGES)
    set_seed(seed)
    model = build_model(net, cast("tuple[int, int, int]", data.input_shape), data.num_classes, seed=seed)
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    x, y = np.asarray(data.x_train[:]), np.asarray(data.y_train[:])
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    x_test, y_test = np.asarray(data.x_test[:]), np.asarray(data.y_test[:])
    found = {"float": core.evaluate(model, x_test, y_test)["accuracy"]}
    for words, target in (("per channel", None), ("per tensor", targets.resolve_target("per_tensor_npu"))):
        for name in ("wi8_ai8_ptq", "wi8_ai8"):
            recipe = targets.adapted(core.recipes.decode(name), target)
            exported: Any = model
            if name == "wi8_ai8":
                set_seed(seed)
                exported, _ = core.quantize(model, recipe, data.x_calibration)
                exported.optimizer.learning_rate = 1e-4
                exported.fit(x, y, batch_size=BATCH, epochs=QAT_EPOCHS, verbose=0)
            file = core.export_tflite(exported, recipe, data.x_calibration)
            found[f"{words} {name}"] = core.evaluate(file, x_test, y_test)["accuracy"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "per-tensor"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "cost":
        cost()
    else:
        per_tensor(options.seeds)


if __name__ == "__main__":
    main()
