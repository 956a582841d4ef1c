"""MLflow for real, on SQLite: runs by key, models that come back, artifacts that are what was recorded."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tfmot_ops import core, models
from tfmot_ops.contract import (
    ArtifactFormat,
    CloseRunOptions,
    LayerReport,
    ListOptions,
    OpenRunOptions,
    Outcome,
    RegisterOptions,
    Status,
    StepError,
    StepResult,
    StepSpec,
    Tracking,
    TrainOptions,
)
from tfmot_ops.core import keras
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.training.loop import fit
from tfmot_ops.errors import ArtifactError, StepFailedError
from tfmot_ops.tasks.classification import compile_default
from tfmot_ops.tracking import MlflowStore, StepRun, fetch_artifact, load_logged_model
from tfmot_ops.tracking.children import children_of
from tfmot_ops.tracking.epochs import newest
from tfmot_ops.tracking.summary import summary

import mlflow  # isort: skip - tracking sets its switches first

KEY = {"dag_id": "d", "run_id": 'it\'s "quoted"', "task_id": "t", "map_index": "-1"}


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def _spec(uri: str, options: Any, parent: str | None = None, key: dict[str, str] | None = None, **fields: Any) -> Any:
    tracking = Tracking(uri=uri, parent_run_id=parent, key=KEY if key is None else key)
    return StepSpec(step_id=options.kind, tracking=tracking, options=options, **fields)


def _result(spec: StepSpec, **fields: Any) -> StepResult:
    told = {"status": Status.OK, "spec_sha256": spec.sha256(), **fields}
    return StepResult(step_id=spec.step_id, kind=spec.options.kind, **told)


def _runs(uri: str) -> list[Any]:
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tfmot_ops")
    return list(client.search_runs([experiment.experiment_id]))


LAYERS = (LayerReport(path="a", class_name="Dense", outcome=Outcome.PRUNED, reason="50% zeros"),)


def test_a_retry_takes_up_its_run_and_leaves_one_result(uri, tmp_path):
    spec = _spec(uri, ListOptions())
    first = StepRun(spec)
    error = StepError(type="StepFailedError", message="no disk", exit_code=4)
    first.finish(_result(spec, status=Status.FAILED, error=error, layers=LAYERS, parameters={"a": 1}), tmp_path)
    assert [run.info.status for run in _runs(uri)] == ["FAILED"]

    second = StepRun(spec)
    assert second.run_id == first.run_id
    assert [run.info.status for run in _runs(uri)] == ["RUNNING"]
    second.finish(_result(spec, layers=LAYERS, parameters={"a": 2}, metrics={"accuracy": 0.5}), tmp_path)
    (run,) = _runs(uri)
    assert run.info.status == "FINISHED"
    assert (run.data.params["a"], run.data.tags["retry.a"]) == ("1", "2")
    assert run.data.metrics == {"accuracy": 0.5}
    client = mlflow.MlflowClient(tracking_uri=uri)
    table = client.load_table(run.info.experiment_id, "layers.json", [run.info.run_id])
    assert table[["path", "outcome"]].to_numpy().tolist() == [["a", "pruned"]]


def test_other_keys_and_no_key_make_runs_of_their_own(uri):
    specs = [_spec(uri, ListOptions(), key=key) for key in (KEY, {**KEY, "map_index": "0"}, {}, {})]
    assert len({StepRun(spec).run_id for spec in specs}) == 4


def test_the_parent_opens_holds_its_children_and_closes_with_the_figures(uri, tmp_path):
    spec = _spec(uri, OpenRunOptions(name="two of us", parameters={"recipe": {"name": "wi8_ai8"}}))
    parent = StepRun(spec)
    parent.finish(_result(spec), tmp_path)
    child_spec = _spec(uri, ListOptions(), parent=parent.run_id)
    child = StepRun(child_spec)
    child.epoch("train", 1, 2, {"loss": 1.0})
    child.epoch("train", 2, 2, {"loss": 0.5})
    child.finish(_result(child_spec), tmp_path)
    by_id = {run.info.run_id: run for run in _runs(uri)}
    assert by_id[child.run_id].data.tags["mlflow.parentRunId"] == parent.run_id
    history = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(child.run_id, "epoch.loss")
    assert [(entry.step, entry.value) for entry in history] == [(1, 1.0), (2, 0.5)]
    assert by_id[parent.run_id].info.status == "RUNNING"

    # Its process is killed, and nobody ends its run.
    killed = StepRun(_spec(uri, ListOptions(), parent=parent.run_id, key={**KEY, "task_id": "killed"}))

    steps = {"train": {"accuracy": 0.9}, "evaluate": {"accuracy": 0.8, "size_bytes": 10.0}}
    close = _spec(uri, CloseRunOptions(steps=steps), parent=parent.run_id)
    result = StepRun(close).finish(_result(close), tmp_path)
    assert result.tracking_run_id == parent.run_id
    closed = mlflow.get_run(parent.run_id)
    assert closed.info.status == "FINISHED"
    assert {run.info.run_id: run.info.status for run in _runs(uri)}[killed.run_id] == "KILLED"
    assert closed.data.params["recipe.name"] == "wi8_ai8"
    figures = {"float_accuracy": 0.9, "int8_accuracy": 0.8, "tflite_size_bytes": 10.0, "duration_s": 0.0}
    assert closed.data.metrics == figures

    again = _spec(uri, CloseRunOptions(steps=steps, failed=("evaluate",)), parent=parent.run_id)
    StepRun(again).finish(_result(again), tmp_path)
    assert mlflow.get_run(parent.run_id).info.status == "FAILED"
    assert len(_runs(uri)) == 3


def test_artifacts_come_back_verified_and_changed_ones_are_refused(uri, tmp_path):
    run = StepRun(_spec(uri, ListOptions()))
    file = tmp_path / "names.txt"
    file.write_text("[]")
    artifact = run.store.put(file, "list", ArtifactFormat.JSON)
    assert artifact.uri == f"runs:/{run.run_id}/list.json"
    assert fetch_artifact(artifact, tmp_path / "a", uri).read_text() == "[]"
    with pytest.raises(ArtifactError, match="not the file that was recorded"):
        fetch_artifact(artifact.model_copy(update={"sha256": "0" * 64}), tmp_path / "b", uri)
    with pytest.raises(ArtifactError, match="cannot read"):
        fetch_artifact(artifact.model_copy(update={"uri": f"runs:/{run.run_id}/gone.json"}), tmp_path / "c", uri)
    elsewhere = MlflowStore(mlflow.MlflowClient(tracking_uri=uri), run.run_id, str(tmp_path / "out"))
    assert elsewhere.put(file, "list", ArtifactFormat.JSON).uri == f"file://{tmp_path}/out/list.json"


@pytest.fixture(scope="module")
def trained():
    set_seed(0)
    x = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype(np.float32)
    model = models.build_model("mobilenet_like", (8, 8, 1), 4, 0)
    compile_default(model, 1e-3)
    fit(model, x, np.arange(64) % 4, None, epochs=1, batch_size=32, seed=0)
    return model, x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wi8_ai8", "sparse50_wi8_ai8"])
def test_a_qat_model_logged_and_loaded_gives_the_same_outputs(uri, trained, name):
    model, x = trained
    recipe = core.recipes.decode(name)
    source = core.strip(core.prune(model, recipe)[0]) if recipe.sparsity else model
    qat, _ = core.quantize(source, recipe, x)
    fit(qat, x, np.arange(64) % 4, None, epochs=1, batch_size=32, seed=0)
    run = StepRun(_spec(uri, ListOptions()))
    run.model(qat, x[:4])
    run.model(qat, x[:4])  # a retry replaces the model
    client = mlflow.MlflowClient(tracking_uri=uri)
    (logged,) = client.search_logged_models([mlflow.get_run(run.run_id).info.experiment_id])
    info = mlflow.models.get_model_info(logged.model_uri)
    assert info.signature.inputs.inputs[0].shape == (-1, 8, 8, 1)
    assert info.saved_input_example_info is not None
    loaded = load_logged_model(logged.model_uri, uri)
    assert np.abs(loaded.predict(x, verbose=0) - qat.predict(x, verbose=0)).max() == 0.0
    assert type(loaded.optimizer).__name__ == "Adam"


def test_a_uri_without_a_keras_model_is_told(uri):
    run = StepRun(_spec(uri, ListOptions()))
    with pytest.raises(ArtifactError, match="cannot read model"):
        load_logged_model(f"runs:/{run.run_id}/nothing", uri)


def test_a_registered_tflite_file_gives_its_own_outputs(uri, trained, tmp_path):
    model, x = trained
    recipe = core.recipes.decode("wi8_ai8_ptq")
    tflite = core.export_tflite(model, recipe, x)
    file = tmp_path / "model.tflite"
    file.write_bytes(tflite)
    exported = StepRun(_spec(uri, ListOptions())).store.put(file, "tflite", ArtifactFormat.TFLITE)
    options = RegisterOptions(name="digits", alias="candidate", metrics={"accuracy": 0.9}, gates={"accuracy": 0.8})
    spec = _spec(uri, options, key={"task_id": "register"}, inputs={"tflite": exported})
    for _ in range(2):  # a retry adds no version
        result = StepRun(spec).finish(_result(spec), tmp_path)
        assert result.parameters["registered_version"] == "1"
    loaded = mlflow.pyfunc.load_model("models:/digits@candidate")
    assert np.array_equal(loaded.predict(x[:8]), core.predict(tflite, x[:8]))


def test_a_chain_that_broke_off_has_no_figures_of_an_int8_model():
    assert summary({"train": {"accuracy": 0.9}, "strip": {"accuracy": 0.8}}) == {"float_accuracy": 0.9}


def test_a_store_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StepFailedError, match="tracking: cannot use"):
        StepRun(_spec(f"sqlite:///{tmp_path}/file/mlflow.db", ListOptions()))


WRITER = """
import sys
from tfmot_ops.contract import ListOptions, StepSpec, Tracking
from tfmot_ops.tracking import StepRun
tracking = Tracking(uri=sys.argv[1], key={"task_id": sys.argv[2]})
StepRun(StepSpec(step_id="list", tracking=tracking, options=ListOptions())).epoch("train", 1, 1, {"loss": 1.0})
"""


@pytest.mark.slow
def test_two_writers_on_a_fresh_store_do_not_collide(uri):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, uri, name], stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    told = [writer.communicate(timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], told
    assert len(_runs(uri)) == 2


def test_keras_is_tf_keras():
    import tf_keras  # here, as a TensorFlow that is loaded before the core gives MLflow Keras 3

    assert keras.Model is tf_keras.Model


@pytest.mark.parametrize(("second", "status"), [(Status.OK, "FINISHED"), (Status.FAILED, "FAILED")])
def test_the_parent_of_a_mapped_task_fails_with_any_of_its_steps(uri, tmp_path, second, status):
    opening = _spec(uri, OpenRunOptions(), key={})
    parent = StepRun(opening)
    parent.finish(_result(opening), tmp_path)
    for index, ended in enumerate((Status.OK, second)):
        step = _spec(uri, ListOptions(), parent.run_id, KEY | {"map_index": str(index)})
        StepRun(step).finish(_result(step, status=ended), tmp_path)
    # Airflow hands on the results of the steps that succeeded only.
    closing = _spec(uri, CloseRunOptions(steps={"list[0]": {"names": 3.0}}), parent.run_id)
    StepRun(closing).finish(_result(closing), tmp_path)
    run = mlflow.MlflowClient(tracking_uri=uri).get_run(parent.run_id)
    assert run.info.status == status
    assert ("list[1]" in run.data.tags["mlflow.note.content"]) == (second is Status.FAILED)


def _curve(uri: str, run_id: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run_id, "epoch.loss")
    return [(each.step, each.value) for each in sorted(history, key=lambda each: each.timestamp)]


def test_a_cleared_task_that_had_ended_shows_its_new_curve_on_its_run(uri, tmp_path):
    opening = _spec(uri, OpenRunOptions(), key={})
    parent = StepRun(opening).finish(_result(opening), tmp_path).tracking_run_id
    spec = _spec(uri, TrainOptions(model="resnet8", dataset="digits"), parent=parent)
    runs = []
    for loss in (0.5, 0.4):
        run = StepRun(spec)
        run.epoch("train", 1, 1, {"loss": loss})
        run.finish(_result(spec), tmp_path)
        runs.append(run.run_id)
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert [child.run_id for child in children_of(client, str(parent))] == runs[:1] == runs[1:]
    assert _curve(uri, runs[0]) == [(1, 0.5), (1, 0.4)]
    assert newest(client.get_metric_history(runs[0], "epoch.loss")) == {1: 0.4}
    assert client.get_run(runs[0]).data.metrics["epoch.loss"] == 0.4


def test_an_epoch_that_is_trained_again_replaces_the_one_on_the_run(uri):
    spec = _spec(uri, ListOptions())
    first = StepRun(spec)
    for epoch, loss in ((1, 0.5), (2, 0.4), (3, 0.3)):
        first.epoch("train", epoch, 3, {"loss": loss})
    again = StepRun(spec)  # its checkpoint was lost after the first epoch, and its data have changed
    assert again.run_id == first.run_id
    again.restored(1, {"loss": 0.6})
    again.epoch("train", 2, 3, {"loss": 0.4})
    again.epoch("train", 3, 3, {"loss": 0.2})
    assert _curve(uri, first.run_id) == [(1, 0.5), (2, 0.4), (3, 0.3), (3, 0.2)]
    history = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(first.run_id, "epoch.loss")
    assert newest(history) == {1: 0.5, 2: 0.4, 3: 0.2}


KILLED = """
import os, sys
import mlflow
from tfmot_ops.cli.execute import execute
from tfmot_ops.contract import StepSpec
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

