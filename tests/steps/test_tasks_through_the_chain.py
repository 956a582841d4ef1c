"""Each task through the whole chain, as the command runs it: train, prune, fine-tune, strip, quantise, evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from tfmot_ops import core
from tfmot_ops.cli.chain import Chain
from tfmot_ops.cli.chain_table import summary_lines
from tfmot_ops.contract import Headline, Status
from tfmot_ops.core import keras
from tfmot_ops.data.splits import load_dataset
from tfmot_ops.errors import SpecError
from tfmot_ops.steps.scoring import score

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RNG = np.random.default_rng(0)
TIME = np.linspace(0.0, 2.0 * np.pi, 32)
KINDS = np.arange(240) % 3


def series() -> np.ndarray:
    """Sines of one, two or three periods with a phase of their own, [N, 32, 2]."""
    phase = RNG.random((len(KINDS), 1, 2)) * 6.0
    waves = np.sin(TIME[None, :, None] * (1 + KINDS[:, None, None]) + phase)
    return (waves + RNG.normal(0.0, 0.1, waves.shape)).astype(np.float32)


def masked_images() -> tuple[np.ndarray, np.ndarray]:
    """Bright squares on dark noise, [N, 16, 16, 3], and their masks [N, 16, 16]."""
    images, masks = RNG.integers(0, 60, (160, 16, 16, 3), np.uint8), np.zeros((160, 16, 16), np.int64)
    for image, mask in zip(images, masks, strict=True):
        row, column = RNG.integers(1, 9, 2)
        mask[row : row + 6, column : column + 6] = 1
        image[mask == 1] += 150
    return images, masks


def _regression() -> dict[str, np.ndarray]:
    bunch = load_diabetes()
    return {"x": bunch.data.astype(np.float32), "y": (bunch.target / 100.0).astype(np.float32)}


def _multilabel() -> dict[str, np.ndarray]:
    return {"x": series(), "y": np.stack([KINDS == 0, KINDS < 2], axis=1).astype(np.uint8)}


def _segmentation() -> dict[str, np.ndarray]:
    images, masks = masked_images()
    return {"x": images, "y": masks}


def _reconstruction() -> dict[str, np.ndarray]:
    normal = np.sin(TIME + RNG.random((360, 1)) * 6.0) + RNG.normal(0.0, 0.1, (360, len(TIME)))
    anomaly = np.arange(120) % 2
    noise = RNG.normal(0.0, 0.5, (120, len(TIME))) * anomaly[:, None]
    return {"x_train": normal[:240], "x_test": normal[240:] + noise, "y_test": anomaly}


#: Task -> (arrays, model, epochs, headline, worst value of the int8 file, largest drop).
TASKS: dict[str, tuple[Callable[[], dict[str, np.ndarray]], str, int, Headline, float, float]] = {
    "classification": (lambda: {"x": series(), "y": KINDS}, "conv1d", 8, Headline(name="accuracy"), 0.9, 0.1),
    "multilabel": (_multilabel, "conv1d", 4, Headline(name="mean_average_precision"), 0.9, 0.1),
    "regression": (_regression, "mlp", 20, Headline(name="rmse", higher_is_better=False, is_share=False), 0.75, 0.1),
    "segmentation": (_segmentation, "unet", 6, Headline(name="mean_iou"), 0.8, 0.05),
    "reconstruction": (_reconstruction, "autoencoder", 20, Headline(name="auc", is_share=False), 0.9, 0.05),
}


def chain(tmp_path: Path, model: str, dataset: str, **more: Any) -> Chain:
    made = Chain(model, dataset, "sparse50_wi8_ai8", tmp_path / "out", None, **more)
    last = made.run(lambda _: None)
    assert last.status is Status.OK, last.error
    return made


@pytest.mark.parametrize("task", TASKS)
def test_a_task_gives_an_int8_file_as_good_as_the_float_model(tmp_path: Path, task: str):
    arrays, model, epochs, headline, worst, drop = TASKS[task]
    np.savez(tmp_path / "data.npz", **arrays())
    done = chain(tmp_path, model, f"npz:{tmp_path / 'data.npz'}", epochs={"train": epochs})
    results = {result.step_id: result for result in done.results}
    evaluated = results["evaluate"]
    assert {result.headline for result in results.values()} == {headline}
    assert {result.parameters["task"] for result in results.values()} == {task}
    metrics, name = evaluated.metrics, headline.name
    assert (metrics["int8_mac_fraction"], metrics["sparsity"]) == (1.0, pytest.approx(0.5, abs=0.02))
    assert metrics[name] >= worst if headline.higher_is_better else metrics[name] <= worst
    assert metrics[f"{name}_drop"] <= drop
    direction = 1.0 if headline.higher_is_better else -1.0
    assert metrics[f"{name}_drop"] == pytest.approx(direction * (metrics[f"float_{name}"] - metrics[name]))
    assert metrics[f"{name}_drop"] == pytest.approx(metrics["pruning_drop"] + metrics["quantization_drop"])
    assert metrics[f"float_{name}"] == pytest.approx(results["train"].metrics[name])
    lines = summary_lines(done.results)
    assert name.replace("_", " ") in lines[0]
    assert f"{name.replace('_', ' ')} " in lines[-1]
    details = evaluated.outputs.get("details")
    kinds = {"classification": "confusion", "segmentation": "confusion", "regression": "scatter"}
    if task != "multilabel":
        assert details is not None
        document = json.loads(Path(details.uri.removeprefix("file://")).read_text(encoding="utf-8"))
        assert document["kind"] == kinds.get(task, "errors")


def two_heads() -> Any:
    """A model with two inputs and two outputs, in another order than the arrays of the data set."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image, age = layers.Input((8, 8, 1), name="image"), layers.Input((1,), name="age")
    seen = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(8, 3, activation="relu", name="conv")(image))
    both = layers.Concatenate(name="both")([seen, layers.Dense(8, activation="relu", name="dense")(age)])
    size = layers.Dense(1, name="size")(both)
    kind = layers.Dense(2, activation="softmax", name="kind")(both)
    model = keras.Model([image, age], [size, kind], name="two_heads")
    model.compile(
        keras.optimizers.Adam(0.01),
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.5},
        metrics={"kind": "accuracy"},
    )
    return model


