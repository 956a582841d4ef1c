"""What a person compares in MLflow: names, tags, few figures, a description, data sets, pictures, ranked models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded_chain import DATA, DETAILS, EVALUATED, Store

from tfmot_ops.contract import (
    Artifact,
    ArtifactFormat,
    CloseRunOptions,
    EvaluateOptions,
    Headline,
    Status,
    StepError,
    TrainOptions,
)
from tfmot_ops.core import keras
from tfmot_ops.tracking.datasets import dataset_of
from tfmot_ops.tracking.models import data_of_model
from tfmot_ops.tracking.writing import Measured, log_metrics

L = keras.layers
RMSE = Headline(name="rmse", higher_is_better=False, is_share=False)


@pytest.fixture(scope="module")
def model():
    net = keras.Sequential([L.Input((4,)), L.Dense(2)])
    net.compile("sgd", "mse")
    return net


@pytest.fixture(scope="module")
def chain(tmp_path_factory, model):
    store = Store(tmp_path_factory.mktemp("chain"))
    store.chain(model)
    return store


@pytest.mark.slow
def test_parent_and_children_have_the_tags_to_filter_by(chain):
    shown = {"model": "own net.h5", "dataset": "digits", "recipe": "sparse50_wi8_ai8", "task": "classification"}
    wanted = {f"tfmot_ops.{name}": value for name, value in {**shown, "device": "cpu"}.items()}
    for run in chain.runs():
        assert wanted.items() <= run.data.tags.items(), run.info.run_name
    query = "tags.`tfmot_ops.recipe` = 'sparse50_wi8_ai8' and tags.`tfmot_ops.kind` = 'open_run'"
    (found,) = chain.client.search_runs([chain.run().info.experiment_id], query)
    assert found.info.run_name == "own net.h5 digits sparse50_wi8_ai8"


def test_the_experiment_opens_on_training_runs(chain, tmp_path):
    assert chain.client.get_experiment_by_name("tfmot_ops").tags["mlflow.experimentKind"] == "custom_model_development"
    other = Store(tmp_path)
    known = other.client.create_experiment("tfmot_ops", tags={"mlflow.experimentKind": "theirs"})
    other.open()
    assert other.client.get_experiment(known).tags["mlflow.experimentKind"] == "theirs"
    other.client.delete_experiment_tag(known, "mlflow.experimentKind")
    other.open()
    assert other.client.get_experiment(known).tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_parent_holds_few_figures_that_answer_a_question(chain):
    assert chain.run().data.metrics == {
        "float_accuracy": 0.95,
        "int8_accuracy": 0.9,
        "accuracy_drop": 0.05,
        "pruned_accuracy": 0.92,
        "pruning_drop": 0.03,
        "quantization_drop": 0.02,
        "compression": 3.5,
        "final_sparsity": 0.5,
        "tflite_size_bytes": 2000.0,
        "tflite_gzip_bytes": 1000.0,
        "tflite_arena_bytes": 4096.0,
        "int8_mac_fraction": 1.0,
        "tflite_latency_ms": 0.5,
        "worst_layer_sqnr_db": 20.0,
        "duration_s": 6.0,
    }


def test_the_description_says_what_was_done_and_has_the_table(chain):
    run = chain.run()
    sentence, table, compare, page, *pictures = run.data.tags["mlflow.note.content"].split("\n\n")
    assert sentence == (
        "`own net.h5` on `digits` (classification), recipe `sparse50_wi8_ai8`: accuracy 95.0% as float model, "
        "**90.0%** as TFLite file, 5.0 points worse (3.0 points worse by pruning, 2.0 points worse by quantization); "
        "the file is 3.5 times smaller."
    )
    rows = table.splitlines()
    assert rows[0] == "| step | accuracy | sparsity | size | gzip | int8 MACs | latency | wall time |"
    assert [row.split("]")[0] for row in rows[2:]] == ["| [train", "| [quantize", "| [evaluate"]
    assert rows[-1].endswith("| 90.0% | 50.0% | 2.0 kB | 1.0 kB | 100.0% | 0.500 ms | 2.0 s |")
    assert f"runs/{chain.run('evaluate').info.run_id}?workflowType=machine_learning)" in rows[-1]
    experiment = chain.client.get_experiment(run.info.experiment_id)
    address = f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=tfmot_ops_accuracy"
    assert compare == f"[All chains by accuracy]({address}&workflowType=machine_learning)"
    view = json.loads(experiment.tags["mlflow.sharedViewState.tfmot_ops_accuracy"])
    state = json.loads(view["state"])
    assert (view["name"], state["orderByKey"], state["orderByAsc"]) == (
        "Chains by accuracy",
        "metrics.`int8_accuracy`",
        False,
    )
    shown = {name.removeprefix("metrics.").strip("`") for name in state["selectedColumns"]}
    assert shown <= run.data.metrics.keys()
    found = chain.client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert [each.info.run_id for each in found] == [run.info.run_id]
    assert page == f"[Page of plots](get-artifact?run_uuid={run.info.run_id}&path=plots.html)"
    address = f"get-artifact?run_uuid={run.info.run_id}&path=pictures%2Fconfusion_matrix.png"
    assert pictures[0] == f"![confusion matrix]({address})"


@pytest.fixture
def broken(tmp_path, model):
    """A chain whose training fails, and what is said then."""
    store = Store(tmp_path)
    store.open(dataset="npz:https://user:word@host/d.npz")
    error = StepError(type="StepFailedError", message="no data at https://user:word@host/d.npz ```", exit_code=4)
    options = TrainOptions(dataset="npz:https://user:word@host/d.npz", model="resnet8", epochs=2)
    store.step(options, model=model, status=Status.FAILED, error=error)
    store.step(CloseRunOptions(failed=("train", "prune")))
    return store


def test_a_chain_that_failed_says_where_and_why(broken):
    run = broken.run()
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"duration_s": 2.0}
    text = run.data.tags["mlflow.note.content"]
    assert "**failed** in `train`; not run: `prune`." in text
    assert "StepFailedError: no data at https://***@host/d.npz '''" in text
    assert [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| ")][2:] == [
        "failed",
        "not run",
    ]
    everything = json.dumps([[each.data.tags, each.data.params, each.info.run_name] for each in broken.runs()])
    assert "word" not in everything
    assert broken.files(run) == ["pictures/training_curves.png"]


def test_a_metric_with_a_unit_is_told_in_its_direction(tmp_path):
    store = Store(tmp_path)
    store.open(task="regression")
    steps = {"evaluate": {"rmse": 4.5, "float_rmse": 4.0, "rmse_drop": 0.5, "size_bytes": 10.0}}
    store.step(CloseRunOptions(steps=steps, headline=RMSE))
    run = store.run()
    assert {"int8_rmse": 4.5, "float_rmse": 4.0, "rmse_drop": 0.5}.items() <= run.data.metrics.items()
    assert "(regression)" in run.data.tags["mlflow.note.content"]
    assert "rmse 4 as float model, **4.5** as TFLite file, 0.5 worse." in run.data.tags["mlflow.note.content"]


def test_the_data_set_is_an_input_of_each_run(chain):
    contexts = {"open_run": "training", "train": "training", "quantize": "training", "evaluate": "evaluation"}
    for kind, context in contexts.items():
        (given,) = chain.run(kind).inputs.dataset_inputs
        assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": context}
        data = given.dataset
        assert (data.name, data.digest, json.loads(data.source)) == ("digits", "ab" * 6, {"uri": "digits"})
        tensors = json.loads(data.schema)["mlflow_tensorspec"]
        (x,), (y,) = json.loads(tensors["features"]), json.loads(tensors["targets"])
        assert (x["name"], x["tensor-spec"]) == ("x", {"dtype": "float32", "shape": [-1, 4]})
        assert (y["name"], y["tensor-spec"]) == ("y", {"dtype": "int64", "shape": [-1]})


def test_a_data_set_without_a_schema_or_with_an_odd_one_is_taken():
    assert dataset_of({"dataset": "digits"}) is None
    file = dataset_of({"dataset": "npz:/data/faces.npz", "dataset_digest": "12"})
    assert (file.name, file.source_type, json.loads(file.source)) == ("faces.npz", "local", {"uri": "/data/faces.npz"})
    assert file.schema is None
    odd = {"x": "ragged", "z": 3}
    assert json.loads(dataset_of({**DATA, "dataset_schema": odd}).schema) == odd
    several = {"x.words": "string [N]", "x.image": "uint8 [N, ?, ?, 3]", "y.box": "float32 [N, 4]"}
    tensors = json.loads(dataset_of({**DATA, "dataset_schema": several}).schema)["mlflow_tensorspec"]
    assert [each["name"] for each in json.loads(tensors["features"])] == ["x.words", "x.image"]
    assert [each["name"] for each in json.loads(tensors["targets"])] == ["y.box"]


@pytest.mark.slow
@pytest.mark.parametrize("details", DETAILS)
def test_pictures_are_on_the_evaluate_run_and_on_the_parent(tmp_path, model, details):
    store = Store(tmp_path)
    store.chain(model, details=details)
    wanted = [f"pictures/{name}.png" for name in sorted((details, "layer_sqnr", "training_curves"))]
    for kind in ("evaluate", "open_run"):
        run = store.run(kind)
        assert store.files(run) == wanted
        for path in wanted:
            file = Path(store.client.download_artifacts(run.info.run_id, path, str(tmp_path)))
            assert file.read_bytes().startswith(b"\x89PNG")


UNFIT = ("{", "[]", '{"kind": "confusion"}', '{"kind": "scatter", "targets": [], "predictions": []}')


@pytest.mark.parametrize("details", UNFIT)
def test_a_picture_that_cannot_be_drawn_fails_nothing_and_is_told(tmp_path, details):
    store = Store(tmp_path)
    store.open()
    options = EvaluateOptions(dataset="digits")
    tflite = Artifact(uri="/gone", sha256="0" * 64, size_bytes=1, format=ArtifactFormat.TFLITE)
    given = {"inputs": {"tflite": tflite}, "metrics": {"accuracy": 0.5}}
    store.step(options, files={"details": (details, ArtifactFormat.JSON)}, **given)
    run = store.run("evaluate")
    assert run.info.status == "FINISHED"
    assert "details" in json.loads(run.data.tags["tfmot_ops.pictures_missing"])
    store.step(options, **given)  # without them there is nothing to tell
    assert "tfmot_ops.pictures_missing" not in store.run("evaluate").data.tags
    assert store.files(store.run("evaluate")) == []


@pytest.mark.slow
def test_models_are_ranked_by_what_was_measured(tmp_path, model):
    for recipe, accuracy in (("wi8_ai8", 0.8), ("sparse50_wi8_ai8", 0.9), ("sparse80_wi8_ai8", 0.7)):
        store = Store(tmp_path, recipe)
        store.chain(model, accuracy)
    experiment = store.run().info.experiment_id
    ranked = store.client.search_logged_models(
        [experiment],
        "tags.`tfmot_ops.kind` = 'quantize' and metrics.accuracy > 0.75",
        order_by=[{"field_name": "metrics.accuracy", "ascending": False}],
    )
    assert [each.tags["tfmot_ops.recipe"] for each in ranked] == ["sparse50_wi8_ai8", "wi8_ai8"]
    assert ranked[0].name == "own net_h5 digits sparse50_wi8_ai8 quantize"
    best = {metric.key: metric for metric in ranked[0].metrics}
    # Its own step's figures and those that evaluate measured of its file.
    assert (best["accuracy"].value, best["accuracy_drop"].value, best["latency_ms"].value) == (0.9, 0.05, 0.5)
    assert (best["accuracy"].dataset_name, best["accuracy"].dataset_digest) == ("digits", "ab" * 6)
    data = data_of_model(store.client, ranked[0].model_id)
    assert (data.name, data.digest) == ("digits", "ab" * 6)
    evaluate = store.client.get_run(Store(tmp_path, "sparse50_wi8_ai8").run("evaluate").info.run_id)
    assert [each.model_id for each in evaluate.inputs.model_inputs] == [ranked[0].model_id]


def test_figures_that_a_model_took_over_from_its_run_get_their_data_set(tmp_path, model):
    """As those of a registered file: MLflow copies the metrics of a run onto the models that it logs, without data."""
    store = Store(tmp_path)
    store.open()
    options = TrainOptions(dataset="digits", model="/models/own net.h5")
    store.step(options, metrics={"accuracy": 0.9})
    store.step(options, model=model, metrics={"accuracy": 0.9}, parameters=DATA)
    run = store.run("train")
    (logged,) = store.client.search_logged_models([run.info.experiment_id])
    assert {(m.key, m.value, m.dataset_name) for m in logged.metrics} == {
        ("accuracy", 0.9, None),
        ("accuracy", 0.9, "digits"),
    }
    data = data_of_model(store.client, logged.model_id)
    log_metrics(store.client, run.info.run_id, {"accuracy": 0.9}, Measured(logged.model_id, dataset=data))
    assert len(store.client.get_logged_model(logged.model_id).metrics) == 2, "once is enough"


@pytest.mark.slow
def test_a_chain_recorded_again_adds_nothing(tmp_path, model):
    store = Store(tmp_path)
    store.chain(model)
    store.chain(None)  # as after a kill: the models are there, and everything else is recorded again
    assert len(store.runs()) == 4
    pictures = [f"pictures/{name}.png" for name in ("confusion_matrix", "layer_sqnr", "training_curves")]
    for kind in ("open_run", "train", "quantize", "evaluate"):
        run = store.client.get_run(store.run(kind).info.run_id)
        assert len(run.inputs.dataset_inputs) == 1
        assert len(run.inputs.model_inputs) == (kind == "evaluate")
        assert store.files(run) == (pictures if kind in {"open_run", "evaluate"} else [])
        for name in run.data.metrics:
            steps = [entry.step for entry in store.client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), name


@pytest.mark.slow
def test_a_model_that_a_retry_replaced_takes_the_figures_over(tmp_path, model):
    store = Store(tmp_path)
    store.chain(model, accuracy=0.8)
    store.chain(model, accuracy=0.9)
    models = store.client.search_logged_models([store.run().info.experiment_id])
    assert sorted(each.tags["tfmot_ops.kind"] for each in models) == ["quantize", "train"]
    (quantized,) = [each for each in models if each.tags["tfmot_ops.kind"] == "quantize"]
    figures = {m.key: m.value for m in sorted(quantized.metrics, key=lambda m: m.timestamp)}
    assert figures.keys() == EVALUATED.keys()
    assert figures["accuracy"] == 0.9


def test_the_description_of_an_attempt_that_failed_goes_with_a_retry_that_succeeds(tmp_path):
    store = Store(tmp_path)
    store.open()
    options = EvaluateOptions(dataset="digits")
    given = {"inputs": {"tflite": Artifact(uri="/a", sha256="0" * 64, size_bytes=1, format=ArtifactFormat.TFLITE)}}
    error = StepError(type="StepFailedError", message="no disk", exit_code=4)
    store.step(options, status=Status.FAILED, error=error, **given)
    assert "no disk" in store.run("evaluate").data.tags["mlflow.note.content"]
    store.step(options, **given)
    assert "mlflow.note.content" not in store.run("evaluate").data.tags
