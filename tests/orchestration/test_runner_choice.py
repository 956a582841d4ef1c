"""Which runner a step gets, and what of a deployment's options is refused."""

import traceback

import pytest

from tfmot_ops.contract import Device
from tfmot_ops.errors import SpecError
from tfmot_ops.runners import (
    ALLOWED_RUNNERS_VARIABLE,
    IMAGES_VARIABLE,
    OPTIONS_VARIABLE,
    RUNNER_VARIABLE,
    DockerRunner,
    FakeRunner,
    KubernetesRunner,
    LocalRunner,
    choose_runner,
    look_up,
)

pytestmark = pytest.mark.airflow


@pytest.fixture(autouse=True)
def deployment(monkeypatch):
    """Sets the three variables; none of them at first."""
    for variable in (RUNNER_VARIABLE, OPTIONS_VARIABLE, ALLOWED_RUNNERS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)

    def deploy(name, options="{}", allowed=""):
        monkeypatch.setenv(RUNNER_VARIABLE, name)
        monkeypatch.setenv(OPTIONS_VARIABLE, options)
        monkeypatch.setenv(ALLOWED_RUNNERS_VARIABLE, allowed)

    return deploy


def test_the_order_is_argument_parameter_deployment_local(deployment):
    assert choose_runner() == LocalRunner()
    deployment("kubernetes", allowed="docker")
    assert choose_runner() == KubernetesRunner()
    assert choose_runner(None, "docker") == DockerRunner()
    assert choose_runner("local", "docker") == LocalRunner()
    fake = FakeRunner()
    assert choose_runner(fake, "docker") is fake


def test_options_are_of_the_deployments_runner_only(deployment):
    deployment("docker", '{"image": "mine:1", "device": "gpu", "mounts": [{"target": "/d", "source": "v"}]}')
    chosen = choose_runner()
    assert chosen == DockerRunner(image="mine:1", device=Device.GPU, mounts=[{"target": "/d", "source": "v"}])
    assert choose_runner("docker") == chosen
    assert choose_runner("kubernetes") == KubernetesRunner()


def test_a_parameter_chooses_among_what_the_deployment_allows(deployment):
    for name, runner in {"local": LocalRunner(), "docker": DockerRunner()}.items():
        assert choose_runner(None, name) == runner, "a deployment that has chosen nothing allows every runner"
    deployment("docker")
    assert choose_runner(None, "docker") == DockerRunner()
    for name in ("local", "kubernetes", {"runner": "docker", "image": "mine:1"}, ["docker"], "podman"):
        with pytest.raises(SpecError, match="required: docker\n") as refused:
            choose_runner(None, name)
        assert ALLOWED_RUNNERS_VARIABLE in refused.value.remedy
    deployment("docker", allowed="kubernetes, local")
    assert choose_runner(None, "local") == LocalRunner()
    assert choose_runner(None, "kubernetes") == KubernetesRunner()


def test_a_list_without_a_chosen_runner_allows_local_ones_and_those_listed(monkeypatch):
    monkeypatch.setenv(ALLOWED_RUNNERS_VARIABLE, "docker")
    assert choose_runner(None, "local") == LocalRunner()
    assert choose_runner(None, "docker") == DockerRunner()
    with pytest.raises(SpecError, match="required: local or docker"):
        choose_runner(None, "kubernetes")


def test_arguments_change_what_the_runner_has_otherwise(deployment):
    deployment("docker", '{"image": "mine:1", "memory": "2g"}', allowed="kubernetes")
    assert choose_runner({"image": "next:1"}) == DockerRunner(image="next:1", memory="2g")
    assert choose_runner({"image": "next:1"}, "kubernetes") == KubernetesRunner(image="next:1")
    assert choose_runner({"runner": "kubernetes", "image": "next:1"}, "docker") == KubernetesRunner(image="next:1")
    with pytest.raises(SpecError, match="field imge"):
        choose_runner({"imge": "next:1"})


@pytest.mark.parametrize(
    ("name", "options", "finding"),
    [
        pytest.param("podman", "{}", "received: podman", id="name"),
        pytest.param("docker", '{"imge": "x"}', "field imge", id="unknown"),
        pytest.param("kubernetes", '{"schedule_timeout_s": "soon"}', "field schedule_timeout_s", id="type"),
        pytest.param("kubernetes", '{"fallback": "tpu"}', "field fallback", id="enum"),
        pytest.param("docker", "image=x", "required: a JSON object", id="no-json"),
        pytest.param("docker", '["image"]', "required: a JSON object", id="no-object"),
        pytest.param("docker", "[" * 200_000, "required: a JSON object", id="nested"),
    ],
)
def test_what_is_wrong_is_named(deployment, name, options, finding):
    deployment(name, options)
    with pytest.raises(SpecError, match=finding):
        choose_runner()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param('{"env": ["hunter2secret"]}', id="type"),
        pytest.param('{"hunter2secret": 1}', id="name"),
        pytest.param('{"env": {"A": "hunter2secret"', id="no-json"),
    ],
)
def test_values_of_the_deployments_options_are_not_quoted(deployment, options):
    deployment("docker", options)
    with pytest.raises(SpecError) as refused:
        choose_runner()
    told = "".join(traceback.format_exception(refused.value))
    assert OPTIONS_VARIABLE in told
    assert "hunter2secret" not in told


def test_a_name_stands_for_what_the_deployment_lists(monkeypatch):
    monkeypatch.setenv(IMAGES_VARIABLE, '{"tf-2.22": "tfmot-ops:next-cpu", "nightly": "tfmot-ops:nightly"}')
    assert look_up(IMAGES_VARIABLE, "tf-2.22") == "tfmot-ops:next-cpu"
    for name in ("tfmot-ops:next-cpu", "evil.example/anything:latest", "", "tf-2", 2.22, None, {"image": "x"}):
        with pytest.raises(SpecError, match=r"required: one of 'tf-2\.22', 'nightly'"):
            look_up(IMAGES_VARIABLE, name)
    monkeypatch.delenv(IMAGES_VARIABLE)
    with pytest.raises(SpecError, match="the list is empty"):
        look_up(IMAGES_VARIABLE, "tf-2.22")


@pytest.mark.parametrize(
    "text",
    ["next=image", "[]", '"next"', '{"next": 1}', '{"next": null}', '{"2.22": "i"}', '{"None": "i"}', "[" * 10**6],
)
def test_a_list_that_cannot_be_read_names_its_variable(monkeypatch, text):
    monkeypatch.setenv(IMAGES_VARIABLE, text)
    with pytest.raises(SpecError, match=f"variable {IMAGES_VARIABLE} cannot be read"):
        look_up(IMAGES_VARIABLE, "next")