def test_two_inputs_and_two_outputs_by_name(tmp_path: Path):
    image, age = RNG.random((400, 8, 8, 1), np.float32), RNG.random((400, 1), np.float32)
    data = {"x.age": age, "x.image": image, "y.kind": (age[:, 0] > 0.5).astype(np.int64), "y.size": 2.0 * age}
    np.savez(tmp_path / "data.npz", **data)
    core.save_model(two_heads(), tmp_path / "model.h5")
    options = {"task": "own", "metric": "kind:sparse_categorical_accuracy", "batch_size": 16}
    more = {"epochs": {"train": 16, "fine_tune": 8, "prune": 8, "quantize": 2}, "data": options}
    done = chain(tmp_path, str(tmp_path / "model.h5"), f"npz:{tmp_path / 'data.npz'}", **more)
    metrics = done.results[-1].metrics
    assert metrics["float_kind_sparse_categorical_accuracy"] >= 0.9
    assert metrics["kind_sparse_categorical_accuracy"] >= 0.9
    assert metrics["int8_mac_fraction"] == 1.0


def test_a_file_of_several_inputs_needs_its_model_and_that_is_not_retried(tmp_path: Path):
    columns = {"image": RNG.random((40, 8, 8, 1), np.float32), "age": RNG.random((40, 1), np.float32)}
    np.savez(tmp_path / "data.npz", **{f"x.{name}": column for name, column in columns.items()}, y=KINDS[:40])
    with pytest.raises(SpecError, match="give the step its input `model`"):
        score(load_dataset(f"npz:{tmp_path / 'data.npz'}"), "test", b"a file")


def test_a_data_set_that_does_not_fit_the_model_is_refused_before_training(tmp_path: Path):
    image = RNG.random((40, 8, 8, 1), np.float32)
    np.savez(
        tmp_path / "data.npz",
        **{"x.picture": image, "x.age": image[:, 0, 0], "y.kind": KINDS[:40], "y.size": image[:, 0, 0]},
    )
    core.save_model(two_heads(), tmp_path / "model.h5")
    made = Chain(str(tmp_path / "model.h5"), f"npz:{tmp_path / 'data.npz'}", "wi8_ai8", tmp_path / "out", None)
    last = made.run(lambda _: None)
    assert last.status is Status.FAILED
    assert "inputs picture (None, 8, 8, 1), age (None, 1)" in last.error.message
    assert "image (None, 8, 8, 1), age (None, 1)" in last.error.message
    assert last.error.exit_code == 3
    assert not list((tmp_path / "out").rglob("*.h5"))


def test_a_model_without_a_loss_says_which_task_it_is_for(tmp_path: Path):
    np.savez(tmp_path / "data.npz", x=RNG.random((40, 3)), y=RNG.random((40, 2, 2, 2)))
    inputs = keras.layers.Input((3,))
    outputs = keras.layers.Reshape((2, 2, 2))(keras.layers.Dense(8)(inputs))
    core.save_model(keras.Model(inputs, outputs), tmp_path / "model.h5")
    model, dataset = str(tmp_path / "model.h5"), f"npz:{tmp_path / 'data.npz'}"
    made = Chain(model, dataset, "wi8_ai8", tmp_path / "out", None, data={"task": "own"})
    last = made.run(lambda _: None)
    assert "has no loss" in last.error.message
    assert "or give --task" in last.error.message


def test_an_unknown_task_or_metric_is_refused_before_anything_is_written(tmp_path: Path):
    for data, says in (({"task": "clustering"}, "no task named"), ({"metric": "maee"}, "no metric named")):
        with pytest.raises(SpecError, match=says):
            Chain("mlp", "digits", "wi8_ai8", tmp_path / "out", None, data=data).run(lambda _: None)
    assert not (tmp_path / "out").exists()
