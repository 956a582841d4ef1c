"""Training plans through the chain: what reaches the training, and what is refused before it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tfmot_ops import core
from tfmot_ops.cli.chain import Chain
from tfmot_ops.contract import Artifact, ArtifactFormat, Recipe, Status, StepResult, StepSpec, TrainingPlan
from tfmot_ops.core import keras
from tfmot_ops.core.training.augmentation import available_augmentations
from tfmot_ops.data.splits import load_dataset
from tfmot_ops.errors import SpecError
from tfmot_ops.steps import check, run_step
from tfmot_ops.steps.training import check_plan, sample_weights
from tfmot_ops.store import FsspecStore
from tfmot_ops.tasks.by_name import task_named

RNG = np.random.default_rng(0)
LABELS = np.array([0] * 70 + [1] * 30 + [2] * 20)
ROWS = (np.eye(3)[LABELS] + RNG.normal(0.0, 0.4, (120, 3))).astype(np.float32)


class Quiet:
    """Keeps the messages of a step."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def restored(self, *_: Any) -> None:
        pass

    def epoch(self, *_: Any) -> None:
        """Called after each epoch."""

    def model(self, *_: Any) -> None:
        """Called with the model."""


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Name of a data set of rows in three classes."""
    np.savez(tmp_path / "rows.npz", x=ROWS, y=LABELS)
    return f"npz:{tmp_path / 'rows.npz'}"


def step(tmp_path: Path, options: dict[str, Any], inputs: Any = None) -> tuple[StepResult, list[str]]:
    """(result, messages) of a step."""
    spec = StepSpec.model_validate(
        {"step_id": options["kind"], "output_uri": str(tmp_path / "out"), "options": options, "inputs": inputs or {}}
    )
    progress = Quiet()
    return run_step(spec, FsspecStore(spec.output_uri or ""), tmp_path / "work", progress), progress.said


def refused(plan: dict[str, Any], dataset: str, model: str = "mlp", task: str | None = None) -> SpecError:
    """Why a train step with this plan is refused."""
    options = {"kind": "train", "model": model, "dataset": dataset, "task": task, "epochs": 1, "training": plan}
    with pytest.raises(SpecError) as caught:
        step(Path(dataset.partition(":")[2]).parent, options)
    assert caught.value.remedy
    return caught.value


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_plan_in_the_recipe_is_the_plan_beside_it(rows: str, tmp_path: Path):
    plan = TrainingPlan.model_validate(
        {
            "optimizer": {"name": "SGD", "arguments": {"momentum": 0.9}},
            "learning_rate": {"rate": 0.05, "schedule": "cosine", "warm_up_epochs": 0.5},
            "early_stopping": {"patience": 3},
            "class_weights": "balanced",
            "clipping": {"global_norm": 1.0},
            "augmentation": [{"name": "GaussianNoise", "arguments": {"stddev": 0.05}}],
            "distillation": {"weight": 0.4, "temperature": 2.0},
        }
    )
    base = core.recipes.decode("sparse50_wi8_ai8")
    with_plan = Recipe.model_validate(base.model_dump() | {"training": plan.model_dump()})
    epochs = {"train": 6, "fine_tune": 4, "quantize": 2}
    common = {"model": "mlp", "dataset": rows, "tracking_uri": None, "epochs": epochs}
    beside = Chain(**common, recipe=base, training=plan, output=tmp_path / "beside")
    within = Chain(**common, recipe=with_plan, output=tmp_path / "within")
    said: list[str] = []
    for chain in (beside, within):
        assert chain.run(said.append).status is Status.OK
    one, other = ({r.step_id: r for r in chain.results} for chain in (beside, within))
    assert one["quantize"].outputs["tflite"].sha256 == other["quantize"].outputs["tflite"].sha256
    for name in ("train", "fine_tune", "quantize"):
        assert one[name].parameters["training"]["distillation"] == {"weight": 0.4, "temperature": 2.0}
        assert one[name].parameters["compile"]["optimizer"] == "SGD"
        assert "CosineDecay(initial_learning_rate=0.0" in one[name].parameters["learning_rate"]
        assert one[name].metrics["epochs_trained"] <= epochs[name]
    # A tenth of the plan's rate for quantisation-aware training; the plan's rate is the compiled one, too.
    assert "0.005" in one["quantize"].parameters["learning_rate"]
    assert one["quantize"].parameters["compile"]["optimizer.learning_rate"] == pytest.approx(0.05)
    learning = [text for text in said if "learns from" in text]
    assert [text.split(":")[0] for text in learning] == ["fine_tune", "quantize"] * 2
    assert one["evaluate"].metrics["sparsity"] >= 0.5


def test_a_plan_with_distillation_needs_the_trained_model(rows: str, tmp_path: Path):
    result, _ = step(tmp_path, {"kind": "train", "model": "mlp", "dataset": rows, "epochs": 1})
    options = {"kind": "quantize", "dataset": rows, "recipe": "wi8_ai8", "epochs": 1, "training": {"distillation": {}}}
    with pytest.raises(SpecError, match="the training plan distils, and there is no model to learn from") as caught:
        step(tmp_path, options, {"model": result.outputs["model"]})
    assert caught.value.received == "model"


def test_what_a_plan_names_is_checked_before_anything_runs(rows: str):
    artifact = Artifact(uri="x", sha256="0" * 64, size_bytes=0, format=ArtifactFormat.KERAS_H5)
    for plan, message in (
        ({"optimizer": {"name": "Adamm"}}, "unknown optimizer"),
        ({"augmentation": [{"name": "RandomFlipp"}]}, "unknown augmentation"),
    ):
        options = {"kind": "fine_tune", "dataset": rows, "recipe": "wi8_ai8", "training": plan}
        document = {"step_id": "a", "output_uri": "out", "options": options, "inputs": {"model": artifact}}
        with pytest.raises(SpecError, match=message):
            check(StepSpec.model_validate(document))


def test_the_plan_of_the_documentation_is_one():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "training.md").read_text(encoding="utf-8")
    text = page.partition("```yaml\n")[2].partition("```")[0]
    plan = TrainingPlan.model_validate(yaml.safe_load(text))
    check_plan(plan)
    assert set(plan.model_dump(exclude_defaults=True)) == set(TrainingPlan.model_fields)
    documented = set(re.findall(r"\b[A-Z]\w+", page.rpartition("moves the image |\n|---|---|---|\n")[2]))
    assert documented == set(available_augmentations())


def test_a_plan_that_does_not_fit_the_data_is_refused(rows: str, tmp_path: Path):
    error = refused({"class_weights": {"7": 2.0}}, rows)
    assert error.required == "labels 0 to 2"
    error = refused({"augmentation": [{"name": "RandomFlip"}]}, rows)
    assert (error.required, error.received) == ("a batch of images [N, H, W, C]", "inputs of shape [4, 3]")
    error = refused({"early_stopping": {"metric": "val_auc"}}, rows)
    assert error.received == "'val_auc'"
    np.savez(tmp_path / "numbers.npz", x=ROWS, y=ROWS.sum(axis=1))
    error = refused({"class_weights": "balanced"}, f"npz:{tmp_path / 'numbers.npz'}")
    assert "regression has no classes" in str(error)
    images, masks = RNG.integers(0, 255, (60, 16, 16, 3), np.uint8), RNG.integers(0, 2, (60, 16, 16))
    np.savez(tmp_path / "masks.npz", x=images, y=masks)
    error = refused({"augmentation": [{"name": "RandomFlip"}]}, f"npz:{tmp_path / 'masks.npz'}", "unet")
    assert "moves the image, and not the targets of the task segmentation" in str(error)


def test_an_augmentation_of_several_inputs_says_which(tmp_path: Path):
    inputs = [keras.layers.Input((8, 8, 1), name="image"), keras.layers.Input((1,), name="age")]
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(inputs[0]), inputs[1]])
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(joined))
    model.compile("adam", "sparse_categorical_crossentropy")
    core.save_model(model, tmp_path / "two.h5")
    arrays = {"x.image": RNG.random((60, 8, 8, 1), np.float32), "x.age": RNG.random((60, 1), np.float32)}
    np.savez(tmp_path / "two.npz", y=np.arange(60) % 3, **arrays)
    dataset, path = f"npz:{tmp_path / 'two.npz'}", str(tmp_path / "two.h5")
    noise = {"name": "GaussianNoise", "arguments": {"stddev": 0.1}}
    error = refused({"augmentation": [noise]}, dataset, path)
    assert (error.required, error.received) == ("one of image, age", "no name, and there are several inputs")
    options = {"kind": "train", "model": path, "dataset": dataset, "epochs": 1}
    plan = {"training": {"augmentation": [{**noise, "input": "age"}]}}
    plain, noisy = (step(tmp_path / name, options | more)[0] for name, more in (("a", {}), ("b", plan)))
    assert plain.outputs["model"].sha256 != noisy.outputs["model"].sha256


# --- weights -----------------------------------------------------------------------------------------------------


def test_balanced_classes_have_the_same_share_of_the_loss(rows: str):
    data = load_dataset(rows)
    weights = sample_weights(TrainingPlan(class_weights="balanced"), data, 1)
    shares = [weights[data.y_train == label].sum() for label in range(3)]
    assert shares == pytest.approx([len(data.y_train) / 3] * 3, rel=1e-4)


def test_weights_by_name_and_of_the_samples_are_multiplied(tmp_path: Path):
    given = RNG.random(120)
    np.savez(tmp_path / "a.npz", x=ROWS, y=LABELS, sample_weight=given, class_names=["a", "b", "c"])
    data = load_dataset(f"npz:{tmp_path / 'a.npz'}")
    rows = [int(np.flatnonzero((row == ROWS).all(axis=1))[0]) for row in data.x_train]
    np.testing.assert_allclose(data.weights_train, given[rows], rtol=1e-6)
    assert data.record["sample_weights"] is True
    weights = sample_weights(TrainingPlan(class_weights={"b": 3.0, "2": 0.0}), data, 1)
    np.testing.assert_allclose(weights, given[rows] * np.array([1.0, 3.0, 0.0])[data.y_train], rtol=1e-6)
    two = sample_weights(TrainingPlan(), data, 2)
    assert len(two) == 2
    assert two[0] is data.weights_train


def test_pixels_are_weighted_by_their_class(tmp_path: Path):
    masks = np.zeros((40, 8, 8), np.int64)
    masks[:, :2] = 1
    np.savez(tmp_path / "m.npz", x=RNG.random((40, 8, 8, 1), np.float32), y=masks)
    data = load_dataset(f"npz:{tmp_path / 'm.npz'}")
    weights = sample_weights(TrainingPlan(class_weights="balanced"), data, 1)
    weights = weights[:] if hasattr(weights, "then") else weights
    assert weights.shape == data.y_train.shape
    assert weights[0, 0, 0] == pytest.approx(2.0)
    assert weights[0, 5, 0] == pytest.approx(2.0 / 3.0)


@pytest.mark.parametrize(
    ("weights", "received"),
    [
        (np.ones(119), "weights of shape [119] and type float64"),
        (np.r_[np.ones(118), -1.0, np.nan], "2 other weights, the first -1.0 at 118"),
        (np.array(["a"] * 120), "weights of shape [120] and type <U1"),
    ],
)
def test_wrong_weights_are_refused(weights: Any, received: str, tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=ROWS, y=LABELS, sample_weight=weights)
    with pytest.raises(SpecError) as caught:
        load_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert caught.value.received == received


def test_other_weights_are_other_data(rows: str, tmp_path: Path):
    np.savez(tmp_path / "w.npz", x=ROWS, y=LABELS, sample_weight=np.full(120, 2.0))
    assert load_dataset(rows).digest != load_dataset(f"npz:{tmp_path / 'w.npz'}").digest


def test_every_task_says_what_its_outputs_are():
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(3)])
    named = {name: task_named(name).outputs_are(model, ROWS[:4]).value for name in ("classification", "multilabel")}
    assert named == {"classification": "logits", "multilabel": "label logits"}
    assert task_named("regression").outputs_are(model, ROWS[:4]).value == "values"
    one = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, activation="sigmoid")])
    assert task_named("classification").outputs_are(one, ROWS[:4]).value == "label probabilities"
