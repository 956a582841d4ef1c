"""A detector whose data, model, loss and metric come from an installed package: by command and as a DAG, the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PACKAGE = '''
"""Bright squares on noise: where they are, and whether they are filled."""

import numpy as np
import tensorflow as tf

SIDE = 16


def load(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (400, SIDE, SIDE, 1), np.uint8)
    boxes, kinds = np.empty((400, 4), np.float32), np.arange(400) % 2
    for image, box, kind in zip(images, boxes, kinds):
        (top, left), size = rng.integers(0, 8, 2), rng.integers(5, 9)
        image[top : top + size, left : left + size] = 220
        if kind:
            image[top + 1 : top + size - 1, left + 1 : left + size - 1] = 30
        box[:] = np.array([top, left, top + size, left + size]) / SIDE
    return {"x": images, "y.box": boxes, "y.kind": kinds}


def box_loss(targets, outputs):
    return tf.reduce_mean(tf.abs(targets - outputs), axis=-1)


def box_iou(targets, outputs):
    """Intersection over union of boxes (top, left, bottom, right), one value a sample."""
    targets, outputs = tf.cast(targets, tf.float32), tf.cast(outputs, tf.float32)
    sides = tf.minimum(targets[:, 2:], outputs[:, 2:]) - tf.maximum(targets[:, :2], outputs[:, :2])
    both = tf.reduce_prod(tf.maximum(sides, 0.0), axis=-1)
    areas = [tf.reduce_prod(tf.maximum(box[:, 2:] - box[:, :2], 0.0), axis=-1) for box in (targets, outputs)]
    return both / (areas[0] + areas[1] - both + 1e-6)


def build(shape, outputs):
    from tfmot_ops.core import keras

    layers = keras.layers
    inputs = x = layers.Input(shape)
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    box = layers.Dense(4, activation="sigmoid", name="box")(x)
    kind = layers.Dense(2, activation="softmax", name="kind")(x)
    model = keras.Model(inputs, [box, kind])
    losses = {"box": box_loss, "kind": "sparse_categorical_crossentropy"}
    model.compile("adam", losses, loss_weights={"box": 4.0, "kind": 1.0})
    return model
'''
ENTRIES = """
[tfmot_ops.datasets]
squares = detector:load
[tfmot_ops.models]
squares_net = detector:build
[tfmot_ops.layers]
box_loss = detector:box_loss
[tfmot_ops.metrics]
box_iou = detector:box_iou
"""
PLAN = "{learning_rate: {rate: 0.003, schedule: cosine}, early_stopping: {patience: 20}, distillation: {weight: 0.3}}"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of the package, as pip leaves it."""
    folder = tmp_path / "site"
    info = folder / "detector-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "detector.py").write_text(PACKAGE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detector\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRIES, encoding="utf-8")
    return folder


@pytest.mark.timeout(900)
def test_a_detector_of_a_package_by_command_and_as_a_dag(bench, run_python, package: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN, encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    given = {"model": "squares_net", "dataset": "squares", "recipe": "sparse50_wi8_ai8", "metric": "box:box_iou"}
    given |= {"epochs": 20, "fine_tune_epochs": 6, "qat_epochs": 3, "batch_size": 16}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--training", str(plan), "--no-tracking", "--output", str(tmp_path / "out"), "--json"]
    answer = json.loads(run_python(["-m", "tfmot_ops.cli", "optimize", *options], {**os.environ, "PYTHONPATH": path}))
    by_command = {result["step_id"]: result for result in answer["results"]}

    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{metric: box_box_iou, at_least: 0.4, max_drop: 0.05, better: true}]", encoding="utf-8")
    params, file = given | {"training_file": str(plan)}, tmp_path / "answer.json"
    params |= {"register": "squares", "policy_file": str(policy), "promote": True}
    environment = bench.environment() | {"PYTHONPATH": path}
    run_python(["-m", "tools.demo.dag", "optimize_model", json.dumps(params), str(file)], environment)
    dag = json.loads(file.read_text(encoding="utf-8"))
    assert dag["state"] == "success", dag["reasons"]

    assert dag["results"]["register"]["parameters"]["registered_version"] == "1"

    evaluated = by_command["evaluate"]
    assert evaluated["headline"] == {"name": "box_box_iou", "higher_is_better": True, "is_share": False}
    assert evaluated["metrics"]["box_box_iou"] > 0.5  # the mean box of all samples has 0.33
    assert evaluated["metrics"]["box_box_iou_drop"] < 0.05
    assert evaluated["metrics"]["int8_mac_fraction"] == 1.0
    assert evaluated["metrics"]["sparsity"] >= 0.5
    for name in ("train", "fine_tune", "quantize", "evaluate"):
        metrics = [results[name]["metrics"] for results in (by_command, dag["results"])]
        assert metrics[0]["box_box_iou"] == metrics[1]["box_box_iou"], name
    made = [results["quantize"]["outputs"]["tflite"]["sha256"] for results in (by_command, dag["results"])]
    assert made[0] == made[1]
