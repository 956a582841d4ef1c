"""Paths and servers that the parameters of a DAG run may name; what is refused is in the table of bad inputs too."""

from __future__ import annotations

import pytest

from tfmot_ops.errors import SpecError
from tfmot_ops.runners import check_places
from tfmot_ops.system import environment

pytestmark = pytest.mark.airflow
GIVEN = "{{ params.x }}"
NAMES = ["resnet8", "application:MobileNetV2", "my_net", "My-Net.v2", "digits", "digits?seed=3", "wi8_ai8_ptq"]
PLACES = ["s3://bucket/model.h5", "gs://b/m.keras", "models:/net@champion", "runs:/0123/model", "/data/a/model.h5"]
DATA_SETS = [
    "npz:/data/a.npz",
    "csv:/data/a.csv?target=y&features=a,b",
    "images:/data/a?labels=/data/a.csv&size=32",
    "tfrecord:/data/part-?.tfrecord",
]


@pytest.fixture(autouse=True)
def deployment(monkeypatch):
    """No variable is set but by the test."""
    for variable in (environment.ALLOWED_PATHS, *environment.TRACKING_VARIABLES):
        monkeypatch.delenv(variable.name, raising=False)


def check(written=GIVEN, **given):
    """Check arguments of which the author wrote `written`; those with other names are options."""
    fields = {name: given.pop(name, None) for name in ("output_uri", "tracking_uri")}
    author = {name: written for name, value in fields.items() if value is not None}
    check_places(
        {"options": given, **fields}, {"options": dict.fromkeys(given, written), **dict.fromkeys(fields), **author}
    )


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_paths(name):
    check(model=name, dataset=name, recipe=name, training=None, epochs=3)


def test_the_default_is_the_data_folder_object_stores_and_mlflow():
    for place in PLACES:
        check(model=place)
        check(output_uri=place)
    for data_set in DATA_SETS:
        check(dataset=data_set)
    check(recipe="/data/r.yaml", training="/data/plan.json", parameters={"recipe_file": "/data/r.yaml"})


@pytest.mark.parametrize(
    "given",
    [
        {"parameters": {"recipe_file": "/etc/r.yaml"}},
        {"dataset": "audio:/database"},
        {"dataset": "images:/data?masks=/etc&size=32"},
        {"dataset": "csv:/data/a.csv?target=y&test=/etc/passwd"},
        {"model": "file:///etc/model"},
        {"model": "/data/../etc"},
        {"model": "./model"},
        {"model": "mlflow-artifacts:/../../x"},
        {"output_uri": "file:///tmp"},
    ],
    ids=str,
)
def test_another_place_is_refused_with_its_option(given):
    with pytest.raises(SpecError, match=f"name this place: {'recipe' if 'parameters' in given else next(iter(given))}"):
        check(**given)


def test_the_deployment_names_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv(environment.ALLOWED_PATHS.name, f"{tmp_path}/in, https://models.example/")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to("/etc")
    check(model=str(tmp_path / "in" / "model.h5"), dataset=f"npz:{tmp_path}/in/a.npz")
    check(model="https://models.example/a.h5")
    for place in ("/data/model.h5", "s3://bucket/model.h5", f"{tmp_path}/inner/m.h5", f"{tmp_path}/in/out/m.h5"):
        with pytest.raises(SpecError, match=environment.ALLOWED_PATHS.name):
            check(model=place)


def test_what_a_pattern_matches_is_checked(monkeypatch, tmp_path):
    monkeypatch.setenv(environment.ALLOWED_PATHS.name, str(tmp_path))
    (tmp_path / "part-1.tfrecord").touch()
    (tmp_path / "link").symlink_to("/etc")
    check(dataset=f"tfrecord:{tmp_path}/part-?.tfrecord")
    check(dataset=f"tfrecord:{tmp_path}/part-*.tfrecord?features={tmp_path}/features.json")
    for pattern in ("?*/../../etc/passw[d=]", "li*/passwd", "*/passwd"):
        with pytest.raises(SpecError, match="name this place: dataset"):
            check(dataset=f"tfrecord:{tmp_path}/{pattern}")


@pytest.mark.parametrize("written", ["/srv/model.h5", "/srv/{{ ds }}/model.h5", "{{ var.value.model }}", None])
def test_what_the_author_wrote_may_be_anywhere(written):
    check(written, model="/srv/2026-01-01/model.h5", output_uri="/srv", tracking_uri="http://elsewhere")


@pytest.mark.parametrize("written", ["{{ params['x'] }}", "{{ dag_run.conf.x }}", "{% set x = conf %}{{ x }}", [GIVEN]])
def test_what_the_trigger_chose_may_not(written):
    with pytest.raises(SpecError, match="name this place: model"):
        check(written, model="/srv/model.h5")


def test_the_trigger_chooses_no_server_but_the_deployments(monkeypatch):
    monkeypatch.setenv(environment.TRACKING_URI.name, "http://ours:5000")
    check(tracking_uri="http://ours:5000")
    with pytest.raises(SpecError, match="MLflow server") as refused:
        check(tracking_uri="http://svc:s3cretpw@elsewhere")
    assert "s3cretpw" not in str(refused.value)


def check_input(written, uri):
    given = {"model": {"uri": uri, "sha256": "0" * 64, "size_bytes": 1, "format": "keras_h5"}}
    rest = dict.fromkeys(("output_uri", "tracking_uri"))
    check_places({"options": {}, "inputs": given, **rest}, {"options": {}, "inputs": written, **rest})


@pytest.mark.parametrize(
    "written", ["{{ params.inputs }}", {"model": "{{ dag_run.conf.m }}"}, {"model": {"uri": GIVEN}}]
)
def test_an_input_that_a_parameter_gives_is_of_an_allowed_place(written):
    check_input(written, "/data/model.h5")
    check_input(written, "runs:/0123/model.h5")
    for uri in ("file:///etc/shadow", "http://10.0.0.1/model.h5", "/data/../etc/shadow"):
        with pytest.raises(SpecError, match="input model"):
            check_input(written, uri)
        check_input({"model": "{{ ti.xcom_pull('train') }}"}, uri)  # the author's, as a literal would be
