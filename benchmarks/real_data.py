"""Real data of every task through the whole chain: float, int8, and int8 with half of the weights zero.

`python -m benchmarks.real_data --aeon <folder> [--only gunpoint,...] [--seeds 3]` prints a row for each data set: the
mean of the headline metric over the seeds. The series are files of the package aeon (`pip download --no-deps
aeon==1.6.0`, unzip it, and give its folder `aeon/datasets/data`); the words are those of the Debian packages wamerican,
wngerman, wfrench, witalian and wspanish; the spoken digits are made by espeak-ng. A set whose source is missing is
left out, and said so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_ops.cli.chain import Chain
from tfmot_ops.contract import Status, TrainingPlan
from tfmot_ops.recipes import decode

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = {"english": "american-english", "german": "ngerman", "french": "french"}
WORDS |= {"italian": "italian", "spanish": "spanish"}
SHORTEST, LONGEST = 4, 14
LETTERS = "abcdefghijklmnopqrstuvwxyzäöüßàâéèêëîïôûùçñáíóúìò'"


#: Largest value of a pixel, in [0, 1], that is no part of an item.
GROUND = 0.15


@dataclass(frozen=True)
class Row:
    """One data set and how it is trained.

    Attributes:
        make: writes the data set into a folder, from the folder of aeon's data; returns its name for `--dataset`.
        model: name of a built-in model, or a function that saves one into the folder and returns its path.
        epochs: of the float training, of pruning and of quantisation-aware training.
        published: figure of another system, with its source.
    """

    make: Callable[[Path, Path], str]
    model: str | Callable[[Path], str]
    epochs: tuple[int, int, int]
    plan: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    published: str = ""


def series_of(path: Path) -> tuple[Any, list[str]]:
    """Series [N, T, C] and targets of a `.ts` file: channels and target are parted by colons, steps by commas."""
    text = path.read_text(encoding="utf-8").lower().partition("@data\n")[2]
    lines = [line.split(":") for line in text.split("\n") if line.strip()]
    values = [[np.array(channel.split(","), np.float32) for channel in line[:-1]] for line in lines]
    return np.array(values).transpose(0, 2, 1), [line[-1].strip() for line in lines]


def classes(name: str) -> Callable[[Path, Path], str]:
    """Writer of a classification of series."""

    def make(folder: Path, aeon: Path) -> str:
        arrays: dict[str, Any] = {}
        for part in ("train", "test"):
            arrays[f"x_{part}"], labels = series_of(aeon / name / f"{name}_{part.upper()}.ts")
            arrays[f"y_{part}"] = np.array(labels)
        names = np.unique(arrays["y_train"])
        for part in ("train", "test"):
            arrays[f"y_{part}"] = np.searchsorted(names, arrays[f"y_{part}"])
        np.savez(folder / "data.npz", class_names=names, **_standardised(arrays))
        return f"npz:{folder / 'data.npz'}"

    return make


def _standardised(arrays: dict[str, Any]) -> dict[str, Any]:
    """Inputs with mean 0 and deviation 1 for each channel, by the training set."""
    x = arrays["x_train"]
    axes = tuple(range(x.ndim - 1))
    mean, deviation = x.mean(axis=axes), x.std(axis=axes) + 1e-6
    return arrays | {key: (arrays[key] - mean) / deviation for key in ("x_train", "x_test")}


def covid(folder: Path, aeon: Path) -> str:
    """Deaths among infections of 84 days, standardised as the series are: the unit of RMSE is one deviation."""
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        x, targets = series_of(aeon / "Covid3Month" / f"Covid3Month_{part.upper()}.ts")
        arrays[f"x_{part}"], arrays[f"y_{part}"] = np.log1p(np.maximum(x, 0.0)), np.array(targets, np.float32)
    mean, deviation = arrays["y_train"].mean(), arrays["y_train"].std()
    arrays |= {key: (arrays[key] - mean) / deviation for key in ("y_train", "y_test")}
    np.savez(folder / "data.npz", **_standardised(arrays))
    return f"npz:{folder / 'data.npz'}"


def bleeding(folder: Path, aeon: Path) -> str:
    """Windows of 64 steps of the UCR anomaly archive's number 135; a test window is one if it touches the anomaly."""
    width, stride, source = 64, 4, aeon / "KDD-TSAD_135"
    tables = {}
    for part in ("TRAIN", "TEST"):
        path = next(source.glob(f"*_{part}.csv"))
        tables[part] = np.loadtxt(path, np.float32, delimiter=",", skiprows=1)
    mean, deviation = tables["TRAIN"][:, 1].mean(), tables["TRAIN"][:, 1].std()
    views = {
        part: np.lib.stride_tricks.sliding_window_view(table, width, axis=0)[::stride] for part, table in tables.items()
    }
    windows = {part: (view[:, 1] - mean) / deviation for part, view in views.items()}
    flags = (views["TEST"][:, 2] > 0).any(axis=1).astype(np.int64)
    np.savez(folder / "data.npz", x_train=windows["TRAIN"], x_test=windows["TEST"], y_test=flags)
    return f"npz:{folder / 'data.npz'}"


