"""Tasks: their metrics beside scikit-learn's on all samples at once, what they refuse, and how they are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from tfmot_ops.contract import Headline
from tfmot_ops.core import keras
from tfmot_ops.errors import SpecError, UnsupportedModelError
from tfmot_ops.tasks.by_name import available_tasks, inferred, task_named
from tfmot_ops.tasks.task import Facts

RNG = np.random.default_rng(0)
SAMPLES = 100


def measured(task: str, facts: Facts, x: Any, y: Any, outputs: Any, *, metric: str | None = None) -> Any:
    """Metrics of outputs that arrive in batches."""
    scores = task_named(task, metric).scores(facts)
    for start in range(0, SAMPLES, 7):
        part = slice(start, start + 7)
        scores.add(*(None if values is None else values[part] for values in (x, y, outputs)))
    return scores


def test_classification():
    labels, scores = RNG.integers(0, 8, SAMPLES), RNG.random((SAMPLES, 8))
    found = measured("classification", Facts((4,), (), 8), None, labels, scores)
    predicted = scores.argmax(1)
    assert found.metrics() == {
        "accuracy": pytest.approx(sk.accuracy_score(labels, predicted)),
        "macro_f1": pytest.approx(sk.f1_score(labels, predicted, average="macro")),
        "top5_accuracy": pytest.approx(sk.top_k_accuracy_score(labels, scores, k=5)),
    }
    assert found.details()["counts"] == sk.confusion_matrix(labels, predicted).tolist()


@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
def test_one_score_for_two_classes(logits: bool):
    labels = RNG.integers(0, 2, SAMPLES)
    scores = RNG.normal(size=(SAMPLES, 1)) if logits else RNG.random((SAMPLES, 1))
    found = measured("classification", Facts((4,), (), 2), None, labels, scores).metrics()
    assert found["accuracy"] == np.mean(labels == (scores[:, 0] > (0.0 if logits else 0.5)))
    assert "top5_accuracy" not in found


def test_multilabel_leaves_out_labels_that_never_occur():
    targets, scores = RNG.integers(0, 2, (SAMPLES, 4)).astype(np.float32), RNG.random((SAMPLES, 4))
    targets[:, 2] = 0.0
    found = measured("multilabel", Facts((4,), (4,), 4), None, targets, scores).metrics()
    occur = [0, 1, 3]
    assert found["mean_average_precision"] == pytest.approx(
        sk.average_precision_score(targets[:, occur], scores[:, occur])
    )


def test_regression():
    targets = RNG.normal(5.0, 2.0, (SAMPLES, 2)).astype(np.float32)
    outputs = targets + RNG.normal(0.0, 0.5, targets.shape).astype(np.float32)
    found = measured("regression", Facts((4,), (2,), 2), None, targets, outputs)
    assert found.metrics() == {
        "rmse": pytest.approx(np.sqrt(sk.mean_squared_error(targets, outputs)), rel=1e-5),
        "mae": pytest.approx(sk.mean_absolute_error(targets, outputs), rel=1e-5),
        "r2": pytest.approx(sk.r2_score(targets, outputs), rel=1e-5),
    }
    assert len(found.details()["targets"]) == 2 * SAMPLES


def test_regression_on_equal_targets_has_no_r2():
    found = measured("regression", Facts((4,), (1,), 1), None, np.ones((SAMPLES, 1)), np.ones((SAMPLES, 1)) * 3.0)
    assert found.metrics()["rmse"] == 2.0
    assert np.isnan(found.metrics()["r2"])


def test_segmentation():
    labels, scores = RNG.integers(0, 3, (SAMPLES, 4, 5)), RNG.random((SAMPLES, 4, 5, 3))
    found = measured("segmentation", Facts((4, 5, 3), (4, 5), 3), None, labels, scores).metrics()
    flat = labels.ravel(), scores.argmax(-1).ravel()
    assert found["mean_iou"] == pytest.approx(sk.jaccard_score(*flat, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(sk.accuracy_score(*flat))


def test_reconstruction():
    x = RNG.random((SAMPLES, 6, 2))
    flags = np.arange(SAMPLES) % 3 == 0
    outputs = x + RNG.normal(0.0, np.where(flags, 0.3, 0.2)[:, None, None], x.shape)
    errors = np.square(x - outputs).mean((1, 2))
    found = measured("reconstruction", Facts((6, 2), (6, 2)), x, flags.astype(int), outputs).metrics()
    assert found["auc"] == pytest.approx(sk.roc_auc_score(flags, errors))
    assert found["partial_auc"] == pytest.approx(sk.roc_auc_score(flags, errors, max_fpr=0.1))
    assert found["error"] == pytest.approx(errors[~flags].mean())


def test_reconstruction_without_flags_has_its_error_alone():
    facts, x = Facts((6,), (6,), has_test_targets=False), RNG.random((SAMPLES, 6))
    assert measured("reconstruction", facts, x, None, x + 2.0).metrics() == {"error": pytest.approx(4.0)}
    assert task_named("reconstruction").headline(facts) == Headline(
        name="error", higher_is_better=False, is_share=False
    )


def test_own_measures_a_metric_of_keras():
    targets, outputs = RNG.random((SAMPLES, 3)), RNG.random((SAMPLES, 3))
    found = measured("own", Facts((4,), (3,)), None, targets, outputs, metric="mae").metrics()
    assert found == {"mae": pytest.approx(np.abs(targets - outputs).mean(), rel=1e-5)}
    labels, scores = RNG.integers(0, 3, SAMPLES), RNG.random((SAMPLES, 3))
    found = measured("own", Facts((4,), ()), None, labels, scores, metric="accuracy").metrics()
    assert found == {"accuracy": pytest.approx(np.mean(labels == scores.argmax(1)))}


def test_own_measures_one_output_of_several():
    facts = Facts((4,), {"box": (4,), "class": ()})
    y = {"box": RNG.random((SAMPLES, 4)), "class": RNG.integers(0, 3, SAMPLES)}
    outputs = {"box": RNG.random((SAMPLES, 4)), "class": RNG.random((SAMPLES, 3))}
    scores = task_named("own", "class:sparse_categorical_accuracy").scores(facts)
    scores.add(None, y, outputs)
    assert scores.metrics() == {
        "class_sparse_categorical_accuracy": pytest.approx(np.mean(y["class"] == outputs["class"].argmax(1)))
    }
    for wrong, says in (("mae", "one of box:mae, class:mae"), ("mask:mae", "required: one of box, class")):
        with pytest.raises(SpecError, match=says):
            task_named("own", wrong).scores(facts)
    with pytest.raises(SpecError, match="there is no metric named 'maee'"):
        task_named("own", "box:maee")


@pytest.mark.parametrize(
    ("metric", "higher"),
    [(None, False), ("mae", False), ("MeanSquaredError", False), ("class:accuracy", True), ("AUC", True)],
)
def test_the_direction_of_an_own_headline_follows_from_its_name(metric: str | None, higher: bool):
    assert task_named("own", metric).headline(Facts((4,), ())).higher_is_better is higher


def test_own_measures_the_loss_of_the_model():
    inputs = keras.layers.Input((4,))
    first, second = keras.layers.Dense(2, name="first")(inputs), keras.layers.Dense(1, name="second")(inputs)
    model = keras.Model(inputs, [first, second])
    model.compile("adam", {"first": "mse", "second": "mae"}, loss_weights={"first": 2.0, "second": 0.5})
    x = RNG.random((SAMPLES, 4)).astype(np.float32)
    y = {"second": RNG.random((SAMPLES, 1)), "first": RNG.random((SAMPLES, 2))}
    outputs = dict(zip(("first", "second"), model.predict(x, verbose=0), strict=True))
    scores = task_named("own").scores(Facts((4,), {"second": (1,), "first": (2,)}), model)
    for part in (slice(0, 60), slice(60, None)):
        scores.add(None, {k: v[part] for k, v in y.items()}, {k: v[part] for k, v in outputs.items()})
    assert scores.metrics()["loss"] == pytest.approx(model.evaluate(x, y, verbose=0)[0], rel=1e-5)


def test_own_without_a_model_needs_a_metric():
    with pytest.raises(SpecError, match="cannot measure a TFLite file alone"):
        task_named("own").scores(Facts((4,), (3,)))


def test_tasks_of_one_output_refuse_several():
    for task in ("multilabel", "regression", "segmentation", "reconstruction"):
        scores = task_named(task).scores(Facts((4,), (4,), 4))
        with pytest.raises(UnsupportedModelError, match="one output"):
            scores.add(np.zeros((2, 4)), np.zeros((2, 4)), [np.zeros((2, 4)), np.zeros((2, 4))])


@pytest.mark.parametrize(
    ("task", "y", "says"),
    [
        ("multilabel", np.zeros(5), "shape [5]"),
        ("multilabel", np.full((5, 2), 2), "the value 2"),
        ("regression", np.zeros((5, 2, 2)), "shape [5, 2, 2]"),
        ("regression", np.array(["a"]), "dtype <U1"),
        ("segmentation", np.zeros((5, 4, 4)), "dtype float64"),
        ("segmentation", np.zeros((5, 4, 4, 2), int), "shape [5, 4, 4, 2]"),
        ("segmentation", np.full((5, 4, 4), -1), "a label of -1"),
        ("reconstruction", np.full(5, 2), "the value 2"),
        ("reconstruction", np.zeros((5, 3)), "shape [5, 3]"),
        ("classification", np.zeros((5, 3), int), "one-hot rows?"),
    ],
)
def test_targets_of_another_task_are_refused(task: str, y: np.ndarray, says: str):
    problem = task_named(task).problem(y)
    assert problem is not None
    assert says in problem[1]


def test_targets_that_fit_no_task_ask_for_its_name():
    with pytest.raises(SpecError, match=r"float32 \[N, 3, 3, 3\]"):
        inferred(np.zeros((5, 3, 3, 3), np.float32))
    assert inferred(None)[0] == "reconstruction"
    assert inferred({"a": np.zeros(3), "b": np.zeros(3)})[0] == "own"


def test_a_registered_task_is_found_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "counting_package-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: counting_package\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[tfmot_ops.tasks]\ncounting = counting_module:Counting\n[tfmot_ops.metrics]\nfar = counting_module:far\n"
    )
    (tmp_path / "counting_module.py").write_text(
        "import tensorflow as tf\n"
        "from tfmot_ops.tasks.regression import Regression\n"
        "class Counting(Regression):\n"
        "    name = 'counting'\n"
        "def far(targets, outputs):\n"
        "    return tf.reduce_max(tf.abs(tf.cast(targets, tf.float32) - outputs), axis=-1)\n"
        "far.higher_is_better = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert task_named("counting").name == "counting"
    assert available_tasks()["counting"] == "registered as counting_module:Counting"
    assert set(available_tasks()) > {"classification", "multilabel", "regression", "segmentation", "own"}
    assert not task_named("own", "far").headline(Facts((4,), ())).higher_is_better
    y, outputs = np.zeros((SAMPLES, 2)), np.tile(np.float32([1.0, -3.0]), (SAMPLES, 1))
    assert measured("own", Facts((4,), (2,)), None, y, outputs, metric="far").metrics() == {"far": 3.0}