made = SqlAlchemyStore.create_model_version

def create_and_die(*given, **named):
    made(*given, **named)
    os._exit(9)

SqlAlchemyStore.create_model_version = create_and_die
execute(StepSpec.model_validate_json(sys.argv[1]), print)
"""


@pytest.mark.slow
def test_a_kill_right_after_a_version_was_made_leads_to_no_second_one(uri, trained, tmp_path):
    model, x = trained
    file = tmp_path / "model.tflite"
    file.write_bytes(core.export_tflite(model, core.recipes.decode("wi8_ai8_ptq"), x))
    exported = StepRun(_spec(uri, ListOptions())).store.put(file, "tflite", ArtifactFormat.TFLITE)
    options = RegisterOptions(name="killed", alias="candidate")
    spec = _spec(uri, options, key={"task_id": "register"}, inputs={"tflite": exported})
    killed = subprocess.run([sys.executable, "-c", KILLED, spec.model_dump_json()], check=False, timeout=300)
    assert killed.returncode == 9
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert [version.version for version in client.search_model_versions()] == [1]
    result = StepRun(spec).finish(_result(spec), tmp_path)
    assert result.parameters["registered_version"] == "1"
    assert [version.version for version in client.search_model_versions()] == [1]
    assert client.get_model_version_by_alias("killed", "candidate").version == 1