def textured(folder: Path, _: Path) -> str:
    """Fashion-MNIST's trousers, bags and boots at random places over textures of 40x40, with exact masks."""
    from tfmot_ops.data import load_dataset

    rng, kinds = np.random.default_rng(0), (1, 8, 9)
    data = load_dataset("fashion_mnist")
    arrays: dict[str, Any] = {}
    for part, x, y, count in (("train", data.x_train, data.y_train, 3000), ("test", data.x_test, data.y_test, 1000)):
        chosen = np.flatnonzero(np.isin(y, kinds))[:count]
        images, masks = np.empty((count, 40, 40, 1), np.uint8), np.zeros((count, 40, 40), np.int64)
        for place, index in enumerate(chosen):
            grid = rng.integers(0, 140, (10, 10)).repeat(4, 0).repeat(4, 1) + rng.integers(0, 60, (40, 40))
            row, column = rng.integers(0, 13, 2)
            item, window = x[index][:, :, 0], np.s_[row : row + 28, column : column + 28]
            shape = item > GROUND
            grid[window] = np.where(shape, 255 * item, grid[window])
            masks[place][window][shape] = 1 + kinds.index(int(y[index]))
            images[place, :, :, 0] = grid
        arrays |= {f"x_{part}": images, f"y_{part}": masks}
    np.savez(folder / "data.npz", class_names=np.array(["ground", "trousers", "bag", "boot"]), **arrays)
    return f"npz:{folder / 'data.npz'}"


def words(folder: Path, _: Path) -> str:
    """Words of five languages as numbers of letters, [N, 14]; a word of two languages is left out."""
    rng, of = np.random.default_rng(0), {}
    for language, name in WORDS.items():
        lines = Path("/usr/share/dict", name).read_text(encoding="utf-8").lower().split()
        of[language] = {word for word in lines if SHORTEST <= len(word) <= LONGEST and set(word) <= set(LETTERS)}
    x, y = [], []
    for label, (language, own) in enumerate(of.items()):
        others = set().union(*(found for other, found in of.items() if other != language))
        chosen = rng.choice(sorted(own - others), 4000, replace=False)
        x += [[1 + LETTERS.index(letter) for letter in word] + [0] * (LONGEST - len(word)) for word in chosen]
        y += [label] * len(chosen)
    np.savez(folder / "data.npz", x=np.array(x, np.int32), y=np.array(y), class_names=np.array(list(WORDS)))
    return f"npz:{folder / 'data.npz'}"


def letters_net(folder: Path) -> str:
    """An Embedding and two convolutions; saved without a compile configuration, so that the task decides."""
    from tfmot_ops import core
    from tfmot_ops.core import keras

    layers = keras.layers
    inputs = x = layers.Input((LONGEST,), dtype="int32")
    x = layers.Embedding(1 + len(LETTERS), 16)(x)
    for filters in (64, 64):
        x = layers.Conv1D(filters, 3, padding="same", activation="relu")(x)
    x = layers.GlobalMaxPooling1D()(x)
    core.save_model(keras.Model(inputs, layers.Dense(len(WORDS), activation="softmax")(x)), folder / "letters.h5")
    return str(folder / "letters.h5")


