"""A training plan as a document: what it takes, what it refuses, and that a spec without one stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tfmot_ops.contract import FineTuneOptions, QuantizeOptions, Recipe, TrainingPlan, TrainOptions

pytestmark = pytest.mark.airflow

WHOLE: dict[str, Any] = {
    "optimizer": {"name": "AdamW", "arguments": {"weight_decay": 0.01}},
    "learning_rate": {"rate": 0.01, "schedule": "piecewise", "warm_up_epochs": 1, "factors": {3: 0.1}},
    "early_stopping": {"metric": "val_accuracy", "patience": 2},
    "class_weights": {0: 1, "cat": 2.5},
    "clipping": {"norm": 1},
    "frozen": {"include": ["block_1/*"]},
    "augmentation": [{"name": "RandomFlip", "arguments": {"mode": "horizontal"}}],
    "distillation": {"weight": 0.3},
}


def test_a_plan_is_the_same_after_a_trip_through_json():
    plan = TrainingPlan.model_validate(WHOLE)
    assert TrainingPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.class_weights == {"0": 1.0, "cat": 2.5}
    assert plan.learning_rate is not None
    assert plan.learning_rate.factors == {3: 0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": {"schedule": "piecewise"}}, "piecewise needs factors"),
        ({"learning_rate": {"factors": {1: 0.1}}}, "factors are for the schedule piecewise alone"),
        ({"learning_rate": {"schedule": "piecewise", "factors": {0: 0.1}}}, "epochs of at least 1"),
        ({"learning_rate": {"final_share": 0.1}}, "final_share for the schedule cosine"),
        ({"learning_rate": {"schedule": "linear"}}, "'constant', 'cosine' or 'piecewise'"),
        ({"clipping": {}}, "received 0 of them"),
        ({"clipping": {"norm": 1, "value": 1}}, "received 2 of them"),
        ({"frozen": {"exclude": ["a"]}}, "at least one layer in include"),
        ({"class_weights": {"a": -1}}, "weights of at least 0"),
        ({"class_weights": {True: 2.0}}, "write 'yes' in quotes"),
        ({"class_weights": {"a": float("nan")}}, "finite number"),
        ({"learning_rate": {"rate": float("inf")}}, "finite number"),
        ({"class_weights": "even"}, "balanced"),
        ({"distillation": {"weight": 0}}, "greater than 0"),
        ({"early_stopping": {"patience": 0}}, "greater than or equal to 1"),
        ({"mixed_precision": True}, "Extra inputs are not permitted"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        TrainingPlan.model_validate(change)


def test_the_options_plan_comes_before_the_recipes():
    plan, other = TrainingPlan.model_validate(WHOLE), TrainingPlan()
    recipe = Recipe(name="mine", training=plan)
    assert FineTuneOptions(dataset="digits", recipe=recipe).plan == plan
    assert FineTuneOptions(dataset="digits", recipe=recipe, training=other).plan == other
    assert QuantizeOptions(dataset="digits", recipe="wi8_ai8").plan == TrainingPlan()
    assert TrainOptions(dataset="digits", model="resnet8", training=plan).plan == plan


def test_without_a_plan_the_documents_are_those_of_earlier_releases():
    assert "training" not in TrainOptions(dataset="digits", model="resnet8").model_dump(mode="json")
    assert "training" not in Recipe(name="mine").model_dump_json()
