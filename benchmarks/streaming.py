"""What a data set that does not fit in memory costs: peak memory of a step, and rate of training beside memory.

`python -m benchmarks.streaming --gigabytes 6 --kind images` makes a data set (JPEG files in class folders, or TFRecord
files of the same images), runs the step `train` on it in a process of its own, and trains on the same samples once read
from the files and once from memory, in turn. The data set is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

#: Height and width of an image in pixels; a JPEG of it takes about 35 kB.
SIDE = 160
CLASSES = 4
RECORDS_IN_A_FILE = 2000
SAMPLES = 1024
REPEATS = 5


def images(seed: int, count: int) -> Any:
    """Encoded JPEGs of `count` noisy images, with their labels."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    for place in range(count):
        label = place % CLASSES
        coarse = rng.integers(0, 120 + 40 * label, (SIDE // 4, SIDE // 4, 3))
        fine = coarse.repeat(4, 0).repeat(4, 1) + rng.integers(0, 120, (SIDE, SIDE, 3))
        yield tf.io.encode_jpeg(np.clip(fine, 0, 255).astype(np.uint8), quality=98).numpy(), label


def make(folder: Path, kind: str, total: int) -> tuple[str, int, int]:
    """Write images until they take `total` bytes; (name of the data set, images, bytes)."""
    import tensorflow as tf

    written, count = 0, 0
    writer: Any = None
    for data, label in images(0, sys.maxsize):
        if kind == "images":
            path = folder / str(label) / f"{count:07}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        else:
            if count % RECORDS_IN_A_FILE == 0:
                writer = tf.io.TFRecordWriter(str(folder / f"{count:07}.tfrecord"))
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
        written, count = written + len(data), count + 1
        if written >= total:
            break
    if kind == "images":
        return f"images:{folder}", count, written
    writer.close()
    features = {
        "image": {"shape": [SIDE, SIDE, 3], "dtype": "uint8", "encoding": "jpeg", "role": "input"},
        "label": {"shape": [], "dtype": "int64", "role": "target"},
    }
    document = {"features": features, "class_names": [str(label) for label in range(CLASSES)]}
    (folder / "features.json").write_text(json.dumps(document), encoding="utf-8")
    return f"tfrecord:{folder}/*.tfrecord", count, written


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def busy() -> float:
    """Seconds that the machine's cores have worked, together, for any program (Linux)."""
    times = [int(number) for number in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    idle, waiting = times[3:5]
    return (sum(times) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def step(dataset: str, output: str) -> dict[str, float]:
    """Run the step `train` and tell the memory above that of a training on a few digits."""
    from tfmot_ops.cli.execute import execute
    from tfmot_ops.contract import Status, StepSpec

    def run(name: str, limit: int) -> None:
        options = {"kind": "train", "model": "resnet8", "dataset": name, "limit": limit, "epochs": 1, "batch_size": 32}
        spec = {"step_id": "train", "output_uri": output, "options": options}
        result = execute(StepSpec.model_validate(spec), lambda _: None)
        if result.status is not Status.OK:
            raise SystemExit(str(result.error))

    run("digits", 64)
    before, began = peak(), time.perf_counter()
    run(dataset, SAMPLES)
    return {
        "above_tensorflow_gib": (peak() - before) / 2**30,
        "whole_gib": peak() / 2**30,
        "s": time.perf_counter() - began,
    }


def rate(dataset: str) -> dict[str, float]:
    """Samples per second of a training from files and from memory, in turn; the ratio of the medians.

    Another program on the machine's cores changes the seconds of some trainings by half. So there are the processor
    seconds of a sample, too, and how many cores others used meanwhile: near 0, or the ratio says little.
    """
    from tfmot_ops import models
    from tfmot_ops.core.training.loop import fit
    from tfmot_ops.data import load_dataset
    from tfmot_ops.tasks.classification import compile_default

    data = load_dataset(dataset, limit=SAMPLES)
    held = data.x_train[:]
    model = models.build("resnet8", data.task, data.facts, 0)
    compile_default(model, 1e-3)
    seconds: dict[str, list[float]] = {"files": [], "memory": []}
    processor: dict[str, list[float]] = {"files": [], "memory": []}
    others: list[float] = []
    for repeat in range(1 + REPEATS):
        for name, x in (("files", data.x_train), ("memory", held)):
            began, own, every = time.perf_counter(), time.process_time(), busy()
            fit(model, x, data.y_train, None, epochs=1, batch_size=32, seed=repeat, data_digest=data.digest)
            if repeat:  # the first traces the model
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - own)
                others.append((busy() - every - processor[name][-1]) / seconds[name][-1])
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    figures = {f"{name}_samples_per_s": SAMPLES / value for name, value in medians.items()}
    figures |= {f"{name}_processor_ms": 1e3 * float(np.median(each)) / SAMPLES for name, each in processor.items()}
    return {**figures, "others_cores": float(np.mean(others)), "ratio": medians["memory"] / medians["files"]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=6.0, help="size of the data set on disk (%(default)s)")
    parser.add_argument("--kind", choices=("images", "tfrecord"), default="images")
    parser.add_argument("--measure", choices=("step", "rate"), help=argparse.SUPPRESS)
    parser.add_argument("--dataset", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.measure:
            print(json.dumps(step(options.dataset, name) if options.measure == "step" else rate(options.dataset)))
            return
        folder = Path(name) / "data"
        folder.mkdir()
        dataset, count, size = make(folder, options.kind, int(options.gigabytes * 1e9))
        print(f"{dataset.partition(':')[0]}: {count} samples, {size / 1e9:.2f} GB")
        for measure in ("step", "rate"):
            command = [sys.executable, "-m", "benchmarks.streaming", "--measure", measure, "--dataset", dataset]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            print(f"{measure}: {done.stdout.strip().splitlines()[-1] if not done.returncode else done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