def spoken(folder: Path, _: Path) -> str:
    """The ten digits by ten of espeak-ng's voices, at three speeds and three pitches: few speakers, a demonstration."""
    for voice in ("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "f4"):
        for digit, word in enumerate(DIGITS):
            part = folder / "words" / ("test" if voice in {"m6", "f4"} else "train") / str(digit)
            part.mkdir(parents=True, exist_ok=True)
            for speed, pitch in itertools.product((120, 150, 180), (30, 50, 70)):
                path = part / f"{voice}-{speed}-{pitch}.wav"
                how = ["-v", f"en-us+{voice}", "-s", str(speed), "-p", str(pitch), "-w", str(path)]
                subprocess.run(["espeak-ng", *how, word], check=True)
    return f"audio:{folder / 'words'}?seconds=1&rate=16000"


COSINE = {"learning_rate": {"rate": 1e-3, "schedule": "cosine", "warm_up_epochs": 5}}
NOISE = {"augmentation": [{"name": "GaussianNoise", "arguments": {"stddev": 0.05}}]}
SERIES: dict[str, Any] = {"model": "conv1d", "epochs": (300, 60, 30), "plan": {**COSINE, **NOISE}}
ROWS = {
    "italypowerdemand": Row(classes("ItalyPowerDemand"), **SERIES, published="InceptionTime 96.6 %"),
    "gunpoint": Row(classes("GunPoint"), **SERIES, published="InceptionTime 100 %"),
    "arrowhead": Row(classes("ArrowHead"), **SERIES, published="InceptionTime 86.3 %"),
    "osuleaf": Row(classes("OSULeaf"), **SERIES, published="InceptionTime 92.1 %"),
    "acsf1": Row(classes("ACSF1"), **SERIES, published="InceptionTime 91 %"),
    "basicmotions": Row(classes("BasicMotions"), **SERIES),
    "basicmotions_lstm": Row(classes("BasicMotions"), "lstm", (150, 30, 15), COSINE),
    "covid3month": Row(covid, "conv1d", (100, 30, 15), COSINE),
    "bleeding": Row(bleeding, "autoencoder", (100, 30, 15), COSINE, 32),
    "textured": Row(textured, "unet", (12, 4, 2), COSINE | {"learning_rate": {"schedule": "cosine", "rate": 2e-3}}, 32),
    "words": Row(words, letters_net, (15, 5, 3), {"learning_rate": {"schedule": "cosine", "rate": 2e-3}}, 64),
    "spoken": Row(spoken, "ds_cnn", (15, 6, 3), {"learning_rate": {"schedule": "cosine", "rate": 2e-3}}, 32),
}


def chain(row: Row, model: str, recipe: str, trained: bool, **more: Any) -> dict[str, Any]:
    """Metrics of a chain's steps, by step; a trained model is measured, not trained."""
    train, tune, qat = row.epochs
    run = Chain(
        model=model,
        recipe=decode(recipe),
        tracking_uri=None,
        epochs={"train": 0 if trained else train, "prune": tune, "fine_tune": tune if trained else 0, "quantize": qat},
        data={"batch_size": row.batch_size},
        training=TrainingPlan.model_validate(row.plan),
        **more,
    )
    last = run.run(lambda _: None)
    if last.status is not Status.OK:
        raise SystemExit(f"{run.dataset} {recipe}: {last.error}")
    answer: dict[str, Any] = {result.step_id: result.metrics for result in run.results}
    return answer | {"headline": last.headline.name if last.headline else ""}


def measure(row: Row, dataset: str, folder: Path, seed: int) -> dict[str, Any]:
    """The headline of float, int8 and sparse int8, and what else tells how good the file is."""
    model = row.model if isinstance(row.model, str) else row.model(folder)
    more = {"dataset": dataset, "seed": seed}
    dense = chain(row, model, "wi8_ai8", trained=False, output=folder / f"dense-{seed}", **more)
    model = str(folder / f"dense-{seed}" / "train" / "model.h5")
    sparse = chain(row, model, "sparse50_wi8_ai8", trained=True, output=folder / f"sparse-{seed}", **more)
    name = dense["headline"]
    figures = {"float": dense["train"], "int8": dense["evaluate"], "sparse_int8": sparse["evaluate"]}
    return {
        "metric": name,
        **{kind: metrics[name] for kind, metrics in figures.items()},
        "int8_macs": min(dense["evaluate"]["int8_mac_fraction"], sparse["evaluate"]["int8_mac_fraction"]),
        "kb": sparse["evaluate"]["size_bytes"] / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_data", description=__doc__)
    parser.add_argument("--aeon", type=Path, default=Path("aeon/datasets/data"), help="folder of aeon's data")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, with commas (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for name in options.only.split(","):
        row = ROWS[name]
        with tempfile.TemporaryDirectory() as folder:
            try:
                dataset = row.make(Path(folder), options.aeon)
            except FileNotFoundError as error:
                print(f"{name}: left out, {error}", flush=True)
                continue
            results = [measure(row, dataset, Path(folder), seed) for seed in range(options.seeds)]
        means = {key: round(float(np.mean([one[key] for one in results])), 4) for key in results[0] if key != "metric"}
        spread = round(float(np.ptp([one["sparse_int8"] for one in results])), 4)
        print(json.dumps({"row": name, **results[0] | means, "spread": spread, "published": row.published}), flush=True)


if __name__ == "__main__":
    main()
