"""Names of metrics and parameters that MLflow does not take, in a real store."""

from __future__ import annotations

from typing import Any

import pytest

from tfmot_ops import core
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import CloseRunOptions, Headline, ListOptions, Status, StepResult, StepSpec, Tracking
from tfmot_ops.core import keras
from tfmot_ops.tracking import StepRun
from tfmot_ops.tracking.names import accepted_names

import mlflow  # isort: skip - tracking sets its switches first

L = keras.layers
NAMES = {
    "sign": ("top@5", "top_5"),
    "brackets": ("f1 (macro)", "f1 _macro_"),
    "percent": ("95%", "95_"),
    "line": ("a\nb", "a_b"),
    "empty": ("", "_"),
    "folder above": ("../accuracy", "_._accuracy"),
    "absolute": ("/accuracy", "_accuracy"),
    "empty part": ("a//b", "a__b"),
    "slash at the end": ("top/", "top_"),
    "here": (".", "_"),
    "letters of another language": ("größe", "größe"),
    "right": ("val/top-5: a_b.c", "val/top-5: a_b.c"),
}


def _run(uri: str, options: Any) -> tuple[StepSpec, StepRun]:
    spec = StepSpec(step_id=options.kind, tracking=Tracking(uri=uri), options=options)
    return spec, StepRun(spec)


@pytest.mark.parametrize(("name", "accepted"), NAMES.values(), ids=NAMES.keys())
def test_a_name_becomes_one_that_mlflow_takes(name, accepted):
    assert accepted_names([name]) == {name: accepted}
    mlflow.utils.validation._validate_metric_name(accepted)


def test_names_that_would_become_one_stay_apart():
    long = "x" * 300
    names = ["top@5", "top_5", "top#5", "top%5", long, long + "y"]
    accepted = accepted_names(names)
    assert accepted["top_5"] == "top_5"
    assert [accepted[name] for name in ("top@5", "top#5", "top%5")] == ["top_5_2", "top_5_3", "top_5_4"]
    assert len(set(accepted.values())) == len(names)
    assert max(map(len, accepted.values())) == 250


def test_a_run_holds_every_metric_and_parameter_whatever_its_name(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    names = [name for name, _ in NAMES.values()] + ["top#5", "x" * 300]
    figures = {name: float(place) for place, name in enumerate(names)}
    spec, run = _run(uri, ListOptions())
    for epoch in (1, 2):
        run.epoch("train", epoch, 2, {name: value + epoch for name, value in figures.items()})
    result = StepResult(
        step_id=spec.step_id, kind="list", spec_sha256="", status=Status.OK, metrics=figures, parameters=dict(figures)
    )
    run.finish(result, tmp_path)
    recorded = mlflow.MlflowClient(uri).get_run(run.run_id).data
    assert [recorded.metrics[name] for name in accepted_names(figures).values()] == list(figures.values())
    at_epochs = {name: value for name, value in recorded.metrics.items() if name.startswith("epoch.")}
    assert sorted(at_epochs.values()) == [value + 2 for value in figures.values()]
    assert {"top_5", "top_5_2"} <= set(recorded.params)


def test_the_summary_of_a_chain_takes_any_name_too(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    options = CloseRunOptions(steps={"evaluate (1)": {"top@5": 0.5}}, headline=Headline(name="top@5"))
    spec, run = _run(uri, options)
    run.finish(StepResult(step_id=spec.step_id, kind="close_run", spec_sha256="", status=Status.OK), tmp_path)
    assert mlflow.MlflowClient(uri).get_run(run.run_id).data.metrics == {"int8_top_5": 0.5}


def test_a_model_with_such_a_metric_is_trained_and_recorded(tmp_path):
    model = keras.Sequential([L.Input((8, 8, 1)), L.Flatten(), L.Dense(10, activation="softmax")])
    metrics = [keras.metrics.SparseTopKCategoricalAccuracy(5, name=name) for name in ("top@5", "top_5", "f1 (macro)")]
    model.compile("adam", "sparse_categorical_crossentropy", metrics)
    core.save_model(model, tmp_path / "model.h5")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    options = {"kind": "train", "model": f"{tmp_path}/model.h5", "dataset": "digits", "epochs": 2, "limit": 60}
    document = {"step_id": "train", "tracking": {"uri": uri}, "options": options}
    result = execute(StepSpec.model_validate(document), lambda _: None)
    assert result.status is Status.OK, result.error
    client = mlflow.MlflowClient(uri)
    for name in ("epoch.top_5", "epoch.top_5_2", "epoch.val_top_5", "epoch.f1 _macro_"):
        assert len(client.get_metric_history(result.tracking_run_id, name)) == 2, name
