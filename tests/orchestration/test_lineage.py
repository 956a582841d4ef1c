"""What an operator tells OpenLineage: names of data sets, models and files, without secrets."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from tfmot_ops.contract import Artifact, StepResult, StepSpec
from tfmot_ops.errors import UnsupportedModelError
from tfmot_ops.operators import TrainOperator
from tfmot_ops.operators.lineage import Lineage, Place, facets_of, lineage_of
from tfmot_ops.runners import FakeRunner

pytestmark = pytest.mark.airflow

SERVER = "http://mlflow.example:5000"
SHA = "ab" * 32
CONTEXT = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="train", map_index=-1), "params": {}}


def artifact(uri, form="tflite"):
    return Artifact(uri=uri, sha256=SHA, size_bytes=1, format=form)


def spec_of(inputs=None, uri=SERVER, **options):
    tracking = {"uri": uri} if uri else None
    given = {
        name: artifact(place, "keras_h5" if name == "model" else "tflite") for name, place in (inputs or {}).items()
    }
    return StepSpec.model_validate(
        {"step_id": "s", "tracking": tracking, "output_uri": "/out", "inputs": given, "options": options}
    )


def result_of(spec, outputs=None, **parameters):
    return StepResult(
        step_id="s",
        kind=spec.options.kind,
        status="ok",
        spec_sha256=spec.sha256(),
        outputs={name: artifact(place) for name, place in (outputs or {}).items()},
        parameters=parameters,
        tracking_run_id="0123",
    )


TRAIN = {"kind": "train", "model": "resnet8"}
DATA = {
    "digits": ("tfmot_ops", "digits"),
    "npz:/data/a.npz": ("file", "/data/a.npz"),
    "images:/data/folder?size=32&test=/data/t": ("file", "/data/folder"),
    "npz:s3://bucket/a/b.npz": ("s3://bucket", "a/b.npz"),
    "csv:https://me:word@host.example/a.csv?sep=x": ("https://host.example", "a.csv"),
}


@pytest.mark.parametrize(("dataset", "named"), DATA.items(), ids=DATA)
def test_the_data_set_is_named_by_its_store(dataset, named):
    spec = spec_of(**TRAIN, dataset=dataset)
    data, model = lineage_of(spec, result_of(spec, dataset_digest="12")).inputs
    assert (data.namespace, data.name, data.version) == (*named, "12")
    assert model == Place("tfmot_ops", "resnet8")


def test_files_of_a_step_are_named_by_their_store_and_their_content():
    spec = spec_of(
        {"model": "runs:/77/model.h5", "trained": "s3://bucket/m.h5"},
        kind="quantize",
        dataset="digits",
        recipe="wi8_ai8",
    )
    found = lineage_of(spec, result_of(spec, {"tflite": "file:///out/m.tflite", "model": "runs:/78/model.h5"}))
    assert found.inputs[1:] == (Place(SERVER, "runs:/77/model.h5", SHA), Place("s3://bucket", "m.h5", SHA))
    assert found.outputs == (Place("file", "/out/m.tflite", SHA), Place(SERVER, "runs:/78/model.h5", SHA))
    assert (found.run_id, found.server) == ("0123", SERVER)


def test_a_registered_model_is_an_output_with_its_version():
    spec = spec_of({"tflite": "runs:/77/m.tflite"}, kind="register", name="digits")
    assert lineage_of(spec, result_of(spec, registered_version="4")).outputs == (Place(SERVER, "models:/digits", "4"),)
    assert lineage_of(spec, result_of(spec)).outputs == ()


def test_no_name_holds_a_secret():
    spec = spec_of(
        {"model": "https://me:word@host/m.h5?X-Amz-Signature=word"},
        uri="http://me:word@mlflow.example",
        kind="quantize",
        recipe="wi8_ai8",
        dataset="npz:https://me:word@host/d.npz",
    )
    found = lineage_of(spec, result_of(spec, {"tflite": "ftp://me:word@host/m.tflite"}))
    assert "word" not in repr(found)
    assert found.inputs[1] == Place("https://host", "m.h5", SHA)


def test_an_operator_without_the_provider_tells_nothing(monkeypatch):
    operator = TrainOperator(
        task_id="train", options={"model": "resnet8", "dataset": "digits"}, runner=FakeRunner(), output_uri="/out"
    )
    assert operator.get_openlineage_facets_on_complete(None) is None, "it was not started"
    operator.execute(CONTEXT)
    monkeypatch.setitem(sys.modules, "openlineage", None)
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage", None)
    assert operator.get_openlineage_facets_on_complete(None) is None


def test_an_operator_with_the_provider_tells_what_it_read_and_wrote(monkeypatch):
    pytest.importorskip("airflow.providers.openlineage.extractors", reason="the provider openlineage is not installed")
    from airflow.providers.openlineage.extractors.manager import ExtractorManager
    from airflow.sdk import TaskInstanceState

    monkeypatch.setenv("TFMOT_OPS_TRACKING_URI", SERVER)
    with DAG("d", schedule=None):
        options = {"model": "resnet8", "dataset": "digits"}
        operator = TrainOperator(task_id="train", options=options, runner=FakeRunner())
    answer = operator.execute(CONTEXT)
    found = ExtractorManager().extract_metadata(
        dagrun=SimpleNamespace(run_id="r"),
        task=operator,
        task_instance_state=TaskInstanceState.SUCCESS,
        task_instance=SimpleNamespace(try_number=1, map_index=-1),
    )
    assert [(each.namespace, each.name) for each in found.inputs] == [("tfmot_ops", "digits"), ("tfmot_ops", "resnet8")]
    (written,) = found.outputs
    assert (written.namespace, written.name) == ("memory://train", "model")
    assert written.facets["version"].datasetVersion == answer["outputs"]["model"]["sha256"]
    assert found.run_facets["externalQuery"].externalQueryId == answer["tracking_run_id"]
    assert found.run_facets["externalQuery"].source == SERVER


def test_a_step_that_failed_tells_what_it_read():
    runner = FakeRunner(answers={"train": UnsupportedModelError("no")})
    operator = TrainOperator(
        task_id="train", options={"model": "resnet8", "dataset": "digits"}, runner=runner, output_uri="/out"
    )
    with pytest.raises(AirflowFailException):
        operator.execute(CONTEXT)
    found = lineage_of(operator._spec, operator._result)
    assert [place.name for place in found.inputs] == ["digits", "resnet8"]
    assert found.outputs == ()
    assert facets_of(Lineage(())) is None or facets_of(Lineage(())).inputs == []
